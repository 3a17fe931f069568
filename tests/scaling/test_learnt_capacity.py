"""The capacity of a replica is learnt while it is saturated, and is an envelope."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.envelope import FALL_SECONDS, Envelope, largest
from agent.scaling.learnt_capacity import (
    DECLARED,
    GAP_SECONDS,
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


def together(*replicas: LearntCapacity) -> None:
    """Each replica gets what every other one has learnt."""
    own = {str(place): each.own for place, each in enumerate(replicas)}
    for place, each in enumerate(replicas):
        each.set_peers({name: found for name, found in own.items() if found is not None and name != str(place)})


def test_a_capacity_that_one_replica_has_learnt_is_that_of_the_other():
    a, b = LearntCapacity(12.0), LearntCapacity(12.0)
    a.observe([9.0], 1.0, 5.0)
    together(a, b)
    assert a.capacity() == b.capacity() == Capacity(9.0, LEARNT, 5.0)


def test_the_larger_of_two_capacities_counts_and_falls_towards_one_that_is_learnt_later():
    a, b = LearntCapacity(), LearntCapacity()
    a.observe([10.0], 1.0, 0.0)
    b.observe([6.0], 1.0, 0.0)
    together(a, b)
    assert a.capacity().requests_per_second == b.capacity().requests_per_second == 10.0
    b.observe([6.0], 1.0, FALL_SECONDS)
    together(a, b)
    assert a.capacity() == b.capacity() == Capacity(8.0, LEARNT, FALL_SECONDS)


def test_what_a_replica_has_learnt_stays_after_it_has_gone_and_reaches_the_next_one():
    a, b, later = LearntCapacity(), LearntCapacity(), LearntCapacity()
    a.observe([10.0], 1.0, 0.0)
    together(a, b)
    b.set_peers({})
    assert b.capacity() == Capacity(10.0, LEARNT, 0.0)
    together(b, later)
    assert later.capacity() == Capacity(10.0, LEARNT, 0.0)


def test_a_replica_that_has_learnt_nothing_for_a_while_continues_from_what_the_others_have():
    a, b = LearntCapacity(), LearntCapacity()
    a.observe([20.0], 1.0, 0.0)
    for second in range(1, 3000):
        b.observe([5.0], 1.0, float(second))
    together(a, b)
    known = a.capacity().requests_per_second
    assert known is not None
    assert known < 6.0
    a.observe([5.0], 1.0, 2999.0 + GAP_SECONDS)
    assert a.own is not None
    assert a.own.value <= known  # not 20, which was true long ago


ENVELOPES = st.builds(Envelope, st.floats(1e-3, 1e5), st.floats(0, 1e5))


@given(st.lists(ENVELOPES, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_largest_envelope_does_not_depend_on_the_order_and_is_one_of_their_range(envelopes, random):
    found = largest(envelopes)
    shuffled = list(envelopes)
    random.shuffle(shuffled)
    assert found == largest(shuffled)
    assert found is not None
    assert found.at == max(each.at for each in envelopes)
    newest = max(each.value for each in envelopes if each.at == found.at)
    assert newest <= found.value <= max(each.value for each in envelopes)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(("both", "first", "second", "cut", "restart")),
        st.floats(0.1, 100.0),  # requests per second of a saturated replica
        st.floats(0.1, 700.0),  # seconds
    ),
    max_size=40,
)


@given(ACTIONS)
def test_two_replicas_differ_by_no_more_than_an_envelope_moves_since_the_last_exchange(actions):
    replicas = [LearntCapacity(), LearntCapacity()]
    now = 0.0
    for what, sample, seconds in actions:
        now += seconds
        agreed = replicas[0].capacity().requests_per_second
        before = [each.own.value for each in replicas if each.own is not None]
        if what == "cut":  # silent for a while: each goes on with what the other had learnt
            for each in replicas:
                each.set_peers({})
        elif what == "restart":
            replicas[1] = LearntCapacity()
            replicas[0].set_peers({})
        else:
            for place, name in enumerate(("first", "second")):
                replicas[place].observe([sample] if what in {"both", name} else [], seconds, now)
            first, second = (each.capacity().requests_per_second for each in replicas)
            if agreed is not None and first is not None and second is not None:
                values = (*before, agreed, sample)
                moved = (max(values) - min(values)) * (1 - 0.5 ** (seconds / RISE_SECONDS))
                assert abs(first - second) <= moved + 1e-9
        together(*replicas)
        assert replicas[0].capacity() == replicas[1].capacity()
