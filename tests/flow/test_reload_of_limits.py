"""A change of the limits loses no request that waits, whatever changes and whenever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.flow.control import BandLimits, FlowLimits
from agent.flow.outcomes import EXPIRED, NO_ENDPOINTS, Dispatched
from agent.flow.request import FlowRequest
from agent.flow.room import Room
from tests.flow.histories import ADDRESSES, Arrives, Driver, Endpoints, Step, arrivals, histories, limits
from tests.flow.test_flow_control import FlowPool, refusal

HOLDS = FlowLimits(empty_ttl=300.0)


@given(histories, st.lists(st.tuples(st.integers(0, 40), limits), min_size=1, max_size=5))
def test_a_change_of_the_limits_has_no_outcome_and_every_request_still_gets_exactly_one(
    history: list[tuple[float, Step]], changes: list[tuple[int, FlowLimits]]
) -> None:
    driver = Driver(changes[0][1])
    control, decided = driver.control, 0
    for number, (passed, step) in enumerate([(0.0, Endpoints(ADDRESSES)), *history]):
        decided += len(driver.take(passed, step))
        for flow_limits in (each for place, each in changes if place == number):
            before = [request.outcome for request in driver.requests]
            waiting, size = control.waiting, control.bytes
            control.apply(flow_limits)
            assert (control.waiting, control.bytes) == (waiting, size)
            assert [request.outcome for request in driver.requests] == before
    decided += len(control.shut_down(driver.now))
    assert decided == len(driver.requests)
    assert all(request.outcome is not None for request in driver.requests)


@given(st.lists(arrivals, min_size=1, max_size=10), limits, st.lists(limits, max_size=3))
def test_what_waits_after_changes_is_dispatched_when_there_is_room(
    requests: list[Arrives], before: FlowLimits, after: list[FlowLimits]
) -> None:
    driver = Driver(before)
    driver.take(0.0, Endpoints(ADDRESSES))
    for arrives in requests:
        driver.take(0.0, arrives)
    waiting = driver.waiting()
    for flow_limits in after:
        driver.control.apply(flow_limits)
    outcomes = [each for address in ADDRESSES for each in driver.control.offer(address, Room(100.0), driver.now)]
    assert {each.request for each in outcomes} == set(waiting)
    assert all(isinstance(each, Dispatched) for each in outcomes)


@pytest.mark.parametrize("after", [FlowLimits(), FlowLimits(band=BandLimits(ttl=1.0)), FlowLimits(hold=1.0)])
def test_what_is_held_for_the_first_endpoint_stays_when_the_pool_does_not_scale_from_zero_any_more(
    after: FlowLimits,
) -> None:
    pool = FlowPool(HOLDS, addresses=())
    held = pool.held(ttl=60.0)
    pool.control.apply(after)
    assert refusal(pool.submit(FlowRequest("a"))).reason == NO_ENDPOINTS
    pool.now = 200.0
    assert pool.control.advance(pool.now) == []
    pool.control.set_endpoints("a", pool.now)
    assert pool.control.replan(pool.now) == []
    assert pool.offer("a").request is held


def test_a_pool_that_scales_from_zero_from_now_on_holds_what_arrives() -> None:
    pool = FlowPool(addresses=())
    assert refusal(pool.submit(FlowRequest("a"))).reason == NO_ENDPOINTS
    pool.control.apply(HOLDS)
    held = pool.held()
    pool.now = 299.0
    assert pool.control.advance(pool.now) == []
    pool.now = 300.0
    assert refusal(pool.control.advance(pool.now)).request is held


def test_a_new_ttl_is_that_of_requests_that_arrive_from_then_on() -> None:
    pool = FlowPool()
    old = pool.held()
    pool.control.apply(FlowLimits(band=BandLimits(ttl=5.0)))
    new = pool.held()
    first, second = refusal(pool.control.advance(5.0)), refusal(pool.control.advance(60.0))
    assert (first.request, first.reason) == (new, EXPIRED)
    assert (second.request, second.reason) == (old, EXPIRED)
