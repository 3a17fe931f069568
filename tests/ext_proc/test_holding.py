"""How long a proxy waits for the answer of a held request, by its mode and its limits."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from agent.pick.decision import Pick
from agent.requests.rejections import Rejection
from agent.requests.response import Response
from agent.serve.ext_proc.actions import (
    Action,
    ChangeResponse,
    Continue,
    ExtendTimeout,
    Mode,
    Phase,
    Respond,
    Route,
    Schedule,
)
from agent.serve.ext_proc.body_budget import BodyBudget
from agent.serve.ext_proc.holding import FOREVER, RENDERED, ProxyTimeouts, has_timer, hold_limit, override
from agent.serve.ext_proc.messages import RouteCache, changed_response, extended
from agent.serve.ext_proc.session import HOLD_LIMIT, Session, SessionConfig

BODY = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]})
HEADERS = {":path": "/v1/chat/completions", ":method": "POST", "x-request-id": "r1"}
WAITED = "x-llm-d-flow-queue-duration-ms"
KEPT = (Mode.BUFFERED, Mode.PARTIAL, Mode.HOLD, Mode.FULL_DUPLEX)  # where the proxy or the agent has the body

seconds = st.floats(0.001, 3600)
timeouts = st.builds(ProxyTimeouts, seconds, st.just(0.0) | seconds, st.just(0.0) | seconds)
modes = st.sampled_from(Mode)


def a_pick(waited: float = 0.0) -> Pick:
    pick = Pick("r1", "10.0.0.1:8000", (), 1, 0, 0, "tie", ("10.0.0.1:8000",), (0.0,), {}, 1)
    return pick._replace(waited_seconds=waited)


@pytest.mark.parametrize(
    ("mode", "limits", "limit"),
    [
        (Mode.BUFFERED, RENDERED, 598.0),
        (Mode.FULL_DUPLEX, RENDERED, 898.0),  # by the idle limit of the stream
        (Mode.FULL_DUPLEX, ProxyTimeouts(5.0, 0.0, 0.0), FOREVER),
        (Mode.BUFFERED, ProxyTimeouts(5.0, 0.0, 900.0), 3.75),  # cannot be extended
        (Mode.NONE, ProxyTimeouts(5.0, 4.0, 0.0), 3.75),  # an extension to less is none
        (Mode.STREAMED, ProxyTimeouts(5.0, 20.0, 10.0), 8.0),
        (Mode.PARTIAL, ProxyTimeouts(600.0, 0.0, 0.0), 598.0),  # a long message timeout of another proxy
        (Mode.HOLD, RENDERED, 598.0),
    ],
)
def test_a_request_is_held_for_less_than_the_proxy_waits(mode: Mode, limits: ProxyTimeouts, limit: float) -> None:
    assert hold_limit(mode, limits) == limit


def test_a_body_that_still_arrives_is_held_for_less_than_the_message_timeout() -> None:
    assert hold_limit(Mode.HOLD, RENDERED, body_follows=True) == 3.75
    assert override(Mode.HOLD, RENDERED, 3.75, body_follows=True) is None


@pytest.mark.parametrize(
    ("mode", "limits", "wait", "sent"),
    [
        (Mode.BUFFERED, RENDERED, 60.0, 65.0),
        (Mode.BUFFERED, RENDERED, 598.0, 600.0),  # never above what the proxy accepts
        (Mode.BUFFERED, RENDERED, 3.0, None),  # ends before the timer does
        (Mode.BUFFERED, RENDERED, 4.5, 9.5),
        (Mode.FULL_DUPLEX, RENDERED, 60.0, None),  # has no timer
        (Mode.BUFFERED, ProxyTimeouts(5.0, 0.0, 0.0), 3.75, None),
    ],
)
def test_the_timer_is_extended_by_what_the_request_may_wait(
    mode: Mode, limits: ProxyTimeouts, wait: float, sent: float | None
) -> None:
    assert override(mode, limits, wait) == sent


@given(mode=modes, limits=timeouts, wanted=st.floats(0, 10_000), follows=st.booleans())
def test_whatever_the_limits_the_answer_comes_before_the_proxy_gives_up(
    mode: Mode, limits: ProxyTimeouts, wanted: float, follows: bool
) -> None:
    limit = hold_limit(mode, limits, body_follows=follows)
    assert limit > 0
    wait = min(wanted, limit)
    sent = override(mode, limits, wait, body_follows=follows)
    if sent is not None:
        assert limits.message < sent <= limits.max_message  # Envoy ignores any other
        assert has_timer(mode)
    if has_timer(mode):
        assert wait < (limits.message if sent is None else sent)
    if limits.stream_idle:
        assert wait < limits.stream_idle
    if not has_timer(mode) and not limits.stream_idle:
        assert math.isinf(limit)


@given(mode=modes, limits=timeouts, waits=st.tuples(seconds, seconds))
def test_a_longer_wait_never_has_a_shorter_timer(mode: Mode, limits: ProxyTimeouts, waits: tuple[float, float]) -> None:
    short, long = (override(mode, limits, wait) for wait in sorted(waits))
    assert (short or 0.0) <= (long or 0.0)


@given(value=st.floats(0.001, 3600))
def test_the_message_that_extends_the_timer_has_nothing_else(value: float) -> None:
    message = pb.ProcessingResponse.FromString(extended(value))
    assert message.override_message_timeout.ToMilliseconds() == max(1, int(value * 1000))
    assert message.WhichOneof("response") is None


# -- sessions --------------------------------------------------------------------------------------------------------


def a_session(budget: BodyBudget | None = None, limits: ProxyTimeouts = RENDERED, **more: Any) -> Session:
    return Session(SessionConfig(timeouts=limits, **more), lambda: "made", budget or BodyBudget(1 << 30))


def scheduled(session: Session, mode: Mode, body: bytes = BODY) -> Schedule:
    actions = [
        *session.request_headers(HEADERS, end_of_stream=False, mode=mode),
        *session.request_body(body, end_of_stream=True),
    ]
    (schedule,) = [action for action in actions if isinstance(action, Schedule)]
    return schedule


@pytest.mark.parametrize("mode", list(Mode))
def test_a_scheduled_request_has_the_limit_of_its_mode(mode: Mode) -> None:
    assert scheduled(a_session(), mode).request.hold_limit == hold_limit(mode, RENDERED)


def test_a_request_that_is_scheduled_before_its_body_has_arrived_has_the_limit_of_that() -> None:
    session = a_session()
    session.request_headers(HEADERS, end_of_stream=False, mode=Mode.HOLD)
    (schedule,) = session.request_body(bytes(HOLD_LIMIT + 1), end_of_stream=False)
    assert isinstance(schedule, Schedule)
    assert schedule.request.hold_limit == hold_limit(Mode.HOLD, RENDERED, body_follows=True)
    assert session.held(3.0) == ()


@pytest.mark.parametrize("mode", list(Mode))
def test_a_held_request_extends_the_timer_where_there_is_one(mode: Mode) -> None:
    session = a_session()
    scheduled(session, mode)
    assert session.held(60.0) == ((ExtendTimeout(65.0),) if has_timer(mode) else ())


@pytest.mark.parametrize("decision", [a_pick(), Rejection("expired", "")])
def test_a_decided_request_extends_nothing(decision: Pick | Rejection) -> None:
    session = a_session()
    scheduled(session, Mode.BUFFERED)
    session.decided(decision)
    assert session.held(60.0) == ()


def test_a_request_that_waited_has_the_time_in_the_metadata_of_its_pick_and_no_other_has() -> None:
    for waited, value in ((0.0, ""), (0.0001, "1"), (1.5, "1500")):
        session = a_session()
        scheduled(session, Mode.BUFFERED)
        (route,) = session.decided(a_pick(waited))
        assert isinstance(route, Route)
        assert route.waited == value
        message = pb.ProcessingResponse.FromString(RouteCache().route(route))
        assert dict(message.dynamic_metadata["envoy.lb"]).get(WAITED, "") == value
        response = session.response_headers(Response(200, "", False, "", 1, False))[0]
        assert response == (ChangeResponse(((WAITED, value),), "") if value else Continue(Phase.RESPONSE_HEADERS))


def test_the_route_of_a_request_that_waited_is_not_that_of_another() -> None:
    cache = RouteCache()
    plain = Route(Phase.REQUEST_BODY, "10.0.0.1:8000", (), ())
    first = cache.route(plain)
    assert cache.route(plain._replace(waited="7")) != first
    assert cache.route(plain) == first


def test_the_load_report_is_removed_from_a_response_that_waited_too() -> None:
    session = a_session(reports=True)
    scheduled(session, Mode.BUFFERED)
    session.decided(a_pick(2.0))
    change = session.response_headers(Response(200, "", False, "", 1, False), "a report")[0]
    assert change == ChangeResponse(((WAITED, "2000"),), "endpoint-load-metrics")
    mutation = pb.ProcessingResponse.FromString(changed_response(change)).response_headers.response.header_mutation
    assert [option.header.key for option in mutation.set_headers] == [WAITED]
    assert list(mutation.remove_headers) == ["endpoint-load-metrics"]


# -- the budget ------------------------------------------------------------------------------------------------------

Event = str
EVENTS = ("chunk", "last", "held", "pick", "reject", "sent", "fail", "close")


def perform(session: Session, event: Event) -> tuple[Action, ...]:
    match event:
        case "chunk" | "last":
            return session.request_body(b"x" * 10, end_of_stream=event == "last")
        case "held":
            return session.held(60.0)
        case "pick":
            return session.decided(a_pick(1.0))
        case "reject":
            return session.decided(Rejection("expired", ""))
        case "sent":
            session.body_sent()
        case "fail":
            return session.failed()
        case "close":
            session.closed()
    return ()


@given(mode=modes, events=st.lists(st.sampled_from(EVENTS), max_size=12))
def test_in_any_order_of_events_what_a_request_counts_is_given_back_exactly_once(
    mode: Mode, events: list[Event]
) -> None:
    budget = BodyBudget(1000)
    other = a_session(budget)
    other.request_headers(HEADERS, end_of_stream=False, mode=Mode.FULL_DUPLEX)
    other.request_body(b"y" * 100, end_of_stream=False)
    session = a_session(budget)
    session.request_headers(HEADERS, end_of_stream=False, mode=mode)
    for event in events:
        perform(session, event)
        assert budget.used >= 100
    session.closed()
    assert budget.used == 100


@pytest.mark.parametrize("mode", KEPT)
def test_a_body_counts_while_its_request_is_held_wherever_it_is(mode: Mode) -> None:
    budget = BodyBudget(1000)
    session = a_session(budget)
    scheduled(session, mode)
    session.held(60.0)
    assert budget.used == len(BODY)
    session.decided(a_pick(1.0))
    if mode is Mode.FULL_DUPLEX:
        assert budget.used == len(BODY)  # until it was sent back
        session.body_sent()
    assert budget.used == 0


@pytest.mark.parametrize("mode", [Mode.STREAMED, Mode.HOLD])
def test_chunks_that_the_proxy_keeps_during_the_hold_count_and_are_refused_over_the_budget(mode: Mode) -> None:
    budget = BodyBudget(HOLD_LIMIT + 100)
    session = a_session(budget)
    session.request_headers(HEADERS, end_of_stream=False, mode=mode)
    if mode is Mode.HOLD:
        session.request_body(bytes(HOLD_LIMIT + 1), end_of_stream=False)
    before = budget.used
    assert session.request_body(bytes(50), end_of_stream=False) == ()
    assert budget.used == before + 50
    (respond,) = session.request_body(bytes(HOLD_LIMIT + 100), end_of_stream=False)
    assert isinstance(respond, Respond)
    assert (respond.status, respond.reason) == (429, "body_budget")
    assert budget.used == 0


def test_data_of_an_upgrade_that_is_held_counts_until_it_was_sent_back() -> None:
    budget = BodyBudget(100)
    session = a_session(budget)
    upgrade = {":path": "/v1/realtime", ":method": "GET", "upgrade": "websocket"}
    session.request_headers(upgrade, end_of_stream=False, mode=Mode.FULL_DUPLEX)
    assert session.request_body(bytes(60), end_of_stream=False) == ()
    assert budget.used == 60
    session.decided(a_pick(1.0))
    session.body_sent()
    assert budget.used == 0
