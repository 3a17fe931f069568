"""A trace of arrivals for a simulation: from the lines of a file to requests per second in steps of 15 s.

Two forms are read. A table of rates has a time in seconds and one or more rates, which hold from one row to the next
and are interpolated in between; the columns are named by a CSV header, or are the keys of JSON lines. A list of
requests has the time of each request, as a column or a key (`timestamp`, `TIMESTAMP`, `arrival_time` and others); its
requests are counted. Times in a list of requests are milliseconds where they are whole numbers, else seconds, or a
date with a time.
"""

from __future__ import annotations

import csv
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from agent.scaling.arrivals import STEP_SECONDS

MAX_BYTES: Final = 256 << 20  # of a trace, unpacked
MAX_STEPS: Final = 4_000_000  # 694 days
RATE_TIMES: Final = ("t_s", "t", "seconds", "time_s", "time")
RATES: Final = ("rps", "rate", "requests_per_second", "qps")
REQUEST_TIMES: Final = ("timestamp", "arrival_time", "arrived_at", "arrival_timestamp")
_GZIP: Final = b"\x1f\x8b"
_SHOWN: Final = 60  # characters of a line in a message


class BadTrace(Exception):
    """The trace cannot be read; the text has the line and what to change."""


class RateTrace(NamedTuple):
    """Requests per second in successive steps of `STEP_SECONDS`; `name` is the column, empty for a list of requests."""

    name: str
    rates: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The length of the trace."""
        return len(self.rates) * STEP_SECONDS


class _Row(NamedTuple):
    number: int  # of the line, from 1
    values: Mapping[str, Any]


def read_trace(data: bytes, column: str = "") -> RateTrace:
    """The trace in the bytes of a file, plain or gzip. `column` selects one of several rates. Raises BadTrace."""
    text = _text(data)
    rows = iter(_json_rows(text) if text.lstrip()[:1] == "{" else _csv_rows(text))
    first = next(rows, None)
    if first is None:
        raise BadTrace("the trace has no rows; write a time and a rate in each line")
    keys = {str(key).lower(): str(key) for key in first.values}
    time_key = next((keys[name] for name in RATE_TIMES if name in keys), None)
    if time_key is not None:
        name = _rate_column(first.values, time_key, column)
        return RateTrace(name, tuple(_interpolated(_rate_rows(first, rows, time_key, name))))
    time_key = next((keys[name] for name in REQUEST_TIMES if name in keys), None)
    if time_key is None:
        known = ", ".join((*RATE_TIMES, *REQUEST_TIMES))
        raise BadTrace(f"line {first.number}: no column has a time; name one of them {known}")
    if column:
        raise BadTrace(f"the trace is a list of requests, which has no column of rates {column[:_SHOWN]!r}")
    return RateTrace("", tuple(_counted(first, rows, time_key)))


def _text(data: bytes) -> str:
    if data[:2] == _GZIP:
        unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            data = unpack.decompress(data, MAX_BYTES + 1)
        except zlib.error as error:
            raise BadTrace(f"the gzip data is damaged: {error}") from error
        if len(data) <= MAX_BYTES and not unpack.eof:
            raise BadTrace("the gzip data is cut off; copy the whole file")
    if len(data) > MAX_BYTES:
        raise BadTrace(f"the trace has more than {MAX_BYTES >> 20} MiB; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadTrace(f"line {line}: not UTF-8; write the trace as CSV or JSON lines") from error


def _json_rows(text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                values = json.loads(line, parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:
                raise BadTrace(f"line {number}: not JSON: {line[:_SHOWN]!r}") from error
            if not isinstance(values, dict):
                raise BadTrace(f"line {number}: not a JSON object: {line[:_SHOWN]!r}")
            yield _Row(number, values)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _csv_rows(text: str) -> Iterator[_Row]:
    reader = csv.reader(text.splitlines(), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                continue
            if len(cells) != len(header):
                raise BadTrace(f"line {reader.line_num}: {len(cells)} columns; the header has {len(header)}")
            yield _Row(reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True)))
    except csv.Error as error:
        raise BadTrace(f"line {reader.line_num}: not CSV: {error}") from error


def _rate_column(values: Mapping[str, Any], time_key: str, column: str) -> str:
    found = [str(key) for key in values if key != time_key]
    if column:
        if column in found:
            return column
        near = get_close_matches(column, found, 1, 0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"the columns are: {', '.join(found)}"
        raise BadTrace(f"there is no column {column[:_SHOWN]!r}; {hint}")
    named = [name for name in found if name.lower() in RATES]
    if len(named) == 1:
        return named[0]
    if len(found) == 1:
        return found[0]
    raise BadTrace(f"several columns may be the rate: choose one with --column: {', '.join(found)}")


def _number(row: _Row, key: str, what: str) -> float:
    value = row.values.get(key)
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadTrace(f"line {row.number}: {key} is {str(value)[:_SHOWN]!r}; write {what}")
    return number


def _rate_rows(first: _Row, rows: Iterator[_Row], time_key: str, name: str) -> Iterator[tuple[float, float]]:
    """Time and rate of each row. A row without a rate is left out; the rate is interpolated there."""
    before = -math.inf
    for row in _and(first, rows):
        at = _number(row, time_key, "the time in seconds")
        if at <= before:
            raise BadTrace(f"line {row.number}: the time {at:g} is not after {before:g}; sort the rows by time")
        before = at
        if row.values.get(name) in ("", None):
            continue
        rate = _number(row, name, "requests per second, 0 or more")
        if rate < 0:
            raise BadTrace(f"line {row.number}: {name} is {rate:g}; a rate is 0 or more requests per second")
        yield at, rate


def _and(first: _Row, rows: Iterator[_Row]) -> Iterator[_Row]:
    yield first
    yield from rows


def _interpolated(rows: Iterator[tuple[float, float]]) -> Iterator[float]:
    """The rate in the middle of each step, on the line between the rows around it: the mean of the step, where no row
    is in it."""
    points = list(rows)
    if len(points) < 2:
        raise BadTrace("the trace has fewer than two rows with a rate; a simulation needs a begin and an end")
    steps = math.ceil((points[-1][0] - points[0][0]) / STEP_SECONDS)
    _check_steps(steps)
    place, begin = 0, points[0][0]
    for step in range(steps):
        at = min(begin + (step + 0.5) * STEP_SECONDS, points[-1][0])
        while points[place + 1][0] < at:
            place += 1
        (since, low), (until, high) = points[place], points[place + 1]
        yield low + (high - low) * (at - since) / (until - since)


def _counted(first: _Row, rows: Iterator[_Row], key: str) -> Sequence[float]:
    """Requests per second of each step, counted from the first request."""
    times = []
    for row in _and(first, rows):
        requests = row.values.get("requests")
        count = len(requests) if isinstance(requests, list) else 1
        times.append((_request_time(row, key), count))
    begin = min(at for at, _ in times)
    steps = math.floor((max(at for at, _ in times) - begin) / STEP_SECONDS) + 1
    _check_steps(steps)
    counts = [0.0] * steps
    for at, count in times:
        counts[math.floor((at - begin) / STEP_SECONDS)] += count
    return [count / STEP_SECONDS for count in counts]


def _request_time(row: _Row, key: str) -> float:
    value = row.values.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return value / 1000
    if isinstance(value, str) and not value.isdigit():
        whole, _, part = value.partition(".")
        text = f"{whole}.{part[:6]}" if part else whole  # of a second the standard library reads six digits
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    number = _number(row, key, "the time of the request")
    return number / 1000 if isinstance(value, str) and value.isdigit() else number


def _check_steps(steps: int) -> None:
    if steps > MAX_STEPS:
        raise BadTrace(f"the trace covers {steps * STEP_SECONDS / 86400:.0f} days; split it")
