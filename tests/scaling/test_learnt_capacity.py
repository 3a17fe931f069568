"""The capacity of a replica is learnt while it is saturated, and is an envelope."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.learnt_capacity import (
    DECLARED,
    FALL_SECONDS,
    LEARNT,
    RISE_SECONDS,
    SPREAD,
    UNKNOWN_CAPACITY,
    Capacity,
    LearntCapacity,
)


def test_a_pool_that_has_never_served_has_its_declared_capacity():
    assert LearntCapacity(12.0).capacity() == Capacity(12.0, DECLARED)
    assert LearntCapacity().capacity() == Capacity(None, UNKNOWN_CAPACITY)


def test_without_a_saturated_replica_nothing_is_learnt_and_nothing_is_forgotten():
    learnt = LearntCapacity(12.0)
    learnt.observe([], 1.0, 1.0)
    assert learnt.capacity().source == DECLARED
    learnt.observe([10.0], 1.0, 2.0)
    for second in range(3, 90_000, 100):
        learnt.observe([], 100.0, float(second))
    assert learnt.capacity() == Capacity(10.0, LEARNT, 2.0)


def test_the_value_rises_in_half_a_minute_and_falls_in_ten():
    learnt = LearntCapacity()
    learnt.observe([10.0], 1.0, 0.0)
    learnt.observe([20.0], RISE_SECONDS, 30.0)
    assert learnt.capacity().requests_per_second == pytest.approx(15.0)
    learnt.observe([5.0], FALL_SECONDS, 630.0)
    assert learnt.capacity().requests_per_second == pytest.approx(10.0)


def test_a_stuck_replica_teaches_nothing():
    learnt = LearntCapacity()
    learnt.observe([10.0, 11.0], 1.0, 0.0)
    learnt.observe([0.0], 1e6, 1.0)
    assert learnt.capacity().requests_per_second == pytest.approx(10.5)


@given(st.lists(st.tuples(st.lists(st.floats(0, 1e9), max_size=5), st.floats(0, 1e4)), max_size=30))
def test_the_value_stays_within_its_bounds(samples):
    learnt = LearntCapacity(10.0)
    for at, (rates, seconds) in enumerate(samples):
        learnt.observe(rates, seconds, float(at))
    value = learnt.capacity().requests_per_second
    assert value is not None
    assert 10.0 / SPREAD <= value <= 10.0 * SPREAD


def test_what_was_learnt_before_is_kept_until_more_is_learnt():
    learnt = LearntCapacity()
    learnt.restore(8.0, 100.0)
    assert learnt.capacity() == Capacity(8.0, LEARNT, 100.0)
    learnt.restore(4.0, 50.0)
    assert learnt.capacity().requests_per_second == 8.0
