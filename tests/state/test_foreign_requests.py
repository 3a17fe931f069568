"""Requests that the agent did not send, as the routing state shows them: from which pages, and for how long."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from agent.engines.mapping import Extraction
from agent.signals import (
    FINISHED,
    GENERATION_TOKENS,
    PREFILL_SECONDS,
    PREFILLS,
    PREFIX_HITS,
    PROMPT_TOKENS,
    RUNNING,
    SLOTS_USAGE,
    START_TIME,
    WAITING,
    Value,
)
from agent.state.drain_rate import PRIOR_RESPONSE_SECONDS
from agent.state.prefill_rate import RateLimits
from agent.state.snapshot import Work
from agent.state.store import RoutingStore

FULL: Mapping[str, Value] = {RUNNING: 8.0, WAITING: 3.0, FINISHED: 0.0, START_TIME: 100.0}
STALE_AFTER = 3.0


class OneServer:
    """A store with one endpoint, whose pages are read as soon as they are requested."""

    def __init__(self) -> None:
        self.store = RoutingStore("pool", stale_after=STALE_AFTER, rate=RateLimits(fixed=10_000.0))
        self.store.set_endpoints({"a:1": "vllm"}, 0.0)

    def page(self, at: float, values: Mapping[str, Value], took: float = 0.0) -> None:
        self.store.observed("a:1", Extraction(dict(values), (), ()), at, took, 100)

    def work(self, now: float) -> Work:
        (view,) = self.store.snapshot(now).endpoints
        return view.work


def test_the_first_page_shows_them_and_a_wait_that_is_not_zero() -> None:
    server = OneServer()
    server.page(1.0, FULL)
    work = server.work(1.0)
    assert (work.requests, work.foreign, work.load) == (0, 11.0, 11.0)
    assert work.queue_seconds == 4 * PRIOR_RESPONSE_SECONDS / 8
    assert work.prefill_seconds(1.0) == work.queue_seconds


def test_the_agents_own_requests_are_not_counted_twice() -> None:
    server = OneServer()
    for number in range(5):
        server.store.started("a:1", 100, 0, 0.1 * number)
    server.page(1.0, FULL)
    server.store.started("a:1", 100, 0, 1.5)
    work = server.work(1.5)
    assert (work.requests, work.foreign, work.load) == (6, 6.0, 12.0)


def test_requests_that_end_while_a_slow_page_is_read_are_the_agents_own() -> None:
    server = OneServer()
    ids = [server.store.started("a:1", 100, 0, 0.1) for _ in range(8)]
    for work_id in ids:
        server.store.ended(work_id, 1.5)
    server.page(1.0, {**FULL, RUNNING: 8.0, WAITING: 0.0}, took=1.0)
    assert (server.work(2.0).requests, server.work(2.0).foreign) == (0, 0.0)


def test_they_are_not_counted_any_more_when_the_page_that_shows_them_is_stale() -> None:
    server = OneServer()
    server.page(1.0, FULL)
    work_id = server.store.started("a:1", 100, 0, 1.5)
    assert server.work(1.0 + STALE_AFTER - 0.01).foreign == 11.0
    work = server.work(1.0 + STALE_AFTER)
    assert (work.requests, work.foreign, work.queue_seconds, work.corrected) == (1, 0.0, 0.0, False)
    server.store.ended(work_id, 5.0)
    assert server.work(5.0).decoding == 0.0


def test_a_page_without_the_queue_keeps_what_an_older_one_has_shown_until_that_is_stale() -> None:
    server = OneServer()
    server.page(1.0, FULL)
    server.page(2.0, {RUNNING: 1.0, START_TIME: 100.0})
    assert (server.work(2.0).foreign, server.work(2.0).queue_seconds > 0) == (11.0, True)
    server.page(3.9, {RUNNING: 1.0, START_TIME: 100.0})
    assert server.work(1.0 + STALE_AFTER).foreign == 0.0


def test_a_server_that_never_reports_its_queue_has_its_running_requests() -> None:
    server = OneServer()
    server.page(1.0, {RUNNING: 8.0})
    assert (server.work(1.0).foreign, server.work(1.0).corrected) == (8.0, False)


def test_a_restarted_server_has_none_of_the_old_ones() -> None:
    server = OneServer()
    server.page(1.0, FULL)
    server.page(2.0, {**FULL, RUNNING: 0.0, WAITING: 0.0, START_TIME: 200.0})
    assert (server.work(2.0).foreign, server.work(2.0).queue_seconds) == (0.0, 0.0)


def test_slots_that_are_all_in_use_make_the_next_request_wait() -> None:
    server = OneServer()
    server.page(1.0, {RUNNING: 8.0, WAITING: 0.0, SLOTS_USAGE: 1.0})
    assert server.work(1.0).queue_seconds == PRIOR_RESPONSE_SECONDS / 8
    server.page(2.0, {RUNNING: 6.0, WAITING: 0.0, SLOTS_USAGE: 0.75})
    assert server.work(2.0).queue_seconds == 0.0


def test_those_that_wait_have_the_mean_length_of_the_servers_requests_from_its_first_page_on() -> None:
    server = OneServer()
    counted = {PROMPT_TOKENS: 90_000.0, PREFIX_HITS: 10_000.0, PREFILLS: 40.0, PREFILL_SECONDS: 9.0}
    server.page(1.0, {**FULL, WAITING: 5.0, **counted})
    assert server.work(1.0).prefill_tokens(1.0) == pytest.approx(5 * 2_000)


def test_a_queue_that_drains_is_a_shorter_wait_than_one_that_stands_still() -> None:
    waits = []
    for ended_a_second in (4.0, 0.0):
        server = OneServer()
        for second in range(1, 8):
            moved = {
                FINISHED: ended_a_second * second,
                GENERATION_TOKENS: 100.0 * second,
                PROMPT_TOKENS: 80.0 * second,
                PREFILLS: 4.0 * second,
                PREFILL_SECONDS: 0.1 * second,
            }
            server.page(float(second), {**FULL, **moved})
        waits.append(server.work(7.0).queue_seconds)
    assert waits[0] < 4 * PRIOR_RESPONSE_SECONDS / 8 < waits[1]
    assert waits[0] == pytest.approx(4 / 4.0, rel=0.15)


def test_a_load_report_raises_what_the_last_page_has_shown() -> None:
    server = OneServer()
    server.page(1.0, {**FULL, WAITING: 0.0})
    work_id = server.store.started("a:1", 100, 0, 1.1)
    server.store.reported(work_id, {WAITING: 12.0}, 1.5, 1.55)
    assert server.work(1.6).foreign == 11.0
