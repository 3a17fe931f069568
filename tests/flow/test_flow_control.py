"""Flow control step by step, and what it does with bad input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from agent.flow.band import KEPT_FLOWS, MAX_PATIENCE_SECONDS
from agent.flow.control import IDLE_PATIENCE, BandLimits, Estimate, FlowControl, FlowLimits
from agent.flow.flow_names import DEFAULT_FLOW, NAME_LENGTH, OTHER_FLOW, FlowNames
from agent.flow.outcomes import (
    CANCELLED,
    DIRECT,
    DISPLACED,
    EXPIRED,
    NO_ENDPOINTS,
    PLANNED,
    SHED,
    SHUTTING_DOWN,
    STOLEN,
    Dispatched,
    Outcome,
    RefusedRequest,
)
from agent.flow.report import report
from agent.flow.request import FlowRequest
from agent.flow.room import Room

WARM, COLD = 0.125, 1.0
ONE = Room(1.0)
DEFAULTS = FlowLimits()


class FlowPool:
    """Flow control of endpoints a and b; the item of a request is the address of the endpoint with its cache."""

    def __init__(self, limits: FlowLimits = DEFAULTS, draw: float = 0.5, addresses: Sequence[str] = "ab") -> None:
        self.control = FlowControl(limits, self.estimate, lambda: draw)
        self.control.set_endpoints(addresses, 0.0)
        self.now = 0.0

    def estimate(self, request: FlowRequest, ahead: Sequence[float]) -> Estimate:
        own = [WARM if address == request.item else COLD for address in self.control.addresses]
        return Estimate([before + each for before, each in zip(ahead, own, strict=True)], own)

    def submit(self, request: FlowRequest) -> list[Outcome]:
        return self.control.submit(request, self.now)

    def held(self, warm: str = "a", priority: int = 0, flow: str = "", ttl: float | None = None) -> FlowRequest:
        request = FlowRequest(warm, priority=priority, flow=flow, tokens=10, prompt_tokens=5, size=1, ttl=ttl)
        assert self.submit(request) == []
        return request

    def offer(self, address: str, room: Room = ONE) -> Dispatched:
        (outcome,) = self.control.offer(address, room, self.now)
        assert isinstance(outcome, Dispatched)
        return outcome


def refusal(outcomes: list[Outcome]) -> RefusedRequest:
    (outcome,) = outcomes
    assert isinstance(outcome, RefusedRequest)
    return outcome


def test_an_unsaturated_pool_passes_a_request_to_the_cheapest_endpoint_with_room() -> None:
    pool = FlowPool()
    for address in "ab":
        assert pool.control.offer(address, Room(2.0), 0.0) == []
    for warm in "ab":
        request = FlowRequest(warm)
        assert pool.submit(request) == [Dispatched(request, warm, 0.0, DIRECT)]
    assert pool.control.waiting == 0


def test_a_request_for_a_full_endpoint_goes_to_another_one_that_has_room() -> None:
    pool = FlowPool()
    pool.control.offer("b", ONE, 0.0)
    (outcome,) = pool.submit(FlowRequest("a"))
    assert isinstance(outcome, Dispatched)
    assert outcome.endpoint == "b"


def test_a_request_waits_for_the_endpoint_with_its_cache() -> None:
    pool = FlowPool()
    of_b, of_a = pool.held("b"), pool.held("a")
    pool.now = 3.0
    assert pool.offer("a") == Dispatched(of_a, "a", 3.0, PLANNED)
    assert pool.offer("b") == Dispatched(of_b, "b", 3.0, PLANNED)


def test_an_endpoint_without_planned_work_steals_the_request_that_costs_least_there() -> None:
    costs = {"first": (0.25, 1.0), "second": (0.25, 0.5), "third": (0.25, 0.75)}
    control = FlowControl(FlowLimits(), lambda request, _: Estimate((0.0, 9.0), costs[str(request.item)]), lambda: 0.5)
    control.set_endpoints("ab", 0.0)
    for name in costs:
        assert control.submit(FlowRequest(name), 0.0) == []
    (outcome,) = control.offer("b", ONE, 3.0)
    assert isinstance(outcome, Dispatched)
    assert (outcome.request.item, outcome.how) == ("second", STOLEN)


def test_a_request_waits_for_its_cache_for_four_times_the_work_that_it_saves_though_another_endpoint_is_idle() -> None:
    pool = FlowPool()
    request = pool.held("a")
    assert pool.control.offer("b", ONE, 0.0) == []
    until = IDLE_PATIENCE * (COLD - WARM)
    assert pool.control.next_due() == until
    assert pool.control.advance(until - 0.125) == []
    assert pool.control.advance(until) == [Dispatched(request, "b", until, STOLEN)]


def test_a_request_waits_for_its_cache_for_a_bounded_time() -> None:
    pool = FlowPool()
    pool.control = FlowControl(FlowLimits(), lambda *_: Estimate((0.0, 100.0), (0.0, 100.0)), lambda: 0.5)
    pool.control.set_endpoints("ab", 0.0)
    pool.held("a")
    pool.control.offer("b", ONE, 0.0)
    assert pool.control.next_due() == MAX_PATIENCE_SECONDS


@pytest.mark.parametrize("patience", [0.0, 2.0])
def test_a_configured_patience_below_four_holds_for_an_idle_endpoint_too(patience: float) -> None:
    pool = FlowPool(FlowLimits(patience=patience))
    pool.held("a")
    pool.now = patience * (COLD - WARM)
    assert pool.offer("b").how == STOLEN


def test_a_request_that_has_as_much_of_its_cache_elsewhere_is_stolen_at_once() -> None:
    pool = FlowPool()
    request = pool.held("")
    assert request.endpoint == "a"
    assert pool.offer("b") == Dispatched(request, "b", 0.0, STOLEN)


def test_what_waits_for_its_cache_keeps_no_other_request_of_its_caller_from_an_idle_endpoint() -> None:
    pool = FlowPool()
    pool.held("a")
    pool.control.offer("b", ONE, 0.0)
    request = FlowRequest("b")
    assert pool.submit(request) == [Dispatched(request, "b", 0.0, DIRECT)]
    pool.control.offer("b", ONE, 0.0)
    request = FlowRequest("")
    assert pool.submit(request) == [Dispatched(request, "b", 0.0, DIRECT)]
    assert pool.control.waiting == 1


@pytest.mark.parametrize("limits", [FlowLimits(max_requests=1), FlowLimits(hold=0.0), FlowLimits(shed_from=0.0)])
def test_a_request_that_may_not_wait_takes_an_endpoint_with_room_although_it_has_no_cache_there(
    limits: FlowLimits,
) -> None:
    pool = FlowPool(limits, draw=0.0)
    if limits.hold:
        pool.held("a", priority=-1)
        pool.now = 3.25
    pool.control.offer("b", ONE, 0.0)
    (outcome,) = pool.submit(FlowRequest("a", priority=-1))
    assert isinstance(outcome, Dispatched)
    assert outcome.endpoint == "b"


def test_a_higher_band_is_served_first_and_work_of_lower_bands_is_not_before_it() -> None:
    pool = FlowPool(FlowLimits(patience=0.0))
    low = [pool.held("a") for _ in range(5)]
    high = pool.held("a", priority=10)
    assert high.endpoint == "a"
    assert pool.offer("b").request is high
    assert pool.offer("a").request is low[0]


def test_a_higher_band_waits_for_its_cache_as_long_as_that_saves_work() -> None:
    pool = FlowPool(FlowLimits(patience=2.0))
    lows = [pool.held("b"), pool.held("b")]
    high = pool.held("a", priority=10)
    pool.now = 2 * (COLD - WARM) - 0.25
    assert pool.offer("b").request is lows[0]
    pool.now += 0.25
    assert pool.offer("b") == Dispatched(high, "b", pool.now, STOLEN)


def test_a_higher_band_waits_for_its_cache_for_a_bounded_time() -> None:
    pool = FlowPool(FlowLimits(patience=1e6))
    lows = [pool.held("b"), pool.held("b")]
    high = pool.held("a", priority=10)
    pool.now = MAX_PATIENCE_SECONDS - 1.0
    assert pool.offer("b").request is lows[0]
    pool.now += 1.0
    assert pool.offer("b").request is high


def test_in_a_flow_the_earliest_deadline_leaves_first_also_one_that_has_passed() -> None:
    pool = FlowPool()
    pool.now = 100.0
    requests = [FlowRequest("a", deadline=deadline, ttl=50.0) for deadline in (None, 120.0, -1e9, 110.0)]
    for request in requests:
        assert pool.submit(request) == []
    left = [pool.offer("a").request for _ in requests]
    assert left == [requests[place] for place in (2, 3, 1, 0)]


def test_a_prompt_that_does_not_fit_is_not_overtaken_by_smaller_ones() -> None:
    pool = FlowPool()
    large = FlowRequest("a", prompt_tokens=100)
    small = FlowRequest("a", prompt_tokens=1)
    assert pool.submit(large) == pool.submit(small) == []
    room = Room(2.0, kv_tokens=50.0)
    assert pool.control.offer("a", room, 0.0) == []
    assert pool.submit(FlowRequest("a", prompt_tokens=1)) == []
    outcomes = pool.control.cancel(large, 1.0)
    assert isinstance(outcomes[0], RefusedRequest)
    assert [outcome.request for outcome in outcomes[:2]] == [large, small]
    assert len(outcomes) == 3


def test_a_prompt_larger_than_the_whole_cache_waits_for_nothing() -> None:
    assert Room(1.0, kv_tokens=10.0, kv_capacity=1000.0).fits(1001)
    assert not Room(1.0, kv_tokens=10.0, kv_capacity=1000.0).fits(11)


def test_room_that_comes_by_the_passing_of_time_is_due_and_used_then() -> None:
    pool = FlowPool()
    request = pool.held("a")
    assert pool.control.offer("a", Room(1.0, opens_at=2.0, wait_seconds=1.0), 0.0) == []
    assert pool.control.next_due() == 2.0
    assert pool.control.advance(1.9) == []
    assert pool.control.advance(2.0) == [Dispatched(request, "a", 2.0, PLANNED)]


# -- TTL, shedding and bounds ------------------------------------------------------------------------------------------


def test_a_ttl_ends_a_wait_with_429_and_a_time_to_come_back() -> None:
    pool = FlowPool(FlowLimits(band=BandLimits(ttl=60.0), bands={10: BandLimits(ttl=5.0)}))
    of_band, own = pool.held(priority=10), pool.held(ttl=2.0)
    assert pool.control.next_due() == 2.0
    outcome = refusal(pool.control.advance(2.0))
    assert (outcome.request, outcome.reason, outcome.waited_seconds) == (own, EXPIRED, 2.0)
    assert (outcome.row.status, outcome.row.dropped) == (429, "rejected-ttl-expired")
    assert 1 <= outcome.retry_after <= 120
    assert refusal(pool.control.advance(5.0)).request is of_band


def test_a_ttl_of_0_takes_room_and_never_waits() -> None:
    pool = FlowPool()
    assert refusal(pool.submit(FlowRequest("a", ttl=0.0))).reason == EXPIRED
    assert refusal(pool.submit(FlowRequest("a", ttl=-5.0))).reason == EXPIRED
    pool.control.offer("a", ONE, 0.0)
    assert isinstance(pool.submit(FlowRequest("a", ttl=0.0))[0], Dispatched)


def test_only_negative_priorities_are_shed_and_only_where_they_would_wait_too_long() -> None:
    pool = FlowPool(draw=0.0)
    pool.held(priority=-1)
    pool.now = 20.0  # nothing was dispatched for 20 s: the band's next request is expected to wait as long
    pool.held(priority=-1)
    outcome = refusal(pool.submit(FlowRequest("a", priority=-1)))
    assert (outcome.reason, outcome.row.status, outcome.row.dropped) == (SHED, 429, "rejected-saturated")
    assert pool.control.expected_wait(-1, pool.now) > 30.0
    assert pool.submit(FlowRequest("a", priority=0)) == []
    pool.control.offer("b", Room(9.0), pool.now)
    assert isinstance(pool.submit(FlowRequest("b", priority=-1))[0], Dispatched)  # where there is room none is shed


def test_a_band_that_higher_bands_keep_from_being_served_is_expected_to_wait() -> None:
    pool = FlowPool()
    for _ in range(3):
        pool.held(priority=-1)
    for second in range(60):
        pool.now = float(second)
        pool.held(priority=10, ttl=math.inf)
        assert pool.offer("a").request.priority == 10
    assert pool.control.expected_wait(10, pool.now) == 0.0
    assert pool.control.expected_wait(-1, pool.now) > 60.0
    assert pool.control.drain_rate(pool.now) == pytest.approx(10.0, rel=0.1)


def test_a_band_is_never_expected_to_wait_less_than_one_above_it() -> None:
    pool = FlowPool()
    for _ in range(3):
        pool.held(priority=0)
    for second in range(60):
        pool.now = float(second)
        pool.held(priority=10, ttl=math.inf)
        pool.offer("a")
    starved = pool.control.expected_wait(0, pool.now)
    assert starved > 60.0
    assert pool.control.expected_wait(-1, pool.now) >= starved  # although none of it waits


def test_a_drain_rate_of_0_divides_nothing_by_0() -> None:
    pool = FlowPool()
    assert pool.control.drain_rate(0.0) is None
    assert pool.control.expected_wait(0, 0.0) == 0.0
    pool.held(ttl=math.inf)
    assert pool.control.expected_wait(0, 0.0) == 0.0  # nothing was observed
    assert pool.control.drain_rate(50.0) == 0.0
    assert 20.0 < pool.control.expected_wait(0, 50.0) < math.inf
    assert refusal(pool.control.shut_down(50.0)).retry_after >= 1


def test_the_newest_of_the_lowest_band_leaves_where_the_bound_is_reached() -> None:
    pool = FlowPool(FlowLimits(max_requests=4))
    oldest, newest, normal = pool.held(priority=-1), pool.held(priority=-1), pool.held()
    high = pool.held(priority=10)
    assert refusal(pool.submit(FlowRequest("a", priority=-1))).reason == DISPLACED
    for gone in (newest, oldest):
        arriving = FlowRequest("a")
        outcome = refusal(pool.submit(arriving))
        assert (outcome.request, outcome.reason) == (gone, DISPLACED)
        assert arriving.outcome is None
    assert refusal(pool.submit(FlowRequest("a"))).reason == DISPLACED
    assert refusal(pool.submit(FlowRequest("a", priority=10))).request.priority == 0
    assert normal.outcome is None
    assert high.outcome is None


def test_nothing_leaves_for_a_request_that_is_larger_than_all_lower_bands() -> None:
    pool = FlowPool(FlowLimits(max_bytes=10))
    low = FlowRequest("a", size=4)
    assert pool.submit(low) == []
    assert pool.submit(FlowRequest("a", size=5, priority=10)) == []
    assert refusal(pool.submit(FlowRequest("a", size=6, priority=10))).reason == DISPLACED
    assert low.outcome is None
    assert refusal(pool.submit(FlowRequest("a", size=5, priority=10))).request is low


def test_a_queue_with_a_bound_of_0_holds_nothing_and_still_passes_requests() -> None:
    for limits in (FlowLimits(max_requests=0), FlowLimits(max_bytes=0), FlowLimits(band=BandLimits(max_requests=0))):
        pool = FlowPool(limits)
        assert refusal(pool.submit(FlowRequest("a", size=1, priority=5))).reason == DISPLACED
        pool.control.offer("a", ONE, 0.0)
        assert isinstance(pool.submit(FlowRequest("a", size=1))[0], Dispatched)


def test_a_reload_of_smaller_limits_loses_no_request_that_waits() -> None:
    pool = FlowPool()
    held = [pool.held(priority=priority) for priority in (-1, 0, 0, 10)]
    pool.control.apply(FlowLimits(max_requests=2, quantum=1))
    assert pool.control.waiting == 4
    assert refusal(pool.submit(FlowRequest("a", priority=-2))).reason == DISPLACED
    assert refusal(pool.submit(FlowRequest("a", priority=10))).request is held[0]  # one for one
    assert pool.control.waiting == 4
    assert {pool.offer("a").request.priority for _ in range(2)} == {10}


# -- the endpoints change ----------------------------------------------------------------------------------------------


def test_an_empty_pool_refuses_at_once_unless_it_holds_requests() -> None:
    pool = FlowPool(addresses=())
    outcome = refusal(pool.submit(FlowRequest("a")))
    assert (outcome.reason, outcome.row.status, outcome.row.dropped) == (NO_ENDPOINTS, 503, "rejected-no-endpoints")
    assert 1 <= outcome.retry_after <= 120


def test_requests_held_at_zero_leave_in_order_when_the_first_endpoint_is_ready() -> None:
    pool = FlowPool(FlowLimits(empty_ttl=300.0), addresses=())
    held = [pool.held("a", priority=priority) for priority in (0, -1, 10, 0)]
    pool.now = 200.0  # over their TTL of 60 s
    assert pool.control.advance(pool.now) == []
    pool.control.set_endpoints("a", pool.now)
    assert pool.control.replan(pool.now) == []
    outcomes = pool.control.offer("a", Room(3.0), pool.now)
    assert [outcome.request for outcome in outcomes] == [held[place] for place in (2, 0, 3)]
    # Its time without endpoints is not counted against its TTL.
    assert pool.control.advance(259.0) == []
    assert refusal(pool.control.advance(260.0)).reason == EXPIRED


def test_a_request_that_no_endpoint_comes_for_is_refused_with_503() -> None:
    pool = FlowPool(FlowLimits(empty_ttl=300.0))
    request = pool.held("a")
    pool.now = 10.0
    pool.control.set_endpoints((), pool.now)
    assert pool.control.replan(pool.now) == []
    assert pool.control.advance(309.0) == []
    outcome = refusal(pool.control.advance(310.0))
    assert (outcome.request, outcome.reason, outcome.waited_seconds) == (request, NO_ENDPOINTS, 310.0)


def test_requests_of_an_endpoint_that_leaves_are_planned_again() -> None:
    pool = FlowPool()
    requests = [pool.held("a") for _ in range(3)]
    assert {request.endpoint for request in requests} == {"a"}
    pool.control.set_endpoints(("b", "c"), 1.0)
    assert pool.control.replan(1.0) == []
    assert {request.endpoint for request in requests} == {"b", "c"}
    assert pool.offer("c").how == PLANNED


def test_a_new_endpoint_gets_requests_once_they_are_planned_again() -> None:
    pool = FlowPool()
    requests = [pool.held("") for _ in range(4)]  # their caches are nowhere
    pool.control.set_endpoints("abc", 1.0)
    pool.control.offer("c", ONE, 1.0)
    assert pool.control.stale == 4
    (outcome,) = pool.control.replan(1.0, limit=1)
    assert (outcome.request, pool.control.stale) == (requests[0], 3)
    assert pool.control.replan(1.0) == []
    assert pool.control.stale == 0


def test_a_request_that_no_endpoint_may_serve_is_refused_at_arrival_and_when_the_last_one_leaves() -> None:
    control = FlowControl(
        FlowLimits(),
        lambda request, ahead: Estimate(
            [0.0 if a == request.item else math.inf for a in control.addresses], list(ahead)
        ),
        lambda: 0.5,
    )
    control.set_endpoints("ab", 0.0)
    assert refusal(control.submit(FlowRequest("c"), 0.0)).reason == NO_ENDPOINTS
    assert control.submit(FlowRequest("b"), 0.0) == []
    control.set_endpoints("a", 1.0)
    assert refusal(control.replan(1.0)).reason == NO_ENDPOINTS


def test_shutting_down_refuses_what_waits_and_what_arrives() -> None:
    pool = FlowPool()
    pool.held()
    for outcomes in (pool.control.shut_down(1.0), pool.submit(FlowRequest("a"))):
        outcome = refusal(outcomes)
        assert (outcome.reason, outcome.row.status) == (SHUTTING_DOWN, 503)
        assert outcome.row.dropped == "rejected-shutting-down"
        assert outcome.retry_after >= 1


def test_a_report_shows_bands_flows_room_and_what_would_be_shed() -> None:
    pool = FlowPool()
    pool.held(priority=-1, flow="x")
    pool.now = 45.0
    high = [pool.held(priority=10, flow=flow, ttl=1e3) for flow in ("x", "y", "x")]
    pool.control.offer("a", Room(1.0, kv_tokens=1.0), pool.now)
    shown = report(pool.control, pool.now)
    assert (shown.requests, shown.bytes, shown.drain_tokens_per_second) == (4, 4, 0.0)
    first, _, last = shown.bands
    assert (first.priority, first.requests, first.tokens, first.oldest_seconds) == (10, 3, 30, 0.0)
    assert [(flow.name, flow.requests) for flow in first.flows] == [("x", 2), ("y", 1)]
    assert first.shed_probability == 0.0
    assert last.oldest_seconds == 45.0
    assert 0 < last.shed_probability <= 1
    of_a, of_b = shown.endpoints
    assert (of_a.address, of_a.blocked, of_b.blocked) == ("a", True, False)
    assert of_a.planned_requests + of_b.planned_requests == 4
    assert of_a.planned_seconds == WARM * of_a.planned_requests
    assert all(request.outcome is None for request in high)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_priority_of_2_to_the_40_is_a_priority() -> None:
    pool = FlowPool()
    normal, high, low = pool.held(), pool.held(priority=1 << 40), pool.held(priority=-(1 << 40))
    assert [pool.offer("a").request for _ in range(3)] == [high, normal, low]


def test_a_clock_that_goes_back_stands_still_and_one_that_jumps_expires_what_waits() -> None:
    pool = FlowPool()
    pool.now = 100.0
    first = pool.held("a")
    pool.now = 40.0
    second = pool.held("a")
    assert pool.offer("a") == Dispatched(first, "a", 0.0, PLANNED)
    pool.now = math.nan
    assert pool.control.advance(pool.now) == []
    pool.now = 1e9
    outcome = refusal(pool.control.offer("a", ONE, pool.now))
    assert (outcome.request, outcome.reason) == (second, EXPIRED)


def test_a_hundred_thousand_flow_ids_take_bounded_space_and_declared_callers_keep_their_share() -> None:
    limits = FlowLimits(max_requests=2_000, max_flows=100, callers=frozenset({"declared"}), quantum=16)
    pool = FlowPool(limits)
    for number in range(100_000):
        request = FlowRequest("a", flow=f"id-{number}", tokens=40, size=1)
        if pool.submit(request) == [] and number >= 1_000:
            pool.offer("a")
    (band,) = pool.control.bands()
    assert sum(1 for flow in band.flows.values() if flow.requests) <= 101
    assert len(band.flows) <= KEPT_FLOWS + 101
    assert len(band.spent) <= KEPT_FLOWS + 101
    assert OTHER_FLOW in band.flows
    for _ in range(3):
        pool.held("a", flow="declared")
    served = [pool.offer("a").request.flow_name for _ in range(300)]
    assert served.count("declared") == 3


def test_flow_names_are_bounded_and_free_again_once_nothing_is_held() -> None:
    names = FlowNames(1, {"pinned"})
    assert names.take("") == names.take(DEFAULT_FLOW) == DEFAULT_FLOW
    assert names.take("x") == names.take("x") == "x"
    assert names.take("y") == OTHER_FLOW
    assert names.take("pinned") == "pinned"
    for flow in ("x", OTHER_FLOW, "x", "pinned", DEFAULT_FLOW):
        names.release(flow)
    assert len(names) == 0
    assert names.take("y" * (NAME_LENGTH + 1)) == OTHER_FLOW
    assert names.take("x" * 10_000) == OTHER_FLOW
    assert names.take("y") == "y"


def test_a_request_is_submitted_once() -> None:
    pool = FlowPool()
    request = pool.held()
    with pytest.raises(ValueError, match="once"):
        pool.submit(request)
    assert refusal(pool.control.cancel(request, 0.0)).reason == CANCELLED
    with pytest.raises(ValueError, match="once"):
        pool.submit(request)


def test_what_has_left_does_not_stay_in_memory() -> None:
    pool = FlowPool()
    for _ in range(5_000):
        pool.control.cancel(pool.held("a", ttl=1e6), pool.now)
    waiting = pool.held("a", ttl=1e6)
    assert len(pool.control._expiries) < 200
    planned = waiting.planned
    assert planned is not None
    assert len(planned.heap) < 100


def test_an_offer_for_an_unknown_endpoint_is_ignored() -> None:
    assert FlowPool().control.offer("elsewhere", ONE, 0.0) == []
