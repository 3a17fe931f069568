"""Rates over counters: from pages, through restarts, to what is published or withheld."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines.mapping import Extraction
from agent.scaling.gauges import BY_RATE, gauge_set
from agent.scaling.rates import rate
from agent.scaling.rollup import DatedValue, Unknown
from agent.signals import FINISHED, GENERATION_TOKENS, PREFIX_HITS, PREFIX_QUERIES, START_TIME, Value
from agent.state.counter_rates import COUNTERS, MIN_SECONDS, RATES, SPACING_SECONDS, WINDOW_SECONDS, Window
from agent.state.snapshot import EndpointView
from agent.state.store import RoutingStore
from exporters.gauge import REASONS

A = "127.0.0.1:8000"


def store_of(pages: Sequence[tuple[float, dict[str, Value]]], stale_after: float = 1e9) -> RoutingStore:
    store = RoutingStore("pool", stale_after=stale_after)
    store.set_endpoints({A: "vllm"}, 0.0)
    for at, values in pages:
        store.observed(A, Extraction(dict(values), (), ()), at, 0.01, 100)
    return store


def view_of(pages: Sequence[tuple[float, dict[str, Value]]], now: float | None = None) -> EndpointView:
    (view,) = store_of(pages).snapshot(pages[-1][0] if now is None else now).endpoints
    return view


def test_every_rate_has_a_metric_of_its_unit() -> None:
    assert BY_RATE.keys() == RATES.keys()
    for name, metric in BY_RATE.items():
        assert metric.unit == RATES[name].unit


def test_a_rate_is_the_increase_over_the_time_between_the_requests() -> None:
    view = view_of([(float(second), {GENERATION_TOKENS: 100.0 * second}) for second in range(11)])
    assert rate(view, "generation_tokens_per_second", 10.5) == DatedValue(100.0, 10.0)


def test_a_rate_covers_no_more_than_its_window() -> None:
    """Busy for a minute, then idle: half a minute later the busy time is not included."""
    last = 60 + WINDOW_SECONDS + SPACING_SECONDS
    view = view_of([(float(second), {FINISHED: float(min(second, 60))}) for second in range(int(last) + 1)])
    assert rate(view, "finished_requests_per_second", last) == DatedValue(0.0, last)


def test_the_hit_ratio_is_over_the_tokens_that_were_looked_up_in_the_window() -> None:
    view = view_of(
        [(0.0, {PREFIX_QUERIES: 1000.0, PREFIX_HITS: 0.0}), (6.0, {PREFIX_QUERIES: 3000.0, PREFIX_HITS: 500.0})]
    )
    assert rate(view, "prefix_hit_ratio", 6.0) == DatedValue(0.25, 6.0)


@pytest.mark.parametrize("left_out", [PREFIX_QUERIES, PREFIX_HITS])
def test_a_ratio_never_mixes_two_pages(left_out: str) -> None:
    full: dict[str, Value] = {PREFIX_QUERIES: 3000.0, PREFIX_HITS: 500.0}
    view = view_of(
        [
            (0.0, {PREFIX_QUERIES: 1000.0, PREFIX_HITS: 0.0}),
            (6.0, full),
            (7.0, {name: value for name, value in full.items() if name != left_out}),
        ]
    )
    assert rate(view, "prefix_hit_ratio", 7.0) == Unknown("too_few_pages")


def test_a_ratio_over_a_counter_that_did_not_grow_is_not_zero() -> None:
    still: dict[str, Value] = {PREFIX_QUERIES: 1000.0, PREFIX_HITS: 10.0}
    assert rate(view_of([(0.0, still), (6.0, still)]), "prefix_hit_ratio", 6.0) == Unknown("nothing_counted")


@pytest.mark.parametrize("apart", [0.0, 0.05, MIN_SECONDS - 0.1])
def test_two_pages_close_together_make_no_rate(apart: float) -> None:
    view = view_of([(1.0, {FINISHED: 1.0}), (1.0 + apart, {FINISHED: 2.0})])
    assert rate(view, "finished_requests_per_second", 1.0 + apart) == Unknown("too_few_pages")


def test_a_restarted_server_has_no_rate_until_two_of_its_own_pages_were_read() -> None:
    pages: list[tuple[float, dict[str, Value]]] = [
        (float(at), {FINISHED: 1000.0 + at, START_TIME: 1.0}) for at in range(20)
    ]
    pages.append((20.0, {FINISHED: 3.0, START_TIME: 2.0}))
    assert rate(view_of(pages), "finished_requests_per_second", 20.0) == Unknown("too_few_pages")
    pages.append((26.0, {FINISHED: 9.0, START_TIME: 2.0}))
    assert rate(view_of(pages), "finished_requests_per_second", 26.0) == DatedValue(1.0, 26.0)


def test_a_stale_counter_has_no_rate() -> None:
    store = store_of([(0.0, {FINISHED: 1.0}), (6.0, {FINISHED: 2.0})], stale_after=3.0)
    (view,) = store.snapshot(9.5).endpoints
    assert rate(view, "finished_requests_per_second", 9.5) == Unknown("stale")


def test_a_pool_s_rate_is_the_sum_of_the_known_rates() -> None:
    store = RoutingStore("pool", stale_after=1e9)
    store.set_endpoints({A: "vllm", "127.0.0.1:8001": "vllm"}, 0.0)
    for at in (0.0, 10.0):
        store.observed(A, Extraction({GENERATION_TOKENS: 30 * at}, (), ()), at, 0.01, 100)
    published = gauge_set([store.snapshot(10.0)], 10.0)
    (whole,) = [gauge for gauge in published.gauges if gauge.metric.name == "igw_pool_generation_tokens_per_second"]
    assert whole.value == 30.0
    withheld = {(row.metric.name, row.labels[-1]): row.reason for row in published.withheld}
    assert withheld["igw_endpoint_generation_tokens_per_second", "127.0.0.1:8001"] == "never_scraped"


steps = st.lists(
    st.tuples(st.floats(0.01, 20.0), st.one_of(st.none(), st.integers(0, 1000)), st.booleans()), min_size=1, max_size=40
)


@given(steps)
def test_no_rate_is_negative_or_of_another_server_and_each_withheld_one_has_a_known_reason(
    steps_taken: list[tuple[float, int | None, bool]],
) -> None:
    """Counters grow by any amount, are missing on a page, or start again lower; the oracle keeps every page."""
    now = count = 0.0
    pages: list[tuple[float, dict[str, Value]]] = []
    for passed, grown, restarts in steps_taken:
        now += passed
        if restarts:
            count = 0.0
        count += grown or 0
        pages.append((now, {} if grown is None else {FINISHED: count, PREFIX_QUERIES: count, PREFIX_HITS: count / 2}))
    view = view_of(pages)
    for name in RATES:
        found = rate(view, name, now)
        if isinstance(found, Unknown):
            assert found.reason in REASONS
            continue
        assert found.value >= 0
        if RATES[name].whole is not None:
            assert found.value <= 1
        else:
            counted = [(at, values[FINISHED]) for at, values in pages if FINISHED in values and at <= found.at]
            steepest = max(
                (float(new) - float(old)) / (after - before)  # type: ignore[arg-type]
                for (before, old), (after, new) in itertools.pairwise(counted)
            )
            assert found.value <= max(0.0, steepest) * (1 + 1e-9)


@given(st.lists(st.floats(0.001, 30.0), max_size=60))
def test_a_window_stays_small_however_often_pages_come(gaps: list[float]) -> None:
    window, at = Window(), 0.0
    for gap in gaps:
        at += gap
        window.observe(dict.fromkeys(COUNTERS, at), at)
        assert window.oldest is not None
        assert len(window._pages) <= WINDOW_SECONDS / SPACING_SECONDS + 2
