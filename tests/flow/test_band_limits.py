"""What the limits of a band decide: the order in a flow, whether callers share one, and the limits of negative bands.

The random histories of `test_reference.py` have all of them; here are single steps, and changes of the limits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.flow.control import BandLimits, FlowLimits
from agent.flow.flow_names import DEFAULT_FLOW, ONE_FLOW, FlowNames
from agent.flow.ordering import EARLIEST_DEADLINE, FIRST_COME, ORDERINGS, WANTED_TOKEN
from agent.flow.outcomes import DISPLACED
from agent.flow.request import FlowRequest
from tests.flow.test_flow_control import FlowPool, refusal

# The wanted first token and the TTL of requests that arrive in this order.
WANTED_AND_TTL = ((None, 50.0), (20.0, 60.0), (None, 10.0), (15.0, 12.0))
ORDER = {FIRST_COME: [0, 1, 2, 3], EARLIEST_DEADLINE: [2, 3, 1, 0], WANTED_TOKEN: [3, 1, 0, 2]}


def arrivals(pool: FlowPool) -> list[FlowRequest]:
    requests = [
        FlowRequest("a", deadline=None if wanted is None else pool.now + wanted, ttl=ttl)
        for wanted, ttl in WANTED_AND_TTL
    ]
    for request in requests:
        assert pool.submit(request) == []
    return requests


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_a_flow_leaves_in_the_order_of_its_band(ordering: str) -> None:
    pool = FlowPool(FlowLimits(band=BandLimits(ordering=ordering)))
    requests = arrivals(pool)
    assert [pool.offer("a").request for _ in requests] == [requests[place] for place in ORDER[ordering]]


@pytest.mark.parametrize("before", ORDERINGS)
@pytest.mark.parametrize("after", ORDERINGS)
def test_a_reload_of_the_order_applies_to_what_waits_and_loses_nothing(before: str, after: str) -> None:
    pool = FlowPool(FlowLimits(band=BandLimits(ordering=before)))
    requests = arrivals(pool)
    pool.control.apply(FlowLimits(band=BandLimits(ordering=after)))
    assert pool.control.waiting == len(requests)
    assert [pool.offer("a").request for _ in requests] == [requests[place] for place in ORDER[after]]
    assert pool.control.waiting == 0


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.floats(-50, 50)), st.floats(1, 50)), min_size=1, max_size=12),
    st.lists(st.sampled_from(ORDERINGS), min_size=2, max_size=4),
)
def test_whatever_orders_were_applied_a_flow_leaves_in_the_last_one(
    requests: list[tuple[float | None, float]], orderings: list[str]
) -> None:
    pool = FlowPool(FlowLimits(band=BandLimits(ordering=orderings[0])), addresses="a")
    held = [FlowRequest("a", deadline=wanted, ttl=ttl) for wanted, ttl in requests]
    for request in held:
        assert pool.submit(request) == []
    for ordering in orderings[1:]:
        pool.control.apply(FlowLimits(band=BandLimits(ordering=ordering)))

    def key(place: int) -> tuple[float, int]:
        wanted, ttl = requests[place]
        token = math.inf if wanted is None else wanted
        return {FIRST_COME: 0.0, WANTED_TOKEN: token, EARLIEST_DEADLINE: min(token, ttl)}[orderings[-1]], place

    left = [pool.offer("a").request for _ in held]
    assert left == [held[place] for place in sorted(range(len(held)), key=key)]


def test_callers_that_share_a_flow_leave_in_one_order_and_others_take_turns() -> None:
    for by_caller, order in ((False, [0, 1, 2, 3]), (True, [0, 3, 1, 2])):
        pool = FlowPool(FlowLimits(band=BandLimits(by_caller=by_caller), quantum=10))
        held = [pool.held(flow=flow) for flow in ("x", "x", "x", "y")]
        names = {request.flow_name for request in held}
        assert names == ({"x", "y"} if by_caller else {ONE_FLOW})
        assert [pool.offer("a").request for _ in held] == [held[place] for place in order]


def test_a_caller_that_takes_the_name_of_the_shared_flow_has_no_flow_of_its_own() -> None:
    names = FlowNames(1)
    assert names.take(ONE_FLOW) == ONE_FLOW
    assert len(names) == 0


def test_a_reload_of_the_fairness_applies_to_what_arrives_and_loses_nothing() -> None:
    pool = FlowPool()
    held = [pool.held(flow="x"), pool.held(flow="y")]
    pool.control.apply(FlowLimits(band=BandLimits(by_caller=False)))
    late = pool.held(flow="x")
    assert [request.flow_name for request in (*held, late)] == ["x", "y", ONE_FLOW]
    assert {pool.offer("a").request for _ in range(3)} == {*held, late}
    pool.control.apply(FlowLimits())
    assert pool.held().flow_name == DEFAULT_FLOW


def test_negative_bands_have_the_limits_of_their_own_list_then_those_of_negative_ones_then_those_of_all() -> None:
    all_of, negative, own = BandLimits(ttl=1.0), BandLimits(ttl=2.0), BandLimits(ttl=3.0)
    limits = FlowLimits(band=all_of, negative=negative, bands={-2: own})
    assert [limits.of(priority) for priority in (0, 7, -1, -2, -3)] == [all_of, all_of, negative, own, negative]
    assert FlowLimits(band=all_of, bands={-2: own}).of(-1) == all_of


def test_a_full_negative_band_refuses_its_own_and_no_other() -> None:
    pool = FlowPool(FlowLimits(negative=BandLimits(max_requests=1)), draw=1.0)
    pool.held(priority=-1)
    assert refusal(pool.submit(FlowRequest("a", priority=-1))).reason == DISPLACED
    pool.held(priority=-2)
    pool.held(priority=0)
    assert pool.control.waiting == 3
