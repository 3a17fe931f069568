"""What holds of flow control on every history."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.flow.band import MAX_PATIENCE_SECONDS, Band
from agent.flow.control import Estimate, FlowControl, FlowLimits
from agent.flow.outcomes import (
    CANCELLED,
    DIRECT,
    DISPLACED,
    EXPIRED,
    REFUSALS,
    SHUTTING_DOWN,
    Dispatched,
    RefusedRequest,
)
from agent.flow.request import FlowRequest
from agent.flow.room import Room
from tests.flow.histories import ADDRESSES, Arrives, Driver, Endpoints, Step, arrivals, histories, limits, name_of

History = list[tuple[float, Step]]


@given(histories, limits)
def test_every_request_has_exactly_one_outcome(history: History, flow_limits: FlowLimits) -> None:
    driver = Driver(flow_limits)
    seen: Counter[int] = Counter()
    for passed, step in [(0.0, Endpoints(ADDRESSES)), *history]:
        for outcome in driver.take(passed, step):
            assert outcome.request.outcome is outcome
            assert outcome.waited_seconds >= 0
            seen[id(outcome.request)] += 1
    for outcome in driver.control.shut_down(driver.now):
        assert isinstance(outcome, RefusedRequest)
        assert outcome.reason == SHUTTING_DOWN
        seen[id(outcome.request)] += 1
    assert seen == Counter({id(request): 1 for request in driver.requests})
    assert driver.control.waiting == 0
    assert driver.control.bytes == 0
    assert driver.control.next_due() == math.inf


@given(histories, limits)
def test_the_counts_are_those_of_the_waiting_requests(history: History, flow_limits: FlowLimits) -> None:
    driver = Driver(flow_limits)
    for passed, step in [(0.0, Endpoints(ADDRESSES)), *history]:
        driver.take(passed, step)
        control, waiting = driver.control, driver.waiting()
        assert control.waiting == len(waiting) <= flow_limits.max_requests
        assert control.bytes == sum(request.size for request in waiting) <= flow_limits.max_bytes
        assert [band.priority for band in control.bands()] == sorted({r.priority for r in waiting}, reverse=True)
        for band in control.bands():
            mine = [request for request in waiting if request.priority == band.priority]
            assert list(band.requests) == mine
            assert band.tokens == sum(request.tokens for request in mine)
            assert band.bytes == sum(request.size for request in mine)
            assert len(mine) <= flow_limits.of(band.priority).max_requests
            for place, address in enumerate(control.addresses):
                ahead = [
                    r.seconds_at(address) for r in waiting if r.endpoint == address and r.priority >= band.priority
                ]
                assert band.ahead[place] == sum(ahead)
        for endpoint in control.endpoints():
            assert endpoint.count == sum(1 for request in waiting if request.endpoint == endpoint.address)


@settings(max_examples=200)
@given(histories, limits)
def test_no_endpoint_has_room_while_a_request_waits_that_it_may_serve(
    history: History, flow_limits: FlowLimits
) -> None:
    """Unless the next request for the endpoint does not fit into its KV cache, or waits for its own cache elsewhere."""
    driver = Driver(flow_limits)
    for passed, step in [(0.0, Endpoints(ADDRESSES)), *history]:
        driver.take(passed, step)
        now = driver.now
        for endpoint in driver.control.endpoints():
            room = endpoint.room
            if room.requests >= 1 and room.opens_at <= now and driver.control.next_due() > now:
                served = [r for r in driver.waiting() if r.seconds_at(endpoint.address) < math.inf]
                fixed = {request.band for request in served if request.fixed}
                left = [request for request in served if request.band not in fixed]
                assert not left or any(not room.fits(request.prompt_tokens) for request in served)
                assert all(now - request.planned_at < MAX_PATIENCE_SECONDS for request in served if request.fixed)


@settings(max_examples=200)
@given(histories, limits)
def test_a_higher_band_is_overtaken_only_while_it_waits_for_its_own_endpoint(
    history: History, flow_limits: FlowLimits
) -> None:
    """With a patience of 0 never: whatever an endpoint gets, no request of a higher band waits that it may serve."""
    driver = Driver(flow_limits)
    patience = flow_limits.patience
    for passed, step in [(0.0, Endpoints(ADDRESSES)), *history]:
        before = driver.waiting()
        outcomes = driver.take(passed, step)
        waiting = before + [request for request in driver.requests if request not in before]
        for outcome in outcomes:
            waiting = [request for request in waiting if request is not outcome.request]
            if not isinstance(outcome, Dispatched) or outcome.how == DIRECT or isinstance(step, Endpoints):
                continue
            for higher in waiting:
                seconds = higher.seconds_at(outcome.endpoint)
                if higher.priority > outcome.request.priority and seconds < math.inf and higher.outcome is None:
                    assert patience > 0
                    assert higher.endpoint != outcome.endpoint


@settings(max_examples=200)
@given(histories, limits)
def test_an_arriving_request_passes_no_request_that_the_same_endpoint_could_serve(
    history: History, flow_limits: FlowLimits
) -> None:
    """Whatever their bands: what waits and may be served there goes first, unless nothing fits."""
    driver = Driver(flow_limits)
    for passed, step in [(0.0, Endpoints(ADDRESSES)), *history]:
        before = driver.waiting()
        for outcome in driver.take(passed, step):
            if isinstance(outcome, Dispatched) and outcome.how == DIRECT:
                assert isinstance(step, Arrives)
                assert outcome.waited_seconds == 0
                still = [request for request in before if request.outcome is None]
                assert all(request.seconds_at(outcome.endpoint) == math.inf for request in still)


@given(histories, limits)
def test_no_request_waits_for_longer_than_its_longest_wait(history: History, flow_limits: FlowLimits) -> None:
    driver = Driver(flow_limits)
    latest = 0.0
    for passed, step in [(0.0, Endpoints(ADDRESSES)), *history]:
        outcomes = driver.take(passed, step)
        latest = max(latest, driver.now)
        if isinstance(step, Arrives):
            request = driver.requests[-1]
            ttl = flow_limits.of(request.priority).ttl if request.ttl is None else request.ttl
            if request.outcome is None:
                assert request.latest == latest + flow_limits.longest_wait(ttl)
        due = driver.control.next_due()  # a step of a client that has left already calls nothing
        assert due <= latest or all(request.latest > latest for request in driver.waiting())
        assert all(driver.control.next_due() <= request.latest for request in driver.waiting())
        for outcome in outcomes:
            if isinstance(outcome, RefusedRequest) and outcome.reason == EXPIRED:
                request = outcome.request
                assert request.latest <= latest or request.expires_at <= latest


@given(histories, limits)
def test_the_plans_that_are_reported_are_those_of_the_waiting_requests(
    history: History, flow_limits: FlowLimits
) -> None:
    plans: dict[str, str] = {}

    def changed(request: FlowRequest, address: str, planned: bool) -> None:
        name = name_of(request)
        assert (name in plans) != planned
        if planned:
            plans[name] = address
        else:
            assert plans.pop(name) == address

    driver = Driver(flow_limits, plan_changed=changed)
    for passed, step in [(0.0, Endpoints(ADDRESSES)), *history]:
        driver.take(passed, step)
        assert plans == {name_of(each): each.endpoint for each in driver.waiting() if each.endpoint}
    driver.control.shut_down(driver.now)
    assert plans == {}


@settings(max_examples=200)
@given(histories, limits)
def test_a_request_is_displaced_only_by_a_higher_band_or_for_want_of_lower_ones(
    history: History, flow_limits: FlowLimits
) -> None:
    driver = Driver(flow_limits)
    for passed, step in [(0.0, Endpoints(ADDRESSES)), *history]:
        waiting = driver.waiting()
        outcomes = driver.take(passed, step)
        arrived = driver.requests[-1] if isinstance(step, Arrives) else None
        for outcome in outcomes:
            if not isinstance(outcome, RefusedRequest) or outcome.reason != DISPLACED:
                continue
            assert arrived is not None
            gone = outcome.request
            if gone is not arrived:
                assert gone.priority < arrived.priority
                still = [r for r in waiting if r.outcome is None and r is not arrived]
                assert all(
                    r.priority > gone.priority or r.sequence < gone.sequence
                    for r in still
                    if r.priority <= gone.priority
                )
                continue
            kept = [r for r in waiting if r.outcome is None and r.priority >= gone.priority]
            own = [r for r in kept if r.priority == gone.priority]
            band = flow_limits.of(gone.priority)
            assert (
                len(kept) + 1 > flow_limits.max_requests
                or sum(r.size for r in kept) + gone.size > flow_limits.max_bytes
                or len(own) + 1 > band.max_requests
                or sum(r.size for r in own) + gone.size > band.max_bytes
            )


def check_credit(band: Band, largest: int) -> None:
    for flow in band.flows.values():
        assert -(band.quantum // 2 + largest) < band.credit(flow) <= band.quantum


@given(histories, limits)
def test_credit_is_bounded(history: History, flow_limits: FlowLimits) -> None:
    driver = Driver(flow_limits)
    for passed, step in [(0.0, Endpoints(ADDRESSES)), *history]:
        driver.take(passed, step)
        for band in driver.control.bands():
            check_credit(band, 40)
            held = sum(1 for flow in band.flows.values() if flow.requests)
            assert held == band.busy
            assert all(flow.requests and not flow.spent for flow in band.ring)


sizes = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=20, max_size=60)


@settings(max_examples=100)
@given(sizes, st.sampled_from([0.0, 20.0]), st.integers(0, 7))
def test_two_callers_that_both_wait_are_served_alike(tokens: list[tuple[int, int]], patience: float, skew: int) -> None:
    """The lag between them is at most two quanta, also where the caches of one of them are at one endpoint only."""
    quantum = 16
    control = FlowControl(FlowLimits(quantum=quantum, patience=patience), cost_of, lambda: 1.0)
    control.set_endpoints(ADDRESSES, 0.0)
    for number, (of_x, of_y) in enumerate(tokens):
        warm = number % 8 < skew
        control.submit(FlowRequest((0.125, 1.0, 1.0) if warm else (0.5, 0.5, 0.5), flow="x", tokens=of_x), 0.0)
        control.submit(FlowRequest((0.5, 0.25, 0.5), flow="y", tokens=of_y), 0.0)
    served = {"x": 0, "y": 0}
    left = {"x": len(tokens), "y": len(tokens)}
    now = 0.0
    while all(left.values()):
        now += 0.125
        (outcome,) = control.offer(ADDRESSES[int(now * 8) % 3], Room(1.0), now)
        assert isinstance(outcome, Dispatched)
        served[outcome.request.flow_name] += outcome.request.tokens
        left[outcome.request.flow_name] -= 1
        assert abs(served["x"] - served["y"]) <= 2 * quantum


def cost_of(request: FlowRequest, ahead: object) -> Estimate:
    """The seconds of the request's item at each endpoint, after those before it."""
    own = request.item
    assert isinstance(own, tuple)
    assert isinstance(ahead, list)
    return Estimate([before + each for before, each in zip(ahead, own, strict=True)], own)


@given(st.lists(arrivals, max_size=20), st.integers(0, 20))
def test_a_cancelled_request_is_gone_at_once(requests: list[Arrives], which: int) -> None:
    driver = Driver(FlowLimits())
    driver.take(0.0, Endpoints(ADDRESSES))
    for arrives in requests:
        driver.take(0.0, arrives)
    waiting = driver.waiting()
    if which < len(waiting):
        (outcome,) = driver.control.cancel(waiting[which], driver.now)
        assert isinstance(outcome, RefusedRequest)
        assert outcome.reason == CANCELLED
        assert waiting[which] not in driver.waiting()
        assert driver.control.cancel(waiting[which], driver.now) == []


@given(histories, limits, st.integers(1, 3))
def test_planning_again_in_slices_ends_with_everything_planned(
    history: History, flow_limits: FlowLimits, limit: int
) -> None:
    driver = Driver(flow_limits)
    for passed, step in [(0.0, Endpoints(ADDRESSES[:2])), *history]:
        driver.take(passed, step)
    control = driver.control
    control.set_endpoints(("c", "a"), driver.now)
    while control.stale:
        control.replan(driver.now, limit)
    for request in driver.waiting():
        assert request.endpoint in {"a", "c"}
        assert request.seconds_at(request.endpoint) < math.inf


def test_every_refusal_has_a_status_and_a_reason() -> None:
    for reason, row in REFUSALS.items():
        assert row.dropped.startswith("rejected-")
        assert row.meaning
        assert row.status in ({0} if reason == CANCELLED else {429, 503})
