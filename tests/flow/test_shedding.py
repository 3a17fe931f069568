"""How likely a request is shed, when its client may come back, and the rate by which both are computed."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.flow.dispatch_rate import UNKNOWN, DispatchRate
from agent.flow.shedding import retry_after, shed_probability

waits = st.one_of(st.floats(0, 1e6), st.just(math.inf))


@given(waits, waits, st.floats(0, 1))
def test_a_probability_is_one_and_grows_with_the_wait(wait: float, longer: float, start: float) -> None:
    wait, longer = sorted((wait, longer))
    first, second = shed_probability(wait, 60.0, start), shed_probability(longer, 60.0, start)
    assert 0 <= first <= second <= 1


def test_it_is_0_at_the_configured_part_of_the_ttl_and_1_at_the_ttl() -> None:
    assert [shed_probability(wait, 60.0, 0.5) for wait in (0.0, 30.0, 45.0, 60.0, 99.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("wait", "ttl", "start", "expected"),
    [
        (0.0, 0.0, 0.5, 0.0),
        (1.0, 0.0, 0.5, 1.0),
        (math.inf, math.inf, 0.5, 0.0),
        (math.inf, 60.0, 0.5, 1.0),
        (59.0, 60.0, 1.0, 0.0),
        (60.0, 60.0, 1.0, 1.0),
    ],
)
def test_a_ttl_of_0_or_none_and_an_infinite_wait(wait: float, ttl: float, start: float, expected: float) -> None:
    assert shed_probability(wait, ttl, start) == expected


@given(waits, st.floats(0, 1))
def test_a_client_comes_back_after_1_to_120_seconds(wait: float, draw: float) -> None:
    assert 1 <= retry_after(wait, draw) <= 120


def test_clients_refused_together_come_back_spread_around_the_wait() -> None:
    assert [retry_after(40.0, draw) for draw in (0.0, 0.5, 1.0)] == [30, 40, 50]
    assert len({retry_after(1e9, draw / 10) for draw in range(11)}) > 8


def test_a_rate_counts_time_only_while_something_waits() -> None:
    rate = DispatchRate()
    assert rate.per_second(5.0, 100.0) == UNKNOWN
    rate.start(100.0)
    for second in range(1, 6):
        rate.dispatched(20, 100.0 + second)
    rate.stop(105.0)
    at_once = rate.per_second(0.0, 105.0)
    assert at_once == pytest.approx(20.0, rel=0.05)
    assert rate.per_second(0.0, 1e6) == at_once
    rate.start(1e6)
    assert rate.per_second(0.0, 1e6 + 60.0) < 5.0


def test_a_backlog_that_does_not_move_has_a_falling_rate_above_0() -> None:
    rate = DispatchRate()
    rate.start(0.0)
    rates = [rate.per_second(10.0, float(second)) for second in range(1, 600)]
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert min(rates) > 0
