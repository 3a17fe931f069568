"""The demo's table says what was measured, and a dash where nobody knows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.demo.journey import total
from agent.demo.report import (
    FOR_AN_AUTOSCALER,
    UNKNOWN,
    Figures,
    Gauge,
    gauges,
    notes,
    percentile,
    pool_gauges,
    table,
    withheld,
)
from exporters.catalog import CATALOG

numbers = st.floats(0, 1e6)
known_or_not = st.none() | numbers
counted_or_not = st.none() | st.integers(0, 10**6).map(float)
figures = st.builds(
    Figures,
    name=st.just("x"),
    sent=st.integers(0, 1000),
    ttft_seconds=st.lists(numbers),
    errors=st.dictionaries(st.sampled_from(["HTTP 503", "an empty stream"]), st.integers(1, 9)),
    served=st.dictionaries(st.sampled_from(["a:1", "b:1"]), counted_or_not),
    query_tokens=counted_or_not,
    hit_tokens=counted_or_not,
    predicted_tokens=counted_or_not,
    left_warmest=counted_or_not,
    agent_cpu_seconds=known_or_not,
    ages_seconds=st.lists(numbers),
    late_seconds=numbers,
    busy_ratios=st.lists(st.floats(0, 1)),
)
RUN = Figures(
    "least-cost",
    200,
    [0.1] * 90 + [2.0] * 10,
    {},
    {"a:1": 120.0, "b:1": None},
    1000.0,
    670.0,
    683.4,
    12.0,
    0.1,
    [0.05, 0.1],
    0.0,
    [0.5, 1.0],
)
BLIND = RUN._replace(name="round robin", ttft_seconds=[4.0], predicted_tokens=None, left_warmest=None)


def cells(*runs: Figures) -> dict[str, tuple[str, ...]]:
    return {row.label.strip(): row.cells for row in table(runs)}


def test_every_figure_is_in_its_row() -> None:
    found = cells(BLIND, RUN)
    assert found == {
        "time to first token, p50": ("4.00 s", "100 ms"),
        "time to first token, p90": ("4.00 s", "100 ms"),
        "prefix hits, counted by servers": ("67.0 %", "67.0 %"),
        "hit tokens the index predicted": (UNKNOWN, "683"),
        "hit tokens the servers counted": ("670", "670"),
        "gap of the two": (UNKNOWN, "+2.0 %"),
        "left the warmest server": (UNKNOWN, "12"),
        "requests at a:1": ("120", "120"),
        "requests at b:1": (UNKNOWN, UNKNOWN),
        "accelerators busy, mean": ("75.0 %", "75.0 %"),
        "errors": ("0", "0"),
        "agent CPU per request": ("500 us", "500 us"),
        "age of the signals, p50": ("50 ms", "50 ms"),
        "age of the signals, p99": ("100 ms", "100 ms"),
    }


@given(st.lists(figures, min_size=1, max_size=3))
def test_every_row_has_a_cell_for_every_run_and_none_says_nan(runs: list[Figures]) -> None:
    for row in table(runs):
        assert len(row.cells) == len(runs)
        assert not any("nan" in cell or "inf" in cell or not cell for cell in row.cells)
    assert all(notes(runs, 0.5))


@given(figures)
def test_what_is_not_known_is_a_dash_and_never_zero(run: Figures) -> None:
    found = cells(run)
    if run.hit_tokens is None:
        assert found["prefix hits, counted by servers"] == (UNKNOWN,)
        assert found["hit tokens the servers counted"] == (UNKNOWN,)
    if not run.ttft_seconds:
        assert found["time to first token, p90"] == (UNKNOWN,)
    if run.left_warmest is None:
        assert found["left the warmest server"] == (UNKNOWN,)


@given(st.lists(numbers, min_size=1), st.floats(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= math.floor(len(values) * percent / 100)


def test_errors_and_a_busy_machine_are_told() -> None:
    run = RUN._replace(errors={"HTTP 503 none_healthy": 3}, late_seconds=1.5)
    said = notes([BLIND, run], 0.75)
    assert "least-cost: 3 x HTTP 503 none_healthy" in said
    assert any("1.50 s late" in line for line in said)
    assert any("0.03 of that of round robin" in line for line in said)


def test_a_gauge_that_is_withheld_is_shown_with_its_reason() -> None:
    queue, ready = FOR_AN_AUTOSCALER[0], FOR_AN_AUTOSCALER[-1]
    now = [Gauge(ready, {}, 4.0, 0.0, ""), Gauge(queue, {}, None, None, "none_fresh")]
    assert [tuple(row) for row in pool_gauges(now, {queue: 2.5})] == [
        (queue, ("2.5", UNKNOWN, "withheld: none_fresh")),
        (ready, (UNKNOWN, "4", "0 ms")),
    ]


def test_what_is_withheld_is_counted_by_name_and_reason() -> None:
    known = Gauge("x", {}, 1.0, 0.0, "")
    assert withheld([known]) == "No gauge is withheld."
    assert withheld([known, *[Gauge("b", {}, None, None, "down")] * 2, Gauge("a", {}, None, None, "stale")]) == (
        "Withheld, because nobody knows the value: a (1, stale), b (2, down)."
    )


def test_the_gauges_of_the_table_are_in_the_catalogue_and_belong_to_a_pool() -> None:
    for name in FOR_AN_AUTOSCALER:
        assert CATALOG[name].type == "gauge"
        assert not set(CATALOG[name].labels) & {"server", "model_server_endpoint"}


def test_the_document_of_gauges_is_read() -> None:
    row = {"name": "x", "labels": {"pool": "p"}, "aliases": [], "unit": "ratio", "value": 1.0, "age_seconds": 0.2}
    blind: dict[str, object] = {
        "name": "y",
        "labels": {},
        "aliases": ["z"],
        "unit": "ratio",
        "value": None,
        "withheld": "down",
    }
    assert gauges({"gauges": [row, blind]}) == [
        Gauge("x", {"pool": "p"}, 1.0, 0.2, ""),
        Gauge("y", {}, None, None, "down", ("z",)),
    ]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("", 0.0),
        ('# TYPE c counter\nc{pool="a"} 2.0\nc{pool="b"} 3.0\ncd{pool="a"} 9.0\n', 5.0),
        ("c 7.0\n", 7.0),
    ],
)
def test_a_counter_of_the_agent_is_summed_over_its_series(page: str, expected: float) -> None:
    assert total(page, "c") == expected
