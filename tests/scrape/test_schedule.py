"""Due times: spread over the interval, on a grid, with back-off after failures."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scrape.schedule import (
    MAX_FIRST_SCRAPES_PER_SECOND,
    MAX_RETRY_SECONDS,
    StartupLimiter,
    first_due,
    next_due,
    phase,
    retry_due,
)

INTERVALS = st.floats(0.05, 60)
TIMES = st.floats(0, 1e6)


@pytest.mark.parametrize("pattern", ["10.0.{a}.{b}:8000", "127.0.0.1:{n}", "vllm-{n}.pool.svc:8000"])
def test_ten_thousand_addresses_are_spread_evenly_over_the_interval(pattern: str) -> None:
    slots = [0] * 100
    for n in range(10_000):
        slots[int(phase(pattern.format(a=n // 250, b=n % 250, n=n)) * 100)] += 1
    # With a uniform random phase each of 100 slots has 60 to 140 of them, except once in ten thousand runs.
    assert min(slots) > 55
    assert max(slots) < 150


@given(address=st.text(min_size=1, max_size=20), interval=INTERVALS, now=TIMES)
def test_the_first_due_time_is_within_one_interval_and_has_the_phase_of_the_address(
    address: str, interval: float, now: float
) -> None:
    due = first_due(address, interval, now)
    assert now <= due <= now + interval * (1 + 1e-6)
    later = first_due(address, interval, due + interval / 2)
    assert later == pytest.approx(due + interval, rel=1e-9)


@given(arrivals=st.lists(st.floats(0, 10), min_size=1, max_size=300))
def test_a_new_endpoint_is_scraped_at_once_and_many_are_spread(arrivals: list[float]) -> None:
    limiter = StartupLimiter()
    found = [(now, limiter.reserve(now)) for now in sorted(arrivals)]
    assert found[0][0] == found[0][1]
    for place_in_row, (now, at) in enumerate(found):
        assert now <= at <= now + place_in_row / MAX_FIRST_SCRAPES_PER_SECOND + 1e-9
    times = [at for _, at in found]
    assert all(later - earlier >= 1 / MAX_FIRST_SCRAPES_PER_SECOND - 1e-9 for earlier, later in pairwise(times))


@given(due=TIMES, interval=INTERVALS, late=st.floats(0, 1000))
def test_missed_slots_are_skipped_and_never_caught_up(due: float, interval: float, late: float) -> None:
    now = due + late
    following = next_due(due, interval, now)
    assert following > now or following == pytest.approx(now, rel=1e-9)
    assert following <= now + interval * (1 + 1e-6)
    steps = (following - due) / interval
    assert steps == pytest.approx(round(steps), abs=1e-3)


@given(address=st.text(min_size=1, max_size=20), failures=st.integers(1, 1000), interval=INTERVALS, now=TIMES)
def test_the_wait_for_a_failed_endpoint_doubles_with_each_failure_up_to_its_bound(
    address: str, failures: int, interval: float, now: float
) -> None:
    wait = retry_due(address, failures, interval, now) - now
    longest = min(interval * 2.0 ** min(failures - 1, 30), max(interval, MAX_RETRY_SECONDS))
    assert 0.75 * longest - 1e-6 <= wait <= longest + 1e-6


@given(subnet=st.integers(0, 255), failures=st.integers(1, 20), interval=INTERVALS)
def test_the_retries_of_a_fleet_that_failed_at_once_are_spread(subnet: int, failures: int, interval: float) -> None:
    """No tenth of the time over which they are spread has a quarter of them, for any number of failures."""
    waits = [retry_due(f"10.0.{subnet}.{n}:8000", failures, interval, 0.0) for n in range(200)]
    longest = min(interval * 2.0 ** min(failures - 1, 30), max(interval, MAX_RETRY_SECONDS))
    tenths = [int((longest - wait) / (longest / 4) * 10) for wait in waits]
    assert max(tenths.count(tenth) for tenth in range(10)) < 50
