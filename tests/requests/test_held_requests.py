"""Requests are held while no endpoint has room, and each of them has one decision."""

from __future__ import annotations

import math

from agent.events.flow import FlowDecided, RequestHeld
from agent.flow.evidence import Evidence
from agent.flow.outcomes import DIRECT, PLANNED, STOLEN
from agent.flow.room import Room, RoomLimits
from agent.requests.held_requests import PRIOR_OUTPUT_TOKENS, ROOM, HoldingSettings, mean_output_tokens
from agent.signals import FINISHED, GENERATION_TOKENS
from agent.state.snapshot import EndpointView
from tests.fakes.held_pool import ONE_SLOT, HeldPool, limits
from tests.fakes.views import view

A, B, C = "a:1", "b:1", "c:1"


# -- an unsaturated pool -----------------------------------------------------------------------------------------------


def test_an_unsaturated_pool_passes_requests_at_once_with_the_pick_that_a_pool_without_flow_control_makes() -> None:
    settings = HoldingSettings()
    held, plain = HeldPool(A, B, settings=settings), HeldPool(A, B, settings=settings, holding=False)
    for number in range(20):
        for pool in (held, plain):
            pool.submit(f"r{number}", chain=range(number % 3 * 10, number % 3 * 10 + 9))
        assert held.pick(f"r{number}")._replace(profile=None) == plain.pick(f"r{number}")._replace(profile=None)
        if number % 2:
            held.end(f"r{number}")
            plain.end(f"r{number}")
    assert (held.wakes, held.outcomes(), held.held_events()) == (0, [], [])
    assert held.pick("r0").dispatched == ""


def test_an_unsaturated_request_costs_the_room_of_its_endpoint_alone() -> None:
    pool = HeldPool(A, B, C, settings=HoldingSettings())
    computed: list[str] = []
    detector = pool.held._detector

    def recorded(view: EndpointView, evidence: Evidence, limits: RoomLimits, now: float) -> Room:
        computed.append(view.address)
        return detector(view, evidence, limits, now)

    pool.held._detector = recorded
    for number in range(5):
        pool.submit(f"r{number}")
        assert computed == [pool.at(f"r{number}")]
        computed.clear()
    assert pool.outcomes() == []  # flow control decided on none


def test_while_another_endpoint_has_room_a_request_may_queue_at_the_one_with_its_cache() -> None:
    settings = HoldingSettings(room=RoomLimits(slots=2.0, queued=0.0, max_wait_seconds=math.inf))
    pool = HeldPool(A, B, settings=settings)
    pool.submit("first", tokens=6_400, chain=range(100), subset=frozenset({A}))
    pool.now = 7.0
    pool.submit("second", tokens=6_400, chain=range(100))
    pool.submit("third", tokens=6_400, chain=range(100))
    assert [pool.at(name) for name in ("first", "second", "third")] == [A, A, A]
    assert pool.outcomes() == []


# -- waiting and dispatch ----------------------------------------------------------------------------------------------


def test_a_request_waits_while_no_endpoint_has_room_and_is_dispatched_when_a_request_ends() -> None:
    pool = HeldPool(A)
    pool.fill(A)
    ticket = pool.submit("waits", priority=5)
    assert ticket.pending
    assert (pool.held.waiting, pool.pipeline.waiting, pool.pipeline.in_flight) == (1, 1, 1)
    pool.now = 2.5
    pool.settle()
    assert ticket.pending
    pool.end("first-at-a:1")
    pool.settle()
    decision = pool.pick("waits")
    assert (decision.endpoint, decision.waited_seconds, decision.dispatched) == (A, 2.5, PLANNED)
    assert (pool.held.waiting, pool.pipeline.waiting, pool.pipeline.in_flight) == (0, 0, 1)
    assert [event for event in pool.events if isinstance(event, RequestHeld | FlowDecided)] == [
        RequestHeld("pool", 5),
        FlowDecided("pool", 5, PLANNED, 2.5, "", "m", "", 100 + PRIOR_OUTPUT_TOKENS),
    ]
    pool.end("waits")
    assert pool.pipeline.in_flight == pool.store.in_flight == 0


def test_a_request_is_dispatched_on_a_page_that_shows_room() -> None:
    settings = ONE_SLOT._replace(room=RoomLimits(slots=4.0, queued=0.0, max_wait_seconds=math.inf))
    pool = HeldPool(A, settings=settings)
    pool.page(A, running=4.0)  # requests of others
    pool.submit("waits")
    assert not pool.at("waits")
    pool.now = 1.0
    pool.page(A, running=4.0)
    pool.settle()
    assert not pool.at("waits")
    pool.now = 2.0
    pool.page(A, running=3.0)
    pool.settle()
    assert pool.at("waits") == A


def test_a_request_is_dispatched_by_time_when_the_prefill_before_it_is_short_enough() -> None:
    pool = HeldPool(A, settings=HoldingSettings(room=RoomLimits(max_wait_seconds=0.25)))
    pool.submit("first", tokens=1_000)
    pool.submit("second", tokens=1_000)
    assert pool.due == 0.75
    pool.advance(0.7)
    assert (pool.at("second"), pool.runs) == ("", 0)
    pool.advance(0.1)
    assert (pool.pick("second").waited_seconds, pool.runs) == (0.75, 1)


def test_a_held_request_is_planned_to_the_endpoint_with_its_cache_and_waits_for_it() -> None:
    pool = HeldPool(A, B)
    pool.submit("warms-b", chain=range(50), tokens=3_200, subset=frozenset({B}))
    pool.fill(A)
    pool.now = 10.0
    pool.submit("for-b", chain=range(50), tokens=3_200)
    pool.submit("for-a", chain=range(1_000, 1_050), tokens=3_200)
    assert not pool.decisions.keys() & {"for-a", "for-b"}
    pool.end("first-at-a:1")
    pool.settle()
    assert (pool.at("for-a"), pool.at("for-b")) == (A, "")
    assert pool.pick("for-a").dispatched == PLANNED
    pool.end("warms-b")
    pool.settle()
    assert (pool.at("for-b"), pool.pick("for-b").hit_tokens) == (B, 3_200)


def test_requests_with_one_prefix_are_planned_to_one_endpoint_before_any_of_them_is_dispatched() -> None:
    pool = HeldPool(A, B)
    pool.fill(A, B)
    for number in range(3):
        pool.submit(f"x{number}", chain=range(100), tokens=6_400)
    assert {request.endpoint for request in pool.held._requests.values()} == {A}
    assert pool.held.planned_blocks == 300
    pool.submit("y", chain=range(1_000, 1_010), tokens=640)
    assert pool.held._requests[pool.tickets["y"]].endpoint == B


def test_an_endpoint_without_planned_work_steals_a_request_and_the_pick_says_that_room_decided() -> None:
    pool = HeldPool(A, B)
    pool.submit("warms-b", chain=range(50), tokens=3_200, subset=frozenset({B}))
    pool.fill(A)
    pool.now = 10.0
    pool.submit("for-b", chain=range(50), tokens=3_200)
    pool.end("first-at-a:1")
    pool.settle()
    decision = pool.pick("for-b")
    assert (decision.endpoint, decision.dispatched, decision.decided_by) == (A, STOLEN, ROOM)
    assert decision.left_warmest


def test_a_request_that_arrives_while_others_wait_for_another_endpoint_goes_directly_to_one_with_room() -> None:
    pool = HeldPool(A, B)
    pool.fill(A)
    pool.submit("only-a", subset=frozenset({A}))
    pool.submit("any")
    assert (pool.at("only-a"), pool.at("any")) == ("", B)
    assert pool.outcomes() == [DIRECT]
    assert pool.pick("any").dispatched == ""
    assert pool.held_events() == [0]


# -- the order ---------------------------------------------------------------------------------------------------------


def drained(pool: HeldPool, *first: str) -> list[str]:
    """Ends each request as soon as it is dispatched; returns the names of the held ones in the order of dispatch."""
    done = list(first)
    for name in done:
        pool.now += 1.0
        pool.end(name)
        pool.settle()
        done += [name for name in pool.order() if name not in done]
    return done[len(first) :]


def test_held_requests_leave_by_priority_highest_first() -> None:
    pool = HeldPool(A)
    pool.fill(A)
    for name, priority in {"low": -3, "zero": 0, "high": 7, "second-zero": 0, "highest": 1 << 40}.items():
        pool.submit(name, priority=priority)
    assert drained(pool, "first-at-a:1") == ["highest", "high", "zero", "second-zero", "low"]


def test_callers_of_one_priority_share_by_tokens_and_one_with_many_requests_does_not_push_back_the_other() -> None:
    pool = HeldPool(A, settings=limits(quantum=1_000))
    pool.fill(A)
    for number in range(6):
        pool.submit(f"many-{number}", caller="many", tokens=789)  # with 211 of output
    for number in range(2):
        pool.submit(f"few-{number}", caller="few", tokens=789)
    assert [name.split("-")[0] for name in drained(pool, "first-at-a:1")][:4] == ["many", "few", "many", "few"]


def test_requests_of_one_caller_leave_by_their_deadline_and_then_in_the_order_of_arrival() -> None:
    pool = HeldPool(A)
    pool.fill(A)
    for name, ttft in {"none": None, "late": 30.0, "soon": 2.0, "passed": -5.0, "none-2": None}.items():
        pool.submit(name, ttft=ttft)
    assert drained(pool, "first-at-a:1") == ["passed", "soon", "late", "none", "none-2"]


def test_output_counts_as_the_mean_of_the_pages_at_most_what_the_request_allows() -> None:
    pool = HeldPool(A)
    pool.page(A, **{GENERATION_TOKENS: 5_000.0, FINISHED: 10.0})
    pool.fill(A)
    pool.submit("mean", tokens=100)
    pool.submit("limited", tokens=100, output=20)
    assert [request.tokens for request in pool.held._requests.values()] == [600, 120]
    assert mean_output_tokens([view("a"), view("b", {GENERATION_TOKENS: 0.0, FINISHED: 0.0})]) == PRIOR_OUTPUT_TOKENS
