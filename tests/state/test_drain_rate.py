"""A queue that something else than prefill delays: its drain rate, and the backlog that follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines.mapping import Extraction
from agent.signals import FINISHED, RUNNING, WAITING
from agent.state.drain_rate import DrainRate
from agent.state.inflight import DELAYED_WAITING, InFlight
from agent.state.prefill_rate import RateLimits
from agent.state.store import RoutingStore


def test_the_wait_of_a_queue_is_unknown_until_it_was_observed_for_a_while() -> None:
    drain = DrainRate()
    assert drain.wait_seconds(5) is None
    drain.observe(0, 5, 0.0)
    assert drain.wait_seconds(5) is None


def test_the_wait_is_the_length_over_the_rate_at_which_requests_end() -> None:
    drain = DrainRate()
    for second in range(600):
        drain.observe(2.0 * second, 8, float(second))
    assert drain.wait_seconds(8) == pytest.approx(4.0, rel=0.05)


def test_the_wait_of_a_queue_without_progress_grows() -> None:
    drain, waits = DrainRate(), list[float | None]()
    for second in range(10):
        drain.observe(7, 4, float(second))
        waits.append(drain.wait_seconds(4))
    assert waits[:5] == [None] * 5
    known = [wait for wait in waits if wait is not None]
    assert len(known) >= 3
    assert known == sorted(known)
    assert known[-1] > 20


def test_times_without_a_queue_are_not_counted() -> None:
    drain = DrainRate()
    for second in range(100):
        drain.observe(float(second), second % 2 * 5, float(second))
    assert drain.wait_seconds(5) is None


def test_a_counter_that_goes_back_starts_the_estimate_over() -> None:
    drain = DrainRate()
    for second in range(10):
        drain.observe(100.0 + second, 5, float(second))
    drain.observe(1, 5, 10.0)
    assert drain.wait_seconds(5) is None


def test_a_queue_that_prefill_explains_does_not_change_the_backlog() -> None:
    work = InFlight(1000.0)
    work.start(1, 3000, 0.0)
    work.delay_queue(8.0, 10, 0.0, 0.0)
    assert work.busy_until == 3.0


def test_a_queue_that_prefill_does_not_explain_is_the_backlog_until_a_page_reports_otherwise() -> None:
    work = InFlight(1000.0)
    work.start(1, 100, 0.0)
    work.delay_queue(20.0, 10, 1.0, 1.2)
    assert work.busy_until == 21.0
    work.start(2, 100, 2.0)
    assert work.busy_until == 23.0
    work.delay_queue(20.0, DELAYED_WAITING - 1, 3.0, 3.0)
    assert work.busy_until < 4.0


def test_a_server_full_of_long_responses_is_busy_although_its_prefill_is_done() -> None:
    store = RoutingStore("pool", stale_after=3.0, rate=RateLimits(fixed=10_000.0))
    store.set_endpoints({"full:1": "vllm", "idle:1": "vllm"}, 0.0)
    for work_id in range(20):
        store.started("full:1", 100, 0, 0.01 * work_id)
    for second in range(1, 9):
        page = {RUNNING: 4.0, WAITING: 16.0, FINISHED: 0.0}
        store.observed("full:1", Extraction(dict(page), (), ()), float(second), 0.01, 10)
        store.observed(
            "idle:1", Extraction({RUNNING: 0.0, WAITING: 0.0, FINISHED: 0.0}, (), ()), float(second), 0.01, 10
        )
    full, idle = store.snapshot(8.9).endpoints
    assert full.work.prefill_seconds(8.9) > 10
    assert idle.work.prefill_seconds(8.9) == 0


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 30), st.floats(0.01, 10)), max_size=40))
def test_a_wait_is_never_negative(steps: list[tuple[float, int, float]]) -> None:
    drain, finished, now = DrainRate(), 0.0, 0.0
    for ended, waiting, passed in steps:
        finished, now = finished + ended, now + passed
        drain.observe(finished, waiting, now)
        wait = drain.wait_seconds(waiting)
        assert wait is None or wait >= 0
