"""When an endpoint is due: spread, on a grid, backed off when it is dead."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scrape.schedule import BACKED_OFF_SECONDS, FIRSTS_A_SECOND, Firsts, first_due, next_due, place, retry_due

INTERVALS = st.floats(0.05, 60)
TIMES = st.floats(0, 1e6)


@pytest.mark.parametrize("pattern", ["10.0.{a}.{b}:8000", "127.0.0.1:{n}", "vllm-{n}.pool.svc:8000"])
def test_ten_thousand_addresses_are_spread_evenly_over_the_interval(pattern: str) -> None:
    slots = [0] * 100
    for n in range(10_000):
        slots[int(place(pattern.format(a=n // 250, b=n % 250, n=n)) * 100)] += 1
    # Evenly at random a hundred slots of a hundred hold between 60 and 140 each, but once in ten thousand runs.
    assert min(slots) > 55
    assert max(slots) < 150


@given(address=st.text(min_size=1, max_size=20), interval=INTERVALS, now=TIMES)
def test_the_first_time_is_within_one_interval_and_always_the_same_place(
    address: str, interval: float, now: float
) -> None:
    due = first_due(address, interval, now)
    assert now <= due <= now + interval * (1 + 1e-6)
    later = first_due(address, interval, due + interval / 2)
    assert later == pytest.approx(due + interval, rel=1e-9)


@given(arrivals=st.lists(st.floats(0, 10), min_size=1, max_size=300))
def test_a_new_endpoint_is_asked_at_once_and_many_are_asked_in_a_row(arrivals: list[float]) -> None:
    firsts = Firsts()
    found = [(now, firsts.at(now)) for now in sorted(arrivals)]
    assert found[0][0] == found[0][1]
    for place_in_row, (now, at) in enumerate(found):
        assert now <= at <= now + place_in_row / FIRSTS_A_SECOND + 1e-9
    times = [at for _, at in found]
    assert all(later - earlier >= 1 / FIRSTS_A_SECOND - 1e-9 for earlier, later in pairwise(times))


@given(due=TIMES, interval=INTERVALS, late=st.floats(0, 1000))
def test_slots_that_were_missed_are_skipped_and_never_caught_up(due: float, interval: float, late: float) -> None:
    now = due + late
    following = next_due(due, interval, now)
    assert following > now or following == pytest.approx(now, rel=1e-9)
    assert following <= now + interval * (1 + 1e-6)
    steps = (following - due) / interval
    assert steps == pytest.approx(round(steps), abs=1e-3)


@given(address=st.text(min_size=1, max_size=20), failures=st.integers(1, 1000), interval=INTERVALS, now=TIMES)
def test_the_wait_for_a_dead_endpoint_doubles_with_each_failure_up_to_its_bound(
    address: str, failures: int, interval: float, now: float
) -> None:
    wait = retry_due(address, failures, interval, now) - now
    longest = min(interval * 2.0 ** min(failures - 1, 30), max(interval, BACKED_OFF_SECONDS))
    assert 0.75 * longest - 1e-6 <= wait <= longest + 1e-6


@given(subnet=st.integers(0, 255), failures=st.integers(1, 20), interval=INTERVALS)
def test_a_fleet_that_died_together_is_not_asked_together(subnet: int, failures: int, interval: float) -> None:
    """Not even a tenth of the time over which they are spread has a quarter of them, be it the first time or later."""
    waits = [retry_due(f"10.0.{subnet}.{n}:8000", failures, interval, 0.0) for n in range(200)]
    longest = min(interval * 2.0 ** min(failures - 1, 30), max(interval, BACKED_OFF_SECONDS))
    tenths = [int((longest - wait) / (longest / 4) * 10) for wait in waits]
    assert max(tenths.count(tenth) for tenth in range(10)) < 50
