"""The budget of scrapes: kept as long as readings stay fresh, and who is at work comes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scrape.budget import Bounds, Gate, Shared, followed, share

BOUNDS = st.tuples(st.floats(0.05, 10), st.floats(1, 100)).map(lambda pair: Bounds(pair[0], pair[0] * pair[1]))
COUNTS = st.integers(0, 10_000)
RATES = st.floats(0.01, 1e5)


@given(busy=COUNTS, idle=COUNTS, per_second=RATES, bounds=BOUNDS)
def test_the_budget_is_kept_unless_readings_would_grow_stale(
    busy: int, idle: int, per_second: float, bounds: Bounds
) -> None:
    found = share(busy, idle, per_second, bounds)
    if busy + idle <= per_second * bounds.longest:
        assert busy / found.busy + idle / found.idle <= per_second * (1 + 1e-9)
    else:
        assert found == (bounds.longest, bounds.longest)


@given(busy=COUNTS, idle=COUNTS, per_second=RATES, bounds=BOUNDS)
def test_no_interval_is_out_of_bounds_and_who_is_at_work_has_the_shorter_one(
    busy: int, idle: int, per_second: float, bounds: Bounds
) -> None:
    found = share(busy, idle, per_second, bounds)
    slack = 1 + 1e-9
    assert bounds.shortest <= found.busy <= found.idle * slack <= bounds.longest * slack * slack


@given(busy=COUNTS, idle=COUNTS, per_second=RATES, bounds=BOUNDS)
def test_nothing_of_the_budget_is_left_while_anybody_waits_longer_than_configured(
    busy: int, idle: int, per_second: float, bounds: Bounds
) -> None:
    found = share(busy, idle, per_second, bounds)
    asked_less = (busy and found.busy > bounds.shortest) or (idle and found.idle > bounds.shortest)
    if asked_less:
        assert busy / found.busy + idle / found.idle >= per_second * (1 - 1e-6)


@pytest.mark.parametrize(
    ("busy", "idle", "per_second", "found"),
    [
        (10, 90, 100, (1, 1)),
        (10, 90, 55, (1, 2)),
        (10, 90, 20, (1, 9)),
        (10, 90, 14, (2, 10)),
        (100, 0, 50, (2, 1)),
        (10, 90, 5, (10, 10)),
    ],
)
def test_those_that_stand_still_make_room_first(
    busy: int, idle: int, per_second: float, found: tuple[float, float]
) -> None:
    shared = share(busy, idle, per_second, Bounds(1.0, 10.0))
    assert shared.busy == pytest.approx(found[0])
    if idle:
        assert shared.idle == pytest.approx(found[1])


@given(
    per_second=st.floats(1, 1e4), used=st.floats(0, 8), cores=st.floats(0.01, 4), least=st.floats(0.1, 100),
    most=st.floats(100, 1e5),
)  # fmt: skip
def test_a_budget_of_cpu_moves_the_right_way_and_stays_between_its_bounds(
    per_second: float, used: float, cores: float, least: float, most: float
) -> None:
    found = followed(per_second, used, cores, least, most)
    assert least <= found <= most
    if used > cores and per_second >= least:
        assert found <= max(least, min(per_second, most))
    if used < cores and per_second <= most:
        assert found >= min(most, max(per_second, least))


@given(beside=st.floats(0, 0.09), each=st.floats(1e-5, 1e-3), start=st.floats(10, 20_000))
def test_a_budget_of_cpu_is_found_out_within_a_minute(beside: float, each: float, start: float) -> None:
    """A scrape costs `each` seconds of CPU, and the process uses `beside` for other things; it may use 0.1."""
    per_second = start
    for _ in range(120):
        per_second = followed(per_second, beside + per_second * each, 0.1, 1.0, 20_000.0)
    assert per_second == pytest.approx(max(1.0, min(20_000.0, (0.1 - beside) / each)), rel=0.05)


@given(per_second=st.floats(0.5, 1000), arrivals=st.lists(st.floats(0, 20), min_size=1, max_size=200))
def test_no_span_of_time_has_more_scrapes_than_the_gate_allows(per_second: float, arrivals: list[float]) -> None:
    gate = Gate(per_second, latest=1e6)
    times = []
    for now in sorted(arrivals):
        at = gate.at(now, now)
        assert at >= now
        times.append(at)
    for first, begun in enumerate(times):
        for last in range(first, len(times)):
            assert last - first <= (times[last] - begun) * per_second + 1e-6
    # Who comes n-th has at most n before it: nobody waits longer than these take.
    assert all(
        at <= now + place / per_second + 1e-6
        for place, (now, at) in enumerate(zip(sorted(arrivals), times, strict=True))
    )
    assert gate.passed == len(arrivals)


@given(
    per_second=st.floats(0.5, 1000),
    latest=st.floats(0.1, 10),
    arrivals=st.lists(st.tuples(st.floats(0, 20), st.floats(0, 5)), min_size=1, max_size=200),
)
def test_nobody_waits_at_the_gate_until_its_readings_are_stale(
    per_second: float, latest: float, arrivals: list[tuple[float, float]]
) -> None:
    gate = Gate(per_second, latest)
    for now, since in sorted(arrivals):
        last = now - since
        assert now <= gate.at(now, last) <= max(now, last + latest)


def test_a_gate_that_was_asked_for_too_much_is_soon_as_it_was() -> None:
    gate = Gate(1.0, latest=2.0)
    for _ in range(1000):
        gate.at(0.0, -2.0)
    assert gate.at(0.0, float("inf")) <= 2.0


def test_a_fleet_without_a_busy_endpoint_shares_all_of_it() -> None:
    assert share(0, 40, 20.0, Bounds(1.0, 10.0)) == Shared(1.0, 2.0)
