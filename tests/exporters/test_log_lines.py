"""A failure is logged at once, and then once a minute with its count."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.events.flow import HeldAtZero
from agent.events.process import Reloaded, TaskFailed, WatcherDropped
from agent.events.requests import Refused, StreamBroken
from agent.events.scraping import BudgetExceeded, HealthChanged, ScrapeDone, ScrapeFailed, ServerRestarted
from agent.instruments.event_log import DETAIL_LENGTH, LOGGER, QUIET_SECONDS, Repeats
from agent.instruments.hook import Instruments
from agent.instruments.log_format import write_log
from agent.signals import RefusedValue
from tests.fakes.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = write_log(stream)
    yield stream
    logging.getLogger(LOGGER).removeHandler(handler)


def failed(at: float, endpoint: str = "a:1") -> ScrapeFailed:
    return ScrapeFailed("pool", endpoint, at, 0.1, "timeout", "no answer in 1 s")


def done(at: float, *refused: RefusedValue) -> ScrapeDone:
    return ScrapeDone("pool", "a:1", at, 0.01, 100, (), refused)


def messages(log: io.StringIO) -> list[str]:
    return [line.split(" ", 2)[2].strip() for line in log.getvalue().splitlines()]


def test_a_failing_endpoint_costs_a_line_at_once_and_then_a_line_a_minute(clock, log):
    hook = Instruments(clock)
    for second in range(61):
        hook(done(second + 0.5) if second % 4 == 3 else failed(float(second)))
    assert messages(log) == [
        "pool pool: scrape of a:1 failed: timeout: no answer in 1 s",
        "pool pool: scrape of a:1 failed: timeout: no answer in 1 s (45 of 60 scrapes failed in 60 s)",
    ]


def test_each_endpoint_has_its_own_line(clock, log):
    hook = Instruments(clock)
    hook(failed(0.0, "a:1"))
    hook(failed(0.0, "b:1"))
    assert [line.split()[4] for line in messages(log)] == ["a:1", "b:1"]


def test_repeated_rejections_are_logged_together(clock, log):
    hook = Instruments(clock)
    for _ in range(100):
        hook(Refused("pool", "m", 503, "none_healthy"))
    clock.advance(QUIET_SECONDS)
    hook(Refused("pool", "m", 503, "none_healthy"))
    assert messages(log) == [
        "pool pool: request rejected with 503: none_healthy",
        "pool pool: request rejected with 503: none_healthy (100 times in 60 s)",
    ]


def test_servers_that_share_an_address_cost_a_line_a_minute(clock, log):
    hook = Instruments(clock)
    for _ in range(61):
        hook(ServerRestarted("pool", "a:1", "new_start_time"))
        clock.advance(1.0)
    line = "pool pool: new server at a:1 (new_start_time): the state of the previous one is discarded"
    hint = "; if several servers share this address, list each one by its own address"
    assert messages(log) == [line, f"{line} (60 times in 60 s){hint}"]


def test_each_change_of_state_has_its_line(clock, log):
    hook = Instruments(clock)
    hook(HealthChanged("pool", "a:1", "healthy", "down", "refused"))
    hook(ServerRestarted("pool", "a:1", "new_start_time"))
    hook(Reloaded(ok=True, detail="pool pool: 2 endpoints added"))
    hook(Reloaded(ok=False, detail="line 3: unknown key"))
    hook(TaskFailed("discovery/pool", "it returned", 0.5))
    hook(WatcherDropped("slow"))
    hook(StreamBroken("pool", "protocol", "a body before the headers"))
    hook(done(0.0, RefusedValue("kv_usage_ratio", "not_finite", "NaN")))
    assert messages(log) == [
        "pool pool: a:1 is down (refused), was healthy",
        "pool pool: new server at a:1 (new_start_time): the state of the previous one is discarded",
        "configuration reloaded: pool pool: 2 endpoints added",
        "configuration not reloaded, the old one stays: line 3: unknown key",
        "task discovery/pool failed: it returned; restarting in 0.5 s",
        "client of the admin address dropped: slow",
        "pool pool: ext_proc stream failed: protocol: a body before the headers",
        "pool pool: a:1 reports NaN for kv_usage_ratio: not_finite, value discarded",
    ]


def test_a_change_to_or_from_blind_says_how_much_of_the_pool_is_blind(clock, log, caplog):
    hook = Instruments(clock)
    for number, old, new, reason in (
        (1, "healthy", "blind", "wrong_engine"),
        (2, "healthy", "blind", "status"),
        (1, "blind", "healthy", ""),
        (0, "blind", "down", "refused"),
    ):
        hook(HealthChanged("pool", "a:1", old, new, reason, number, 2))
    blind = "endpoints are blind, picked by requests in flight alone, with gauges withheld"
    assert messages(log) == [
        f"pool pool: a:1 is blind (wrong_engine), was healthy: 1 of 2 {blind}",
        f"pool pool: a:1 is blind (status), was healthy: 2 of 2 {blind}",
        f"pool pool: a:1 is healthy, was blind: 1 of 2 {blind}",
        "pool pool: a:1 is down (refused), was blind: 0 of 2 endpoints are blind",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "INFO", "WARNING"]


def test_text_from_outside_stays_on_one_line_of_bounded_length(clock, log):
    Instruments(clock)(StreamBroken("pool", "protocol", "first\nsecond\x1b[31m " * 10_000))
    (line,) = log.getvalue().splitlines()
    assert len(line) < DETAIL_LENGTH + 200
    assert line.isprintable()


def test_json_lines_carry_the_fields_of_the_event(clock):
    stream = io.StringIO()
    handler = write_log(stream, "json")
    Instruments(clock)(failed(0.0))
    logging.getLogger(LOGGER).removeHandler(handler)
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "igw",
        "message": "pool pool: scrape of a:1 failed: timeout: no answer in 1 s",
        "pool": "pool",
        "endpoint": "a:1",
        "reason": "timeout",
    }


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 30))))
def test_no_failure_is_lost_and_no_kind_gets_two_lines_within_the_quiet_time(steps):
    repeats, now = Repeats(), 0.0
    logged: dict[int, float] = {}
    counted = dict.fromkeys(range(6), 0)
    happened = dict.fromkeys(range(6), 0)
    for kind, pause in steps:
        now += pause
        happened[kind] += 1
        due = repeats.failed(kind, now)
        if due:
            assert now - logged.get(kind, -QUIET_SECONDS) >= QUIET_SECONDS
            logged[kind] = now
            counted[kind] += due[0]
    for kind, count in counted.items():
        assert count <= happened[kind]
        assert (count > 0) is (happened[kind] > 0)


def test_an_exceeded_budget_is_logged_with_the_options_to_raise(clock, log):
    Instruments(clock)(BudgetExceeded("scrapes", 400, 222.2, 200.0))
    assert (
        "400 endpoints need 222 scrapes/s to stay fresh, but scrape.budget.scrapesPerSecond is 200: they stay fresh "
        "and exceed the budget; raise it, or raise state.staleAfter" in log.getvalue()
    )


def test_the_number_of_tracked_kinds_of_failure_is_bounded():
    repeats = Repeats(max_kinds=3)
    assert all(repeats.failed(kind, 0.0) for kind in range(10))
    assert len(repeats._streaks) == 3


def test_a_pool_without_endpoints_that_holds_requests_costs_one_line_a_minute(clock, log):
    hook = Instruments(clock)
    for _ in range(3):
        hook(HeldAtZero("pool", 1))
    assert messages(log) == [
        "pool pool: requests are held for the first endpoint: the pool has none that may be picked"
    ]
