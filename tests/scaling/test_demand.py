"""The demand is the largest need, and unknown load never lowers it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.arrivals import ExpectedRate
from agent.scaling.demand import (
    COVERAGE,
    FIRST_REPLICA,
    IDLE,
    NEVER_KNOWN,
    PEER_UNKNOWN,
    Demand,
    DemandSettings,
    NoDemand,
    PoolUse,
    decide,
)
from agent.scaling.learnt_capacity import DECLARED, UNKNOWN_CAPACITY, Capacity
from agent.scaling.loading import Loading, LoadingReplicas
from agent.scaling.needs import (
    BACKLOG,
    KV,
    NO_CAPACITY,
    RATE,
    SLOTS,
    ReplicaLoad,
    used,
)

SETTINGS = DemandSettings(target=0.8)
TEN = Capacity(10.0, DECLARED)


def rate(value: float) -> ExpectedRate:
    return ExpectedRate(value, 0.0, 0.0, 0.0, 330.0, value)


def use(**changes) -> PoolUse:
    """Four replicas that are idle."""
    idle = PoolUse(0.0, 4, 4, 4, 0.0, 0.0, 0.0, 0.0, rate(0.0), TEN)
    return idle._replace(**changes)


def demand(**changes) -> Demand:
    found = decide(use(**changes), SETTINGS)
    assert isinstance(found, Demand)
    return found


def test_forty_requests_a_second_at_eighty_per_cent_of_ten_need_five_replicas():
    found = demand(expected=rate(40.0))
    assert found.replicas == pytest.approx(5.0)
    assert found.driver == RATE


def test_the_largest_need_is_the_demand_and_is_named():
    assert demand(expected=rate(16.0), slots=3.0).driver == SLOTS
    assert demand(expected=rate(16.0), kv=3.5).driver == KV
    found = demand(expected=rate(16.0), waiting=9000.0)
    assert found.driver == BACKLOG
    assert found.replicas == pytest.approx(9000 / (10 * 300))


def test_an_idle_pool_needs_nothing():
    found = demand()
    assert (found.replicas, found.driver, found.partial) == (0.0, IDLE, False)


def test_a_backlog_of_ten_minutes_after_a_cold_start_needs_what_drains_it_within_the_horizon():
    found = demand(replicas=1, ready=1, seen=1, waiting=10 * 60 * 10.0)
    assert math.ceil(found.replicas) == 2  # 6,000 requests at 10 a second within 300 s
    assert found.replicas * 10.0 * SETTINGS.horizon == pytest.approx(6000.0)


def test_a_drain_horizon_is_never_shorter_than_the_start_of_a_replica():
    assert DemandSettings(startup_seconds=300.0, drain_seconds=60.0).horizon == 300.0
    assert DemandSettings(startup_seconds=60.0, drain_seconds=300.0).horizon == 300.0


def test_loading_replicas_are_credited_in_the_backlog_and_nowhere_else():
    # two replicas that load for 100 s would have served 2,000 of the 3,000 requests
    load = {"replicas": 6, "waiting": 3000.0, "loading": Loading(2, 200.0)}
    found = demand(**load)
    assert found.replicas == pytest.approx(1000 / 3000)
    assert demand(**load, expected=rate(40.0)).replicas == demand(expected=rate(40.0)).replicas


def test_replicas_load_from_when_they_were_first_seen_and_the_first_is_ready_first():
    loading = LoadingReplicas()
    loading.observe(1, 0.0)
    loading.observe(3, 10.0)
    assert loading.loading(20.0, 300.0) == Loading(3.0, 20.0 + 10.0 + 10.0)
    loading.observe(2, 30.0)
    assert loading.loading(30.0, 300.0) == Loading(2.0, 40.0)
    assert loading.loading(1e6, 300.0) == Loading(2.0, 600.0)


def test_a_replica_with_a_queue_counts_once_in_slots_and_cache():
    full = [ReplicaLoad(1.0, 1.0, 50.0)] * 3
    assert used(full, "slots", 0.8) == 3.0
    assert used(full, "kv", 0.9) == 3.0
    assert used([ReplicaLoad(1.0, None, 0.0)], "slots", 0.8) == pytest.approx(1.25)


def test_a_replica_that_does_not_report_its_slots_counts_like_the_others():
    assert used([ReplicaLoad(0.4, None, 0.0), ReplicaLoad(None, None, 0.0)], "slots", 0.8) == pytest.approx(1.0)
    assert used([ReplicaLoad(None, None, 0.0)], "slots", 0.8) is None


def test_without_a_capacity_rate_and_backlog_are_unknown_and_say_so():
    found = demand(capacity=Capacity(None, UNKNOWN_CAPACITY), waiting=5.0, slots=2.0)
    reasons = {need.name: need.reason for need in found.needs if need.replicas is None}
    assert reasons == {RATE: NO_CAPACITY, BACKLOG: NO_CAPACITY}
    assert found.replicas == 2.0


def test_a_pool_at_zero_has_a_number():
    empty = {"replicas": 0, "ready": 0, "seen": 0, "slots": None, "kv": None, "expected": None}
    assert demand(**empty).replicas == 0.0
    assert demand(**empty, held=1.0).replicas == 1.0
    assert demand(**empty, held=1.0).driver == FIRST_REPLICA
    assert demand(**empty, held=1.0, capacity=Capacity(None, UNKNOWN_CAPACITY)).replicas == 1.0
    assert demand(**empty, held=9000.0).replicas == pytest.approx(3.0)


def test_above_the_floor_what_is_not_seen_counts_like_what_is():
    found = demand(replicas=10, ready=10, seen=8, slots=4.0)
    assert found.replicas == pytest.approx(5.0)
    assert not found.partial


def test_below_the_floor_the_demand_is_what_is_proven_or_the_current_replicas():
    held = demand(replicas=10, ready=10, seen=5, slots=4.0)
    assert (held.replicas, held.driver, held.partial) == (10, COVERAGE, True)
    proven = demand(replicas=10, ready=10, seen=5, slots=12.0)
    assert (proven.replicas, proven.driver, proven.partial) == (12.0, SLOTS, True)


def test_while_a_peer_is_unknown_the_pool_does_not_shrink():
    found = demand(unknown_peers=("10.0.0.2 is silent",))
    assert (found.replicas, found.driver, found.partial) == (4, PEER_UNKNOWN, True)


def test_a_pool_whose_replicas_were_never_known_has_no_number():
    found = decide(use(replicas=None), SETTINGS)
    assert isinstance(found, NoDemand)
    assert found.reason == NEVER_KNOWN


uses = st.builds(
    lambda ready, loading, seen, slots, kv, waiting, held, arrivals, capacity: use(
        replicas=ready + loading,
        ready=ready,
        seen=round(ready * seen),
        slots=slots,
        kv=kv,
        waiting=waiting,
        held=held,
        expected=None if arrivals is None else rate(arrivals),
        capacity=Capacity(capacity, DECLARED if capacity else UNKNOWN_CAPACITY),
        loading=Loading(loading, loading * 50.0),
    ),
    st.integers(0, 50),
    st.integers(0, 20),
    st.floats(0, 1),
    st.none() | st.floats(0, 100),
    st.none() | st.floats(0, 100),
    st.floats(0, 1e5),
    st.floats(0, 1e5),
    st.none() | st.floats(0, 1e4),
    st.none() | st.floats(0.1, 100),
)


@given(uses)
def test_a_demand_is_finite_not_negative_and_has_its_inputs(found):
    result = decide(found, SETTINGS)
    assert isinstance(result, Demand)
    assert math.isfinite(result.replicas)
    assert result.replicas >= 0
    assert result.use is found


@given(uses, st.sampled_from(["waiting", "held", "slots", "kv"]), st.floats(0, 1e4))
def test_more_load_never_needs_fewer_replicas(found, field, more):
    before, value = decide(found, SETTINGS), getattr(found, field)
    if value is None:
        return
    after = decide(found._replace(**{field: value + more}), SETTINGS)
    assert isinstance(before, Demand)
    assert isinstance(after, Demand)
    assert after.replicas >= before.replicas - 1e-9


@given(uses)
def test_below_the_coverage_floor_a_demand_is_never_below_the_current_replicas(found):
    result = decide(found, SETTINGS)
    assert isinstance(result, Demand)
    if found.coverage < SETTINGS.coverage_floor:
        assert result.replicas >= found.replicas
