"""A trace is read as it is written, or refused with the number of the line."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.trace import BadTrace, read_trace

TABLE = b"t_s,rps\n0,10\n30,40\n60,10\n"


def test_a_rate_lies_on_the_line_between_the_rows_around_it():
    assert read_trace(TABLE).rates == pytest.approx((17.5, 32.5, 32.5, 17.5))  # in the middle of each step


def test_gzip_json_lines_and_csv_are_the_same_trace():
    lines = b'{"t_s": 0, "rps": 10}\n{"t_s": 30, "rps": 40}\n\n{"t_s": 60, "rps": 10}\n'
    assert read_trace(lines) == read_trace(TABLE) == read_trace(gzip.compress(TABLE))


def test_one_of_several_columns_is_chosen_by_its_name():
    trace = read_trace(b"t_s,chat,code\n0,1,5\n15,1,5\n", "code")
    assert (trace.name, trace.rates) == ("code", (5.0,))


def test_a_row_without_a_rate_is_interpolated():
    assert read_trace(b"t_s,rps\n0,10\n15,\n30,10\n").rates == (10.0, 10.0)


def test_the_requests_of_a_list_are_counted():
    requests = b'{"timestamp": 0}\n{"timestamp": 14999}\n{"timestamp": 15000, "requests": [1, 2]}\n'
    assert read_trace(requests).rates == pytest.approx((2 / 15, 2 / 15))


def test_requests_may_have_dates_with_seven_digits_of_a_second():
    rows = b"TIMESTAMP,ContextTokens\n2023-11-16 18:15:46.6805900,374\n2023-11-16 18:16:02.0000000,396\n"
    assert read_trace(rows).rates == pytest.approx((1 / 15, 1 / 15))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"t_s,rps\n0,10\n15,-1\n", "line 3: rps is -1; a rate is 0 or more requests per second"),
        (b"t_s,rps\n0,10\n15,nan\n", "line 3: rps is 'nan'; write requests per second, 0 or more"),
        (b"t_s,rps\n0,10\n15,many\n", "line 3: rps is 'many'"),
        (b"t_s,rps\n0,10\n0,20\n", "line 3: the time 0 is not after 0; sort the rows by time"),
        (b"t_s,rps\n0,10\n15\n", "line 3: 1 columns; the header has 2"),
        (b"t_s,rps\n0,10\n", "fewer than two rows"),
        (b"", "the trace has no rows"),
        (b"a,b\n1,2\n", "line 2: no column has a time"),
        (b"t_s,chat,code\n0,1,5\n", "choose one with --column: chat, code"),
        (b'{"t_s": 0, "rps": 1}\n{"t_s": 15, "rps": -2}\n', "line 2: rps is -2"),
        (b'{"t_s": 0, "rps": 1}\n{"t_s": 15\n', "line 2: not JSON"),
        (b'{"t_s": 0, "rps": 1}\n[1]\n', "line 2: not a JSON object"),
        (b'{"t_s": 0, "rps": 1}\n{"t_s": 15, "rps": true}\n', "line 2: rps is 'True'"),
        (b't_s,rps\n0,10\n15,"1\n', "not CSV"),
        (b"t_s,rps\n0,1\n\xff,1\n", "line 3: not UTF-8"),
        (b"t_s,rps\n0,1\n1e12,1\n", "days; split it"),
        (gzip.compress(TABLE)[:-9], "the gzip data is cut off"),
        (b"\x1f\x8bnothing", "the gzip data is damaged"),
    ],
)
def test_a_broken_trace_is_refused_with_its_line_and_what_to_change(data, message):
    with pytest.raises(BadTrace) as refused:
        read_trace(data)
    assert message in str(refused.value)


def test_an_unknown_column_is_refused_with_the_nearest_one():
    with pytest.raises(BadTrace, match="did you mean 'code'"):
        read_trace(b"t_s,chat,code\n0,1,5\n15,1,5\n", "cod")


@given(st.binary(max_size=200) | st.text(alphabet='t_s,rp0123456789.-e\n{}": ', max_size=200).map(str.encode))
def test_any_bytes_are_a_trace_or_refused(data):
    try:
        trace = read_trace(data)
    except BadTrace:
        return
    assert all(rate >= 0 for rate in trace.rates)
