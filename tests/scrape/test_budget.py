"""The budget of scrapes: kept as long as readings stay fresh, with shorter intervals for busy endpoints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scrape.budget import Bounds, Intervals, RateLimiter, adjusted_rate, share

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
def test_every_interval_is_within_bounds_and_busy_endpoints_have_the_shorter_one(
    busy: int, idle: int, per_second: float, bounds: Bounds
) -> None:
    found = share(busy, idle, per_second, bounds)
    slack = 1 + 1e-9
    assert bounds.shortest <= found.busy <= found.idle * slack <= bounds.longest * slack * slack


@given(busy=COUNTS, idle=COUNTS, per_second=RATES, bounds=BOUNDS)
def test_the_whole_budget_is_used_while_an_interval_is_longer_than_configured(
    busy: int, idle: int, per_second: float, bounds: Bounds
) -> None:
    found = share(busy, idle, per_second, bounds)
    extended = (busy and found.busy > bounds.shortest) or (idle and found.idle > bounds.shortest)
    if extended:
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
def test_the_intervals_of_idle_endpoints_are_extended_first(
    busy: int, idle: int, per_second: float, found: tuple[float, float]
) -> None:
    shared = share(busy, idle, per_second, Bounds(1.0, 10.0))
    assert shared.busy == pytest.approx(found[0])
    if idle:
        assert shared.idle == pytest.approx(found[1])


@given(
    per_second=st.floats(1, 1e4), used=st.floats(0, 8), cores=st.floats(0.01, 4), minimum=st.floats(0.1, 100),
    maximum=st.floats(100, 1e5),
)  # fmt: skip
def test_a_budget_of_cpu_moves_the_right_way_and_stays_between_its_bounds(
    per_second: float, used: float, cores: float, minimum: float, maximum: float
) -> None:
    found = adjusted_rate(per_second, used, cores, minimum, maximum)
    assert minimum <= found <= maximum
    if used > cores and per_second >= minimum:
        assert found <= max(minimum, min(per_second, maximum))
    if used < cores and per_second <= maximum:
        assert found >= min(maximum, max(per_second, minimum))


@given(beside=st.floats(0, 0.09), each=st.floats(1e-5, 1e-3), start=st.floats(10, 20_000))
def test_the_rate_converges_to_a_budget_of_cpu(beside: float, each: float, start: float) -> None:
    """A scrape costs `each` seconds of CPU time, other work `beside` cores; the budget is 0.1 cores."""
    per_second = start
    for _ in range(120):
        per_second = adjusted_rate(per_second, beside + per_second * each, 0.1, 1.0, 20_000.0)
    assert per_second == pytest.approx(max(1.0, min(20_000.0, (0.1 - beside) / each)), rel=0.05)


@given(per_second=st.floats(0.5, 1000), arrivals=st.lists(st.floats(0, 20), min_size=1, max_size=200))
def test_no_span_of_time_has_more_scrapes_than_the_rate(per_second: float, arrivals: list[float]) -> None:
    limiter = RateLimiter(per_second, max_gap=1e6)
    times = []
    for now in sorted(arrivals):
        at = limiter.reserve(now, now)
        assert at >= now
        times.append(at)
    for first, begun in enumerate(times):
        for last in range(first, len(times)):
            assert last - first <= (times[last] - begun) * per_second + 1e-6
    # The n-th one waits for at most n others.
    assert all(
        at <= now + place / per_second + 1e-6
        for place, (now, at) in enumerate(zip(sorted(arrivals), times, strict=True))
    )
    assert limiter.admitted == len(arrivals)


@given(
    per_second=st.floats(0.5, 1000),
    max_gap=st.floats(0.1, 10),
    arrivals=st.lists(st.tuples(st.floats(0, 20), st.floats(0, 5)), min_size=1, max_size=200),
)
def test_no_scrape_waits_longer_than_the_maximum_gap(
    per_second: float, max_gap: float, arrivals: list[tuple[float, float]]
) -> None:
    limiter = RateLimiter(per_second, max_gap)
    for now, since in sorted(arrivals):
        last = now - since
        assert now <= limiter.reserve(now, last) <= max(now, last + max_gap)


def test_an_overloaded_limiter_recovers_soon() -> None:
    limiter = RateLimiter(1.0, max_gap=2.0)
    for _ in range(1000):
        limiter.reserve(0.0, -2.0)
    assert limiter.reserve(0.0, float("inf")) <= 2.0


def test_idle_endpoints_alone_share_the_whole_budget() -> None:
    assert share(0, 40, 20.0, Bounds(1.0, 10.0)) == Intervals(1.0, 2.0)
