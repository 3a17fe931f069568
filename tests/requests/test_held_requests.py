"""Requests are held while no endpoint has room, and each of them has one decision."""

from __future__ import annotations

import math

import orjson

from agent.events.flow import FlowDecided, RequestHeld
from agent.events.requests import StreamBroken
from agent.flow.band import MAX_PATIENCE_SECONDS
from agent.flow.control import BandLimits, FlowLimits
from agent.flow.evidence import Evidence
from agent.flow.outcomes import (
    CANCELLED,
    DIRECT,
    DISPLACED,
    EXPIRED,
    NO_ENDPOINTS,
    PLANNED,
    REFUSALS,
    SHED,
    SHUTTING_DOWN,
    STOLEN,
)
from agent.flow.room import Room, RoomLimits
from agent.pick.candidates import Candidates
from agent.pick.decision import Pick
from agent.pick.profile import Profile, build
from agent.pick.scoring import Columns, Weighted
from agent.profiles import PRESETS
from agent.requests.held_requests import (
    PRIOR_OUTPUT_TOKENS,
    REPLANNED_PER_STEP,
    ROOM,
    TURN_SECONDS,
    HoldingSettings,
    mean_output_tokens,
)
from agent.requests.rejections import REJECTIONS, Rejection
from agent.requests.ticket import Ticket
from agent.signals import (
    BLOCK_SIZE,
    BLOCKS,
    FINISHED,
    GENERATION_TOKENS,
    KV_USAGE,
    PREFILL_SECONDS,
    PREFILLS,
    PROMPT_TOKENS,
    START_TIME,
)
from agent.state.health import Health
from agent.state.prefill_rate import RateLimits
from agent.state.snapshot import EndpointView
from agent.state.store import OF_PEER
from tests.fakes.held_pool import NEVER, ONE_SLOT, HeldPool, limits
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
    pool = HeldPool(A, settings=HoldingSettings(room=RoomLimits(max_wait_seconds=0.25, hold_from_seconds=0.0)))
    pool.submit("first", tokens=1_000)
    pool.submit("second", tokens=1_000)
    assert pool.due == 0.75
    pool.advance(0.7)
    assert (pool.at("second"), pool.runs) == ("", 0)
    pool.advance(0.1)
    assert (pool.pick("second").waited_seconds, pool.runs) == (0.75, 1)


def test_a_burst_passes_until_each_endpoint_has_as_much_prefill_as_requests_are_held_from() -> None:
    pool = HeldPool(A, B, settings=HoldingSettings(room=RoomLimits(max_wait_seconds=0.25, hold_from_seconds=1.0)))
    pool.submit("first", tokens=1_000)  # a second of prefill
    pool.submit("second", tokens=900)
    pool.submit("third", tokens=1_000)
    assert pool.held.waiting == 0
    assert {pool.at("first"), pool.at("second")} == {A, B}
    pool.submit("fourth", tokens=1_000)  # 1.0 and 1.9 s
    assert pool.held.waiting == 0
    pool.submit("fifth", tokens=1_000)
    assert pool.held.waiting == 1


def test_once_requests_are_held_an_endpoint_gets_the_next_one_by_the_shorter_wait() -> None:
    pool = HeldPool(A, settings=HoldingSettings(room=RoomLimits(max_wait_seconds=0.25, hold_from_seconds=1.0)))
    for number in range(2):
        pool.submit(f"passes {number}", tokens=1_000)
    pool.submit("held", tokens=1_000)
    assert (pool.held.waiting, pool.due) == (1, 1.75)
    pool.advance(1.75)
    assert pool.pick("held").waited_seconds == 1.75


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
    assert pool.held.waiting == 1  # for its cache
    pool.advance(MAX_PATIENCE_SECONDS)
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
        done += [name for name in pool.order() if name not in done and pool.tickets[name].picked]
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


# -- refusals ----------------------------------------------------------------------------------------------------------


def check_refusal(pool: HeldPool, name: str, reason: str, waited_ms: str | None) -> Rejection:
    """The response is an OpenAI error with the headers of the reason and a `Retry-After` that clients respect."""
    rejection = pool.refusal(name)
    row = REFUSALS[reason]
    assert rejection.status == row.status
    error = orjson.loads(rejection.body())["error"]
    assert error["message"]
    assert error["type"] == ("rate_limit_error" if row.status == 429 else "server_error")
    assert error["code"] == rejection.row.code
    headers = dict(rejection.headers())
    assert headers["content-type"] == "application/json"
    assert headers["x-llm-d-request-dropped-reason"] == headers["x-gateway-request-dropped-reason"] == row.dropped
    assert 1 <= int(headers["retry-after"]) <= 120
    assert headers.get("x-llm-d-flow-queue-duration-ms") == waited_ms
    assert pool.outcomes()[-1] == reason
    return rejection


def test_a_request_is_refused_with_429_when_its_ttl_ends() -> None:
    pool = HeldPool(A, settings=limits(band=BandLimits(ttl=60.0)))
    pool.fill(A)
    pool.submit("of-its-band")
    pool.submit("its-own", ttl=2.5)
    pool.submit("a-longer-one", ttl=1_000.0)
    pool.advance(2.4)
    assert pool.held.waiting == 3
    pool.advance(0.1)
    rejection = check_refusal(pool, "its-own", EXPIRED, "2500")
    assert rejection.message.startswith("No model server had room for the request within 2.5 s. Try again in ")
    pool.advance(57.5)
    check_refusal(pool, "of-its-band", EXPIRED, "60000")
    check_refusal(pool, "a-longer-one", EXPIRED, "60000")
    assert pool.due == NEVER


def test_a_ttl_of_0_takes_room_and_is_refused_at_once_without() -> None:
    pool = HeldPool(A)
    pool.submit("first", ttl=0.0)
    assert pool.at("first") == A
    pool.submit("second", ttl=0.0)
    check_refusal(pool, "second", EXPIRED, None)
    assert pool.held_events() == []


def test_the_newest_of_the_lowest_priority_is_displaced_where_the_queue_is_full() -> None:
    pool = HeldPool(A, settings=limits(max_requests=2, max_bytes=100))
    pool.fill(A)
    pool.submit("low", priority=1)
    pool.submit("lower", priority=-5, body=b"x" * 60)
    pool.now = 1.5
    pool.submit("high", priority=2)
    check_refusal(pool, "lower", DISPLACED, "1500")
    pool.submit("newest-low", priority=1)
    check_refusal(pool, "newest-low", DISPLACED, None)
    pool.submit("large", priority=9, body=b"x" * 101)
    check_refusal(pool, "large", DISPLACED, None)
    assert drained(pool, "first-at-a:1") == ["high", "low"]


def test_a_queue_with_a_bound_of_0_refuses_what_would_wait() -> None:
    pool = HeldPool(A, settings=limits(max_requests=0))
    pool.fill(A)
    pool.submit("second")
    check_refusal(pool, "second", DISPLACED, None)


def test_a_negative_priority_is_shed_where_it_would_wait_too_long_and_others_wait() -> None:
    pool = HeldPool(A, settings=limits(band=BandLimits(ttl=10.0)), draw=0.0)
    pool.fill(A)
    pool.submit("sheddable", priority=-1)
    pool.now = 8.0
    pool.submit("another", priority=-1)
    pool.submit("zero")
    rejection = check_refusal(pool, "another", SHED, None)
    assert "priority -1" in rejection.message
    assert not pool.decisions.keys() & {"sheddable", "zero"}


def test_a_request_that_no_endpoint_may_serve_is_refused_with_the_reason_of_a_pool_without_a_queue() -> None:
    pool = HeldPool(A, settings=limits(empty_ttl=60.0))
    pool.submit("without-queue", subset=frozenset({C}))
    pool.fill(A)
    pool.submit("waits")
    pool.submit("behind", subset=frozenset({C}))
    rejection = check_refusal(pool, "behind", NO_ENDPOINTS, None)
    assert (rejection.reason, rejection.message) == ("subset_empty", pool.refusal("without-queue").message)


def test_a_drain_rate_of_0_gives_finite_times_to_come_back_and_sheds() -> None:
    pool = HeldPool(A, settings=limits(band=BandLimits(ttl=1_000.0), max_requests=2), stale_after=1e9)
    pool.fill(A)
    pool.submit("first", priority=-1)
    pool.submit("second", priority=-1)
    pool.advance(999.0)  # nothing is ever dispatched
    pool.submit("third", priority=-1)
    assert dict(check_refusal(pool, "third", SHED, None).headers())["retry-after"] == "96"
    (band,) = [band for band in pool.held.report(pool.now).bands if band.priority == -1]
    assert band.expected_wait_seconds is not None
    assert band.expected_wait_seconds >= 999.0
    assert (math.isfinite(band.expected_wait_seconds), band.shed_probability) == (True, 1.0)
    pool.submit("zero")
    check_refusal(pool, "second", DISPLACED, "999000")
    pool.advance(1.0)
    check_refusal(pool, "first", EXPIRED, "1000000")


def test_every_reason_of_flow_control_is_a_row_of_the_table_of_rejections() -> None:
    for reason, row in REFUSALS.items():
        if reason != CANCELLED:  # no one is answered
            rejection = REJECTIONS[reason]
            assert (rejection.status, rejection.dropped, rejection.retry) == (row.status, row.dropped, row.retry)


# -- clients that leave ------------------------------------------------------------------------------------------------


def test_a_client_that_leaves_while_its_request_is_held_is_removed_at_once() -> None:
    pool = HeldPool(A)
    pool.fill(A)
    stays, leaves = pool.submit("stays"), pool.submit("leaves", chain=range(10), tokens=640)
    assert leaves.cancel()
    assert (pool.held.waiting, pool.pipeline.waiting, pool.held.planned_blocks) == (1, 1, 0)
    assert pool.outcomes() == [CANCELLED]
    pool.end("first-at-a:1")
    pool.settle()
    assert stays.picked
    assert "leaves" not in pool.decisions
    assert pool.pipeline.in_flight == 1


def test_a_cancelled_request_makes_way_for_one_that_fits() -> None:
    settings = ONE_SLOT._replace(room=RoomLimits(slots=4.0, queued=0.0, max_wait_seconds=math.inf))
    pool = HeldPool(A, settings=settings)
    pool.page(A, running=1.0, **{KV_USAGE: 0.9, BLOCKS: 1_000.0, BLOCK_SIZE: 16.0})
    large, small = pool.submit("large", tokens=10_000), pool.submit("small", tokens=100)
    pool.settle()
    assert large.pending
    assert small.pending
    large.cancel()
    assert small.picked


class Leaving(HeldPool):
    """The decision for `first` makes the client of `second` leave, as a connection that breaks does."""

    first = second = ""

    def decided(self, ticket: Ticket, decision: Pick | Rejection) -> None:
        super().decided(ticket, decision)
        if ticket.request_id == self.first:
            self.tickets[self.second].cancel()


def test_a_client_that_leaves_while_others_are_resumed_leaves_no_work_in_flight_and_its_room_is_used() -> None:
    settings = ONE_SLOT._replace(room=RoomLimits(slots=2.0, queued=0.0, max_wait_seconds=math.inf))
    pool = Leaving(A, settings=settings)
    pool.first, pool.second = "r0", "r1"
    pool.page(A, running=2.0)
    for number in range(3):
        pool.submit(f"r{number}")
    pool.now = 1.0
    pool.page(A, running=0.0)
    pool.settle()
    assert pool.order() == ["r0", "r2"]
    assert pool.outcomes() == [PLANNED, CANCELLED, PLANNED]
    assert (pool.store.in_flight, pool.pipeline.in_flight, pool.pipeline.waiting) == (2, 2, 0)


def test_a_client_that_leaves_while_its_request_displaces_another_one_is_not_held() -> None:
    pool = Leaving(A, settings=limits(max_requests=1))
    pool.first, pool.second = "low", "high"
    pool.fill(A)
    pool.submit("low")

    class Early(dict[str, Ticket]):
        """`submit` has not returned the ticket yet when it is cancelled."""

        def __missing__(self, name: str) -> Ticket:
            return next(each for each in pool.held._requests if each.request_id == name)

    pool.tickets = Early(pool.tickets)
    pool.submit("high", priority=1)
    assert pool.refusal("low").reason == DISPLACED
    assert (pool.held.waiting, pool.pipeline.waiting) == (0, 0)
    assert pool.outcomes() == [DISPLACED, CANCELLED]


def test_a_decision_that_fails_rejects_its_request_and_no_other() -> None:
    settings = ONE_SLOT._replace(room=RoomLimits(slots=2.0, queued=0.0, max_wait_seconds=math.inf))
    pool = HeldPool(A, settings=settings)
    pool.page(A, running=2.0)
    for number in range(2):
        pool.submit(f"r{number}")
    pool.tickets["r0"].wanted = None
    pool.now = 1.0
    pool.page(A, running=0.0)
    pool.settle()
    assert pool.refusal("r0").reason == "error"
    assert pool.at("r1") == A
    assert [event.detail for event in pool.events if isinstance(event, StreamBroken)] == [
        "flow control: ValueError('the request is over')"
    ]


class FailingScorer:
    """Fails on one model."""

    name = "failing-scorer"
    needs: frozenset[str] = frozenset()

    def score(self, candidates: Candidates, columns: Columns) -> list[float]:
        if candidates.request.model == "bad":
            raise RuntimeError("a defect")
        return [0.0] * len(candidates)


def test_a_scorer_that_fails_on_a_request_keeps_no_other_from_being_planned_again() -> None:
    pool = HeldPool(A, B)
    pool.fill(A, B)
    for name, model in {"r0": "m", "r1": "bad", "r2": "m"}.items():
        pool.submit(name, model=model)
    pool.held.profile = pool.stage.profile = Profile("failing", (), (Weighted(FailingScorer(), 1.0),))
    pool.set_endpoints(B)
    pool.settle()
    assert pool.refusal("r1").reason == "error"
    assert pool.held.waiting == 2
    pool.submit("arrives", model="bad")
    assert pool.refusal("arrives").reason == "error"
    pool.end("first-at-a:1")
    assert drained(pool, "first-at-b:1") == ["r0", "r2"]


def test_a_callback_that_fails_keeps_no_other_request_from_its_decision() -> None:
    class Failing(HeldPool):
        def decided(self, ticket: Ticket, decision: Pick | Rejection) -> None:
            super().decided(ticket, decision)
            if ticket.request_id == "r0":
                raise RuntimeError("the stream is gone")

    settings = ONE_SLOT._replace(room=RoomLimits(slots=2.0, queued=0.0, max_wait_seconds=math.inf))
    pool = Failing(A, settings=settings)
    pool.page(A, running=2.0)
    for number in range(2):
        pool.submit(f"r{number}")
    pool.now = 1.0
    pool.page(A, running=0.0)
    pool.settle()
    assert pool.order() == ["r0", "r1"]


# -- hold at zero ------------------------------------------------------------------------------------------------------

AT_ZERO = ONE_SLOT._replace(limits=FlowLimits(empty_ttl=30.0))


def test_an_empty_pool_refuses_at_once_unless_it_holds_requests() -> None:
    refusing, off = HeldPool(), HeldPool(settings=AT_ZERO._replace(enabled=False))
    for pool in (refusing, off):
        pool.submit("r")
        assert (pool.refusal("r").reason, pool.refusal("r").status) == ("no_endpoints", 503)
        assert pool.zeros() == []


def test_an_empty_pool_holds_requests_until_the_first_endpoint_comes_and_they_leave_in_order_over_its_room() -> None:
    pool = HeldPool(settings=AT_ZERO)
    for name, priority in {"low": -1, "zero": 0, "high": 10, "second-zero": 0}.items():
        pool.submit(name, priority=priority)
    assert pool.zeros() == [1]
    assert (pool.held.waiting, pool.pipeline.waiting) == (4, 4)
    pool.advance(20.0)
    pool.set_endpoints(A)
    pool.settle()
    assert pool.order() == []  # it was never scraped
    pool.page(A)
    pool.settle()
    assert pool.order() == ["high"]
    assert drained(pool, "high") == ["zero", "second-zero", "low"]
    assert pool.zeros() == [1]


def test_a_request_that_no_endpoint_comes_for_is_refused_with_503_when_the_ttl_of_an_empty_pool_ends() -> None:
    pool = HeldPool(settings=AT_ZERO)
    pool.submit("r", ttl=3.0)
    pool.advance(29.9)
    assert pool.held.waiting == 1
    pool.advance(0.1)
    rejection = check_refusal(pool, "r", NO_ENDPOINTS, "30000")
    assert rejection.reason == "no_endpoints"


def test_requests_at_zero_are_reported_once_for_each_time_without_endpoints() -> None:
    pool = HeldPool(settings=AT_ZERO)
    pool.submit("r0").cancel()
    pool.submit("r1")
    assert pool.zeros() == [1]
    pool.set_endpoints(A)
    pool.page(A)
    pool.settle()
    assert pool.at("r1") == A
    pool.submit("r2")
    pool.submit("r3")
    assert pool.zeros() == [1]
    pool.set_endpoints()
    pool.settle()
    assert pool.zeros() == [1, 2]
    pool.submit("r4")
    assert pool.zeros() == [1, 2]
    assert pool.held.waiting == 3


def test_the_time_without_endpoints_is_not_counted_against_a_ttl() -> None:
    pool = HeldPool(settings=AT_ZERO)
    pool.submit("r", ttl=5.0)
    pool.advance(25.0)
    pool.set_endpoints(A)
    pool.page(A, running=9.0)
    pool.settle()
    pool.advance(4.9)
    assert pool.held.waiting == 1
    pool.advance(0.1)
    check_refusal(pool, "r", EXPIRED, "30000")


def test_a_pool_whose_endpoints_are_all_down_holds_requests_too() -> None:
    pool = HeldPool(A, settings=AT_ZERO)
    pool.store.failed(A, "refused", "", pool.now, 0.0)
    pool.submit("r")
    assert (pool.zeros(), pool.held.waiting) == ([1], 1)
    pool.now = 1.0
    pool.page(A)
    pool.settle()
    assert pool.at("r") == A


def test_a_client_that_leaves_as_the_last_endpoint_does_costs_no_other_request_its_wait() -> None:
    pool = HeldPool(A, settings=AT_ZERO._replace(room=RoomLimits(slots=1.0, queued=0.0)))
    pool.page(A, running=1.0, **{KV_USAGE: 0.9, BLOCKS: 1_000.0, BLOCK_SIZE: 16.0})
    large = pool.submit("large", tokens=10_000)
    pool.submit("small", tokens=100)
    pool.page(A, running=0.5, **{KV_USAGE: 0.9, BLOCKS: 1_000.0, BLOCK_SIZE: 16.0})
    pool.set_endpoints()
    large.cancel()
    assert pool.held.waiting == 1
    assert "small" not in pool.decisions


# -- reload and shutdown -----------------------------------------------------------------------------------------------


def test_a_reload_of_smaller_limits_loses_no_held_request() -> None:
    pool = HeldPool(A)
    pool.fill(A)
    for number in range(5):
        pool.submit(f"r{number}")
    pool.held.apply(limits(max_requests=1, band=BandLimits(ttl=1.0), quantum=1))
    pool.settle()
    assert pool.held.waiting == 5
    assert drained(pool, "first-at-a:1") == [f"r{number}" for number in range(5)]


def test_a_reload_that_holds_no_requests_any_more_dispatches_all() -> None:
    pool = HeldPool(A, B)
    pool.fill(A, B)
    for number in range(5):
        pool.submit(f"r{number}")
    pool.held.apply(ONE_SLOT._replace(enabled=False))
    pool.settle()
    assert (pool.held.waiting, pool.store.in_flight) == (0, 7)
    pool.submit("next")
    assert pool.pick("next").dispatched == ""


def test_a_reload_with_more_room_dispatches_at_once() -> None:
    pool = HeldPool(A)
    pool.fill(A)
    pool.submit("r")
    pool.held.apply(ONE_SLOT._replace(room=ONE_SLOT.room._replace(slots=2.0)))
    pool.settle()
    assert pool.at("r") == A


def test_a_larger_share_of_the_slots_dispatches_at_once() -> None:
    pool = HeldPool(A, settings=ONE_SLOT._replace(room=ONE_SLOT.room._replace(slots=4.0)))
    pool.held.share = 0.25
    pool.fill(A)
    pool.submit("r")
    pool.settle()
    assert not pool.at("r")
    pool.held.share = 1.0
    pool.settle()
    assert pool.at("r") == A


def test_a_held_request_keeps_the_longest_wait_that_the_proxy_was_given() -> None:
    pool = HeldPool(A, settings=limits(hold=8.0))
    pool.fill(A)
    assert pool.submit("r").longest_wait == 8.0
    assert pool.submit("own", ttl=3.0).longest_wait == 3.0
    pool.held.apply(limits(hold=60.0))
    assert pool.submit("later").longest_wait == 60.0
    pool.advance(8.0)
    check_refusal(pool, "r", EXPIRED, "8000")
    assert pool.held.waiting == 1


def test_a_hold_limit_of_0_holds_nothing() -> None:
    pool = HeldPool(A, settings=limits(hold=0.0, empty_ttl=30.0))
    pool.fill(A)
    pool.submit("r")
    check_refusal(pool, "r", EXPIRED, None)
    pool.set_endpoints()
    pool.submit("at-zero")
    check_refusal(pool, "at-zero", NO_ENDPOINTS, None)


def test_shutting_down_refuses_what_is_held_and_dispatches_what_arrives_while_there_is_room() -> None:
    pool = HeldPool(A)
    pool.fill(A)
    for number in range(3):
        pool.submit(f"r{number}", priority=number)
    pool.now = 2.0
    pool.held.shut_down(pool.now)
    for number in range(3):
        check_refusal(pool, f"r{number}", SHUTTING_DOWN, "2000")
    assert list(pool.decisions)[1:] == ["r2", "r1", "r0"]
    pool.submit("late")
    check_refusal(pool, "late", SHUTTING_DOWN, None)
    pool.end("first-at-a:1")
    pool.submit("with-room")
    assert pool.at("with-room") == A
    assert (pool.held.waiting, pool.held.planned_blocks) == (0, 0)


# -- the endpoints change ----------------------------------------------------------------------------------------------


def test_requests_of_an_endpoint_that_leaves_are_planned_to_the_others() -> None:
    pool = HeldPool(A, B)
    pool.fill(A, B)
    for number in range(4):
        pool.submit(f"r{number}", chain=range(number * 100, number * 100 + 50), tokens=3_200)
    assert {request.endpoint for request in pool.held._requests.values()} == {A, B}
    pool.set_endpoints(B)
    pool.settle()
    assert {request.endpoint for request in pool.held._requests.values()} == {B}
    assert pool.held.planned_blocks == 200
    pool.end("first-at-a:1")
    assert drained(pool, "first-at-b:1") == ["r0", "r1", "r2", "r3"]
    assert (pool.held.planned_blocks, pool.store.in_flight, pool.pipeline.in_flight) == (0, 0, 0)


def test_a_new_endpoint_gets_requests_that_waited_for_the_others() -> None:
    pool = HeldPool(A)
    pool.fill(A)
    for number in range(3):
        pool.submit(f"r{number}")
    pool.set_endpoints(A, B)
    pool.page(B)
    pool.settle()
    assert [pool.at(f"r{number}") for number in range(3)] == [B, "", ""]


def test_a_queue_of_many_requests_is_planned_again_in_steps() -> None:
    pool = HeldPool(A, settings=limits(quantum=1))
    pool.fill(A)
    count = 2 * REPLANNED_PER_STEP + 10
    for number in range(count):
        pool.submit(f"r{number}")
    pool.set_endpoints(A, B)
    pool.page(B)
    runs = pool.runs
    pool.settle()
    assert pool.runs - runs == 3
    assert pool.held._control.stale == 0
    assert pool.held.waiting == count - 1


def test_requests_whose_last_endpoint_leaves_are_refused_with_503_and_the_others_stay() -> None:
    pool = HeldPool(A, B)
    pool.fill(A, B)
    pool.submit("only-a", subset=frozenset({A}))
    pool.submit("any")
    pool.now = 1.0
    pool.set_endpoints(B)
    pool.settle()
    rejection = check_refusal(pool, "only-a", NO_ENDPOINTS, "1000")
    assert rejection.reason == "subset_empty"
    assert pool.held.waiting == 1


def test_an_endpoint_that_goes_stale_while_requests_wait_is_noticed_without_any_other_event() -> None:
    pool = HeldPool(A, B, stale_after=5.0)
    pool.fill(A, B)
    pool.submit("r", chain=range(10), tokens=640)
    assert pool.held._requests[pool.tickets["r"]].endpoint == A
    pool.advance(4.0)
    pool.page(B, running=1.0)
    pool.advance(1.0)
    assert pool.held._requests[pool.tickets["r"]].endpoint == B


def test_the_trial_of_an_ejected_endpoint_takes_a_request_that_waits_when_it_is_due() -> None:
    pool = HeldPool(A, B)
    for _ in range(3):
        pool.store.request_failed(B, OF_PEER, "status_5xx", pool.now)
    (errors,) = [view.errors for view in pool.store.snapshot(pool.now).endpoints if view.errors]
    assert errors.trial_at is not None
    pool.fill(A)
    pool.submit("r")
    pool.advance(errors.trial_at - 0.1)
    assert not pool.at("r")
    pool.advance(0.1)
    assert pool.at("r") == B


def test_a_request_that_the_proxy_allows_at_an_ejected_endpoint_only_passes_a_queue_for_the_others() -> None:
    pool = HeldPool(A, B)
    for _ in range(3):
        pool.store.request_failed(B, OF_PEER, "status_5xx", pool.now)
    pool.fill(A)
    pool.submit("waits")
    pool.submit("only-b", subset=frozenset({B}))
    assert (pool.at("only-b"), pool.held.waiting, pool.outcomes()) == (B, 1, [DIRECT])


def test_a_restarted_server_has_no_room_that_its_predecessor_has_taught() -> None:
    pool = HeldPool(A, settings=HoldingSettings(room=RoomLimits(max_wait_seconds=math.inf)))
    pool.page(A, running=2.0, waiting=9.0)
    pool.submit("r")
    assert not pool.at("r")
    pool.now = 1.0
    pool.page(A, running=2.0, **{START_TIME: 2.0})  # slots are unknown again, and so limit nothing
    pool.settle()
    assert pool.at("r") == A


def test_a_faster_prefill_rate_of_the_pool_gives_room_at_once() -> None:
    pool = HeldPool(A, B, C, settings=HoldingSettings(), rate=RateLimits(default=100.0))
    pool.submit("first", tokens=1_000, subset=frozenset({C}))
    pool.submit("r", tokens=1_000, subset=frozenset({C}))
    assert pool.due == 9.85
    pool.now = 1.0
    for address in (A, B):  # their pages teach 10,000 tokens a second
        pool.page(address, **{PROMPT_TOKENS: 0.0, PREFILLS: 0.0, PREFILL_SECONDS: 0.0})
    pool.now = 2.0
    for address in (A, B):
        pool.page(address, **{PROMPT_TOKENS: 1e6, PREFILLS: 1_000.0, PREFILL_SECONDS: 100.0})
    pool.settle()
    assert pool.at("r") == C


# -- which endpoint ----------------------------------------------------------------------------------------------------


def test_a_request_waits_for_the_endpoints_that_the_proxy_allows() -> None:
    pool = HeldPool(A, B)
    pool.fill(A, B)
    pool.submit("only-b", subset=frozenset({B}))
    pool.end("first-at-a:1")
    pool.settle()
    assert not pool.at("only-b")
    pool.end("first-at-b:1")
    pool.settle()
    assert pool.at("only-b") == B


def test_a_model_that_no_server_lists_is_held_like_any_other_and_reported_once_for_each_request() -> None:
    pool = HeldPool(A)
    pool.store.served_models(A, frozenset({"m"}), 0.0)
    pool.fill(A)
    pool.submit("r", model="unknown")
    assert (pool.at("r"), pool.unlisted) == ("", ["unknown"])
    pool.end("first-at-a:1")
    pool.settle()
    assert (pool.at("r"), pool.unlisted) == (A, ["unknown"])


def test_a_request_waits_for_the_endpoints_that_list_its_model() -> None:
    pool = HeldPool(A, B)
    pool.store.served_models(A, frozenset({"m", "only-a"}), 0.0)
    pool.store.served_models(B, frozenset({"m"}), 0.0)
    pool.fill(A, B)
    pool.submit("r", model="only-a")
    pool.end("first-at-b:1")
    pool.settle()
    assert not pool.at("r")
    pool.end("first-at-a:1")
    pool.settle()
    assert pool.at("r") == A


def test_a_filter_of_the_profile_sends_no_request_to_an_endpoint_without_room() -> None:
    """The affinity profile prefers an endpoint that got the prefix meanwhile."""
    pool = HeldPool(A, B, profile=build(PRESETS["affinity"]))
    pool.fill(A, B)
    pool.submit("r", chain=range(10), tokens=640)
    pool.index.record(B, range(10))
    pool.end("first-at-a:1")
    pool.settle()
    decision = pool.pick("r")
    assert (decision.endpoint, decision.decided_by) == (A, ROOM)


def test_a_pool_of_blind_endpoints_serves_by_the_requests_that_it_has_sent() -> None:
    settings = HoldingSettings(room=RoomLimits(blind_requests=2.0, max_wait_seconds=math.inf))
    pool = HeldPool(A, B, settings=settings, stale_after=5.0)
    pool.now = 4.0
    for _ in range(3):
        for address in (A, B):
            pool.store.failed(address, "status", "500", pool.now, 0.0)
    pool.now = 6.0
    assert {view.health for view in pool.store.snapshot(pool.now).endpoints} == {Health.BLIND}
    for number in range(6):
        pool.submit(f"r{number}")
    assert (len(pool.order()), pool.held.waiting) == (4, 2)
    pool.end("r0")
    pool.settle()
    assert (len(pool.order()), pool.held.waiting) == (5, 1)
    assert set(drained(pool, "r1")) == {"r2", "r3", "r4", "r5"}


# -- clock and wakes ---------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_loses_no_request_and_one_that_jumps_expires_what_waits() -> None:
    pool = HeldPool(A, settings=limits(band=BandLimits(ttl=60.0)), stale_after=1e9)
    pool.now = 100.0
    pool.fill(A)
    pool.submit("r0")
    pool.now = 50.0
    pool.submit("r1")
    pool.settle()
    assert pool.held.waiting == 2
    pool.end("first-at-a:1")
    pool.settle()
    decision = pool.pick("r0")
    assert (decision.endpoint, decision.waited_seconds, decision.dispatched) == (A, 0.0, PLANNED)
    pool.now = 1e6
    pool.settle()
    check_refusal(pool, "r1", EXPIRED, "999900000")
    pool.submit("later")
    assert pool.held.waiting == 1
    pool.end("r0")
    pool.settle()
    assert pool.at("later") == A


def test_the_shell_is_woken_once_for_all_changes_of_one_moment_and_not_while_nothing_waits() -> None:
    pool = HeldPool(A, B)
    pool.fill(A, B)
    pool.page(A, running=1.0)
    assert pool.wakes == 0
    pool.submit("r0", ttl=50.0)
    pool.submit("r1", ttl=50.0)
    assert (pool.wakes, pool.due) == (1, 50.0)
    for _ in range(3):
        pool.page(A, running=1.0)
        pool.page(B, running=1.0)
    assert (pool.wakes, pool.due) == (2, -math.inf)
    pool.settle()
    assert (pool.wakes, pool.runs, pool.due) == (3, 1, 50.0)


def test_a_dispatch_wakes_for_no_other_run() -> None:
    pool = HeldPool(A)
    pool.fill(A)
    pool.submit("r0", ttl=50.0)
    pool.submit("r1", ttl=60.0)
    pool.end("first-at-a:1")
    pool.settle()
    assert pool.at("r0") == A
    assert (pool.runs, pool.due) == (1, 60.0)


def test_a_run_that_is_not_due_changes_nothing() -> None:
    pool = HeldPool(A)
    pool.fill(A)
    pool.held.run(0.0)
    pool.submit("r")
    due = pool.due
    pool.held.run(0.5)
    assert (pool.held.waiting, pool.due) == (1, due)


# -- what is reported --------------------------------------------------------------------------------------------------


def test_the_caller_the_model_and_the_requested_model_are_reported_as_the_client_named_them() -> None:
    pool = HeldPool(A, settings=limits(max_flows=0))
    pool.fill(A)
    pool.submit("r", caller="team-a", model="served", requested="named", priority=3)
    pool.end("first-at-a:1")
    pool.settle()
    (decided,) = [event for event in pool.events if isinstance(event, FlowDecided)]
    assert (decided.caller, decided.model, decided.requested) == ("team-a", "served", "named")
    assert (decided.priority, decided.outcome, decided.tokens) == (3, PLANNED, 100 + PRIOR_OUTPUT_TOKENS)


def test_a_report_has_the_rooms_of_now_also_where_nothing_waits_and_wakes_where_it_finds_other_endpoints() -> None:
    pool = HeldPool(A, B, settings=HoldingSettings(room=RoomLimits(slots=3.0, queued=0.0)))
    pool.fill(A)
    rooms = {each.address: each.room.requests for each in pool.held.report(pool.now).endpoints}
    assert rooms == {A: 2.0, B: 3.0}
    assert pool.held.report(pool.now).requests == 0
    assert pool.wakes == 0


# -- replicas ----------------------------------------------------------------------------------------------------------


def test_of_two_replicas_the_one_that_sent_last_to_an_endpoint_waits_for_the_turn_of_the_other() -> None:
    settings = HoldingSettings(room=RoomLimits(max_wait_seconds=0.25, hold_from_seconds=0.0))
    pool = HeldPool(A, settings=settings)
    pool.page(A, running=0)
    pool.store.peer_started(A, 100, 0, pool.now, pool.now)
    pool.submit("own", tokens=900)  # one second of work at A, with that of the peer
    waits = pool.submit("waits", tokens=100)
    assert waits.pending
    pool.advance(0.76)
    assert waits.pending
    pool.advance(TURN_SECONDS)
    assert pool.pick("waits").endpoint == A


def test_the_replica_whose_peer_sent_last_does_not_wait_for_longer() -> None:
    settings = HoldingSettings(room=RoomLimits(max_wait_seconds=0.25, hold_from_seconds=0.0))
    pool = HeldPool(A, settings=settings)
    pool.page(A, running=0)
    pool.submit("own", tokens=900)
    waits = pool.submit("waits", tokens=100)
    pool.store.peer_started(A, 100, 0, pool.now, pool.now)
    pool.advance(0.76)
    assert pool.pick("waits").endpoint == A
    assert not waits.pending
