"""A queue that something else than prefill holds up: its pace, and that the work ahead follows it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines.mapping import Extraction
from agent.signals import FINISHED, RUNNING, WAITING
from agent.state.inflight import HELD_UP_WAITING, InFlight
from agent.state.pace import QueuePace
from agent.state.rate import RateLimits
from agent.state.store import RoutingStore


def test_before_a_queue_was_seen_for_a_while_nobody_knows_its_wait() -> None:
    pace = QueuePace()
    assert pace.wait_seconds(5) is None
    pace.observe(0, 5, 0.0)
    assert pace.wait_seconds(5) is None


def test_the_wait_is_the_length_over_the_rate_at_which_requests_end() -> None:
    pace = QueuePace()
    for second in range(600):
        pace.observe(2.0 * second, 8, float(second))
    assert pace.wait_seconds(8) == pytest.approx(4.0, rel=0.05)


def test_a_queue_that_stands_still_waits_ever_longer() -> None:
    pace, waits = QueuePace(), list[float | None]()
    for second in range(10):
        pace.observe(7, 4, float(second))
        waits.append(pace.wait_seconds(4))
    assert waits[:5] == [None] * 5
    known = [wait for wait in waits if wait is not None]
    assert len(known) >= 3
    assert known == sorted(known)
    assert known[-1] > 20


def test_a_time_without_a_queue_teaches_nothing() -> None:
    pace = QueuePace()
    for second in range(100):
        pace.observe(float(second), second % 2 * 5, float(second))
    assert pace.wait_seconds(5) is None


def test_a_new_server_starts_from_nothing() -> None:
    pace = QueuePace()
    for second in range(10):
        pace.observe(100.0 + second, 5, float(second))
    pace.observe(1, 5, 10.0)
    assert pace.wait_seconds(5) is None


def test_a_queue_that_prefill_explains_leaves_the_line_as_it_is() -> None:
    work = InFlight(1000.0)
    work.start(1, 3000, 0.0)
    work.hold(8.0, 10, 0.0, 0.0)
    assert work.busy_until == 3.0


def test_a_queue_that_prefill_does_not_explain_is_the_work_ahead_until_a_page_says_otherwise() -> None:
    work = InFlight(1000.0)
    work.start(1, 100, 0.0)
    work.hold(20.0, 10, 1.0, 1.2)
    assert work.busy_until == 21.0
    work.start(2, 100, 2.0)
    assert work.busy_until == 23.0
    work.hold(20.0, HELD_UP_WAITING - 1, 3.0, 3.0)
    assert work.busy_until < 4.0


def test_a_server_full_of_long_answers_is_seen_as_busy_though_its_prefill_is_done() -> None:
    store = RoutingStore("pool", stale_after=3.0, rate=RateLimits(fixed=10_000.0))
    store.set_endpoints({"full:1": "vllm", "idle:1": "vllm"}, 0.0)
    for ticket in range(20):
        store.started("full:1", 100, 0, 0.01 * ticket)
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
    pace, finished, now = QueuePace(), 0.0, 0.0
    for ended, waiting, passed in steps:
        finished, now = finished + ended, now + passed
        pace.observe(finished, waiting, now)
        wait = pace.wait_seconds(waiting)
        assert wait is None or wait >= 0
