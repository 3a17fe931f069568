"""One ext_proc conversation: every way in which Envoy may hold it, and every way in which it may break it."""

from __future__ import annotations

import gzip
import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines.report import REQUEST_HEADER
from agent.events.exchange import NO_USAGE, TokenUsage
from agent.pick.decision import Pick
from agent.requests.rejections import Rejection
from agent.requests.response import Response
from agent.requests.ticket import Request
from agent.serve.ext_proc.actions import (
    CHUNK_BYTES,
    Action,
    BodyEnded,
    BodyStarted,
    ChangeResponse,
    Continue,
    Mode,
    Phase,
    ProtocolViolation,
    Report,
    Respond,
    ResponseStarted,
    Route,
    Schedule,
    SendBody,
    chunks,
)
from agent.serve.ext_proc.body_budget import BodyBudget
from agent.serve.ext_proc.headers import subset_of
from agent.serve.ext_proc.holding import RENDERED, hold_limit
from agent.serve.ext_proc.session import HOLD_LIMIT, Session, SessionConfig

HEADERS = {":path": "/v1/chat/completions", ":method": "POST", "x-request-id": "r1"}
BODY = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]})
READING = (Mode.BUFFERED, Mode.FULL_DUPLEX, Mode.HOLD)


def a_pick(endpoint: str = "10.0.0.1:8000", fallbacks: tuple[str, ...] = ()) -> Pick:
    return Pick("r1", endpoint, fallbacks, 1, 0, 0, "tie", (endpoint,), (0.0,), {}, 1)


def a_session(budget: BodyBudget | None = None, **settings: Any) -> Session:
    return Session(SessionConfig(**settings), lambda: "made-up", budget or BodyBudget(1 << 30))


def scheduled(session: Session, mode: Mode, body: bytes = BODY) -> list[Action]:
    actions = list(session.request_headers(HEADERS, end_of_stream=False, mode=mode))
    return [*actions, *session.request_body(body, end_of_stream=True)]


def refusal(actions: Any) -> tuple[Respond, dict[str, Any]]:
    (respond,) = [action for action in actions if isinstance(action, Respond)]
    error = orjson.loads(respond.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert ("content-type", "application/json") in respond.headers
    return respond, error


def test_a_buffered_body_is_asked_for_and_routed_with_the_answer_to_the_body() -> None:
    session = a_session()
    assert session.request_headers(HEADERS, end_of_stream=False, mode=Mode.BUFFERED) == (
        Continue(Phase.REQUEST_HEADERS),
    )
    (schedule,) = session.request_body(BODY, end_of_stream=True)
    assert isinstance(schedule, Schedule)
    limit = hold_limit(Mode.BUFFERED, RENDERED)
    assert schedule.request == Request("r1", "/v1/chat/completions", BODY, method="POST", hold_limit=limit)
    assert session.decided(a_pick()) == (Route(Phase.REQUEST_BODY, "10.0.0.1:8000", (), ()),)


def test_in_full_duplex_the_headers_wait_for_the_body_and_the_body_comes_back() -> None:
    session = a_session()
    assert session.request_headers(HEADERS, end_of_stream=False, mode=Mode.FULL_DUPLEX) == ()
    assert session.request_body(BODY[:5], end_of_stream=False) == ()
    (schedule,) = session.request_body(BODY[5:], end_of_stream=True)
    assert isinstance(schedule, Schedule)
    route = Route(Phase.REQUEST_HEADERS, "10.0.0.1:8000", (), ())
    assert session.decided(a_pick()) == (route, SendBody(Phase.REQUEST_BODY, BODY, end_of_stream=True))


def test_trailers_end_a_body_and_are_answered_after_it() -> None:
    session = a_session()
    session.request_headers(HEADERS, end_of_stream=False, mode=Mode.FULL_DUPLEX)
    assert session.request_body(BODY, end_of_stream=False) == ()
    (schedule,) = session.request_trailers()
    assert isinstance(schedule, Schedule)
    _, echo, trailers = session.decided(a_pick())
    assert echo == SendBody(Phase.REQUEST_BODY, BODY, end_of_stream=False)
    assert trailers == Continue(Phase.REQUEST_TRAILERS)


def test_a_conversation_that_does_not_say_its_mode_is_full_duplex() -> None:
    session = a_session()
    assert session.request_headers(HEADERS, end_of_stream=False) == ()
    session.request_body(BODY, end_of_stream=True)
    assert [type(action) for action in session.decided(a_pick())] == [Route, SendBody]


def test_a_held_stream_gets_the_pick_and_then_one_answer_per_chunk() -> None:
    session = a_session()
    session.request_headers(HEADERS, end_of_stream=False, mode=Mode.HOLD)
    session.request_body(BODY[:5], end_of_stream=False)
    session.request_body(BODY[5:], end_of_stream=True)
    route, *answers = session.decided(a_pick())
    assert isinstance(route, Route)
    assert route.phase is Phase.REQUEST_HEADERS
    assert answers == [Continue(Phase.REQUEST_BODY)] * 2


def test_a_held_stream_is_picked_for_before_the_proxy_has_to_stop_reading() -> None:
    session = a_session()
    session.request_headers(HEADERS, end_of_stream=False, mode=Mode.HOLD)
    (schedule,) = session.request_body(b" " * (HOLD_LIMIT + 1), end_of_stream=False)
    assert isinstance(schedule, Schedule)
    assert schedule.request.body is None
    assert len(session.decided(a_pick())) == 2
    assert session.request_body(b"}", end_of_stream=True) == (Continue(Phase.REQUEST_BODY),)


@pytest.mark.parametrize(("body", "whole"), [(BODY, True), (BODY[:9], False)])
def test_a_part_of_a_body_is_picked_for_without_the_prompt_and_never_taken_for_unreadable(
    body: bytes, whole: bool
) -> None:
    session = a_session()
    assert session.request_headers(HEADERS, end_of_stream=False, mode=Mode.PARTIAL) == (
        Continue(Phase.REQUEST_HEADERS),
    )
    (schedule,) = session.request_body(body, end_of_stream=whole)
    assert isinstance(schedule, Schedule)
    assert (schedule.request.body is not None) is whole
    assert session.decided(a_pick()) == (Route(Phase.REQUEST_BODY, "10.0.0.1:8000", (), ()),)


@pytest.mark.parametrize("mode", [Mode.NONE, Mode.STREAMED])
def test_where_the_body_comes_after_the_pick_the_headers_decide(mode: Mode) -> None:
    session = a_session()
    (schedule,) = session.request_headers(HEADERS, end_of_stream=False, mode=mode)
    assert isinstance(schedule, Schedule)
    (route,) = session.decided(a_pick())
    assert isinstance(route, Route)
    assert route.phase is Phase.REQUEST_HEADERS


@pytest.mark.parametrize("mode", list(Mode))
def test_a_request_without_a_body_is_picked_for_at_its_headers(mode: Mode) -> None:
    session = a_session()
    (schedule,) = session.request_headers({":method": "GET", ":path": "/v1/models"}, end_of_stream=True, mode=mode)
    assert isinstance(schedule, Schedule)
    assert schedule.request.body is None
    (route,) = session.decided(a_pick())
    assert isinstance(route, Route)
    assert (route.phase, route.add) == (Phase.REQUEST_HEADERS, (("x-request-id", "made-up"),))


@pytest.mark.parametrize("mode", list(Mode))
def test_a_post_whose_headers_end_the_stream_is_scheduled_with_an_empty_body(mode: Mode) -> None:
    (schedule,) = a_session().request_headers(HEADERS, end_of_stream=True, mode=mode)
    assert isinstance(schedule, Schedule)
    assert schedule.request.body == b""


@pytest.mark.parametrize("mode", list(Mode))
def test_a_body_that_announces_to_be_too_long_is_refused_before_it_is_sent(mode: Mode) -> None:
    headers = {**HEADERS, "content-length": "101"}
    respond, error = refusal(a_session(max_body=100).request_headers(headers, end_of_stream=False, mode=mode))
    assert (respond.status, error["code"]) == (413, "request_too_large")
    assert "100 bytes" in error["message"]


@pytest.mark.parametrize("mode", READING)
def test_a_body_that_turns_out_too_long_is_refused_when_it_does(mode: Mode) -> None:
    session = a_session(max_body=100)
    session.request_headers(HEADERS, end_of_stream=False, mode=mode)
    if mode is not Mode.BUFFERED:
        assert session.request_body(b" " * 100, end_of_stream=False) == ()
        assert refusal(session.request_body(b" ", end_of_stream=False))[0].status == 413
    else:
        assert refusal(session.request_body(b" " * 101, end_of_stream=True))[0].status == 413
    assert session.request_body(b" ", end_of_stream=True) == ()


@pytest.mark.parametrize("mode", READING)
def test_a_body_of_exactly_the_limit_is_read(mode: Mode) -> None:
    session = a_session(max_body=len(BODY))
    headers = {**HEADERS, "content-length": str(len(BODY))}
    session.request_headers(headers, end_of_stream=False, mode=mode)
    assert isinstance(session.request_body(BODY, end_of_stream=True)[0], Schedule)


@pytest.mark.parametrize("length", ["", "-1", "many", "1" * 5000, "²"])
def test_a_content_length_that_is_no_number_changes_nothing(length: str) -> None:
    headers = {**HEADERS, "content-length": length}
    assert a_session().request_headers(headers, end_of_stream=False, mode=Mode.FULL_DUPLEX) == ()


def test_no_pick_is_a_503_that_says_when_to_come_back_and_why() -> None:
    session = a_session()
    scheduled(session, Mode.BUFFERED)
    respond, error = refusal(session.decided(Rejection("none_healthy", "2 of 2 are down")))
    assert (respond.status, respond.reason, error["type"], error["code"]) == (
        503,
        "none_healthy",
        "server_error",
        "no_endpoint",
    )
    assert "2 of 2 are down" in error["message"]
    assert ("retry-after", "1") in respond.headers
    assert ("x-llm-d-request-dropped-reason", "rejected-no-endpoints") in respond.headers
    assert ("x-request-id", "r1") in respond.headers


def test_a_subset_is_handed_to_the_picker_and_an_empty_one_is_a_503() -> None:
    subset = frozenset({"10.0.0.1:8000"})
    (schedule,) = a_session().request_headers({":method": "GET"}, end_of_stream=True, subset=subset)
    assert isinstance(schedule, Schedule)
    assert schedule.request.subset == subset
    respond, _ = refusal(a_session().request_headers({":method": "GET"}, end_of_stream=True, subset=frozenset()))
    assert (respond.status, respond.reason) == (503, "subset_empty")


@pytest.mark.parametrize(
    ("hint", "addresses"),
    [
        (["10.0.0.1:80", "[::1]:81"], {"10.0.0.1:80", "[::1]:81"}),
        ("10.0.0.1:80, [::1]:81 ,", {"10.0.0.1:80", "[::1]:81"}),
        ("::1:81", {"[::1]:81"}),
        ("", set()),
        ([], set()),
        (["nonsense", ":80", "host:", 3, None], set()),
        (7, set()),
        ({"a": 1}, set()),
    ],
)
def test_a_subset_hint_is_read_as_a_list_or_a_string(hint: object, addresses: set[str]) -> None:
    assert subset_of(hint) == frozenset(addresses)


def test_no_subset_hint_is_not_an_empty_one() -> None:
    assert subset_of(None) is None


WEBSOCKET = {":path": "/v1/realtime?model=m", ":method": "GET", "x-request-id": "r1", "upgrade": "WebSocket"}


@pytest.mark.parametrize("mode", [Mode.FULL_DUPLEX, Mode.HOLD, Mode.STREAMED, Mode.NONE])
def test_an_upgrade_is_scheduled_at_its_headers(mode: Mode) -> None:
    session = a_session()
    (schedule,) = session.request_headers(WEBSOCKET, end_of_stream=False, mode=mode)
    limit = hold_limit(mode, RENDERED)
    assert schedule == Schedule(Request("r1", "/v1/realtime?model=m", None, method="GET", hold_limit=limit))
    assert session.decided(a_pick()) == (Route(Phase.REQUEST_HEADERS, "10.0.0.1:8000", (), ()),)


def test_the_data_of_an_upgrade_in_full_duplex_is_sent_back_as_it_arrives() -> None:
    budget = BodyBudget(1 << 30)
    session = a_session(budget, max_body=10)
    session.request_headers(WEBSOCKET, end_of_stream=False, mode=Mode.FULL_DUPLEX)
    session.decided(a_pick())
    for data in (b"a frame longer than a body may be", b"", b"x"):
        assert session.request_body(data, end_of_stream=False) == (SendBody(Phase.REQUEST_BODY, data, False),)
    assert session.request_body(b"", end_of_stream=True) == (SendBody(Phase.REQUEST_BODY, b"", True),)
    assert budget.used == 0


def test_data_before_the_pick_of_an_upgrade_follows_its_route_and_is_limited() -> None:
    session = a_session()
    session.request_headers(WEBSOCKET, end_of_stream=False, mode=Mode.FULL_DUPLEX)
    assert [session.request_body(data, end_of_stream=False) for data in (b"a", b"b")] == [(), ()]
    assert session.decided(a_pick())[1:] == (SendBody(Phase.REQUEST_BODY, b"ab", False),)
    limited = a_session(max_body=1)
    limited.request_headers(WEBSOCKET, end_of_stream=False, mode=Mode.FULL_DUPLEX)
    assert refusal(limited.request_body(b"ab", end_of_stream=False))[0].status == 413


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
def test_a_body_of_a_post_beside_an_upgrade_is_read(upgrade: str) -> None:
    session = a_session()
    headers = {**HEADERS, **WEBSOCKET, ":method": "POST", "upgrade": upgrade}
    assert session.request_headers(headers, end_of_stream=False, mode=Mode.FULL_DUPLEX) == ()
    (schedule,) = session.request_body(BODY, end_of_stream=True)
    assert isinstance(schedule, Schedule)
    assert schedule.request.body == BODY


def test_the_fallbacks_of_a_pick_are_listed_after_it_in_their_order() -> None:
    for fallbacks, destination in (((), "10.0.0.1:8000"), (("b:1", "a:1"), "10.0.0.1:8000,b:1,a:1")):
        session = a_session()
        scheduled(session, Mode.BUFFERED)
        (route,) = session.decided(a_pick(fallbacks=fallbacks))
        assert isinstance(route, Route)
        assert route.destination == destination


@pytest.mark.parametrize("mode", READING)
@pytest.mark.parametrize("how", ["routed", "refused", "left", "failed", "not picked"])
def test_however_a_conversation_goes_on_its_body_is_held_no_longer(mode: Mode, how: str) -> None:
    budget = BodyBudget(1000)
    session = a_session(budget)
    session.request_headers(HEADERS, end_of_stream=False, mode=mode)
    session.request_body(BODY if mode is Mode.BUFFERED else BODY[:9], end_of_stream=False)
    # Envoy keeps a buffered body until the decision.
    assert budget.used == (len(BODY) if mode is Mode.BUFFERED else 9)
    if how == "left":
        session.closed()
    elif how == "failed":
        session.failed()
    elif how == "refused":
        session.request_body(bytes(2000), end_of_stream=True)
        if mode is Mode.BUFFERED:
            session.decided(Rejection("none_healthy", ""))
    else:
        if mode is not Mode.BUFFERED:
            session.request_body(BODY[9:], end_of_stream=True)
        if how == "routed":
            session.decided(a_pick())
            assert budget.used == (len(BODY) if mode is Mode.FULL_DUPLEX else 0)  # until all of it was sent back
            session.body_sent()
        else:
            session.decided(Rejection("none_healthy", ""))
    assert budget.used == 0
    session.closed()
    assert budget.used == 0


def test_a_body_for_which_there_is_no_room_is_told_to_come_back_and_harms_no_other() -> None:
    budget = BodyBudget(len(BODY) + 5)
    first, second = a_session(budget), a_session(budget)
    for session in (first, second):
        session.request_headers(HEADERS, end_of_stream=False, mode=Mode.FULL_DUPLEX)
    assert first.request_body(BODY[:-1], end_of_stream=False) == ()
    respond, error = refusal(second.request_body(BODY, end_of_stream=True))
    assert (respond.status, respond.reason, error["type"]) == (429, "body_budget", "rate_limit_error")
    assert ("retry-after", "1") in respond.headers
    (schedule,) = first.request_body(BODY[-1:], end_of_stream=True)
    assert isinstance(schedule, Schedule)


@pytest.mark.parametrize("mode", list(Mode))
def test_a_connect_is_refused_because_what_follows_it_has_no_end(mode: Mode) -> None:
    headers = {":method": "CONNECT", "x-request-id": "r1"}
    respond, error = refusal(a_session().request_headers(headers, end_of_stream=False, mode=mode))
    assert (respond.status, respond.reason, error["code"]) == (405, "method", "method_not_allowed")


def test_the_encoding_of_a_body_is_scheduled_with_it() -> None:
    session = a_session()
    session.request_headers({**HEADERS, "content-encoding": "gzip"}, end_of_stream=False, mode=Mode.BUFFERED)
    (schedule,) = session.request_body(gzip.compress(BODY), end_of_stream=True)
    assert isinstance(schedule, Schedule)
    assert schedule.request.encoding == "gzip"


def test_headers_that_steer_the_gateway_do_not_reach_the_model_server() -> None:
    headers = {
        ":method": "GET",
        "x-gateway-inference-objective": "gold",
        "x-prefiller-host-port": "1.2.3.4:5",
        "x-request-id": "r",
    }
    session = a_session()
    session.request_headers(headers, end_of_stream=True)
    (route,) = session.decided(a_pick())
    assert isinstance(route, Route)
    assert set(route.remove) == {"x-gateway-inference-objective", "x-prefiller-host-port"}


def test_messages_without_request_headers_say_which_setting_is_wrong() -> None:
    body, trailers = a_session(), a_session()
    for session, actions in [
        (body, body.request_body(b"", end_of_stream=True)),
        (trailers, trailers.request_trailers()),
    ]:
        broken, respond = actions
        assert isinstance(broken, ProtocolViolation)
        assert "request_header_mode" in broken.detail
        assert isinstance(respond, Respond)
        assert respond.status == 500
        assert session.over


def test_an_end_said_twice_is_no_disorder_but_bytes_after_the_end_are_counted_once() -> None:
    session = a_session()
    scheduled(session, Mode.FULL_DUPLEX)
    session.decided(a_pick())
    assert session.request_body(b"", end_of_stream=True) == ()
    (broken,) = session.request_body(b"more", end_of_stream=True)
    assert isinstance(broken, ProtocolViolation)
    assert session.request_body(b"more", end_of_stream=True) == ()


def test_a_decision_after_the_end_of_the_stream_leads_to_nothing() -> None:
    session = a_session()
    scheduled(session, Mode.BUFFERED)
    session.closed()
    assert session.decided(a_pick()) == ()


def test_the_response_is_let_through_and_sent_back_only_where_the_proxy_asks_for_it() -> None:
    for echo in (False, True):
        session = a_session()
        session.request_headers({":method": "GET"}, end_of_stream=True, response_echo=echo)
        session.decided(a_pick())
        assert session.response_headers() == (Continue(Phase.RESPONSE_HEADERS),)
        for number in range(2):
            first, *rest = session.response_body(b"data", end_of_stream=False)
            sent_back = SendBody(Phase.RESPONSE_BODY, b"data", end_of_stream=False)
            assert first == (sent_back if echo else Continue(Phase.RESPONSE_BODY))
            assert rest == ([BodyStarted()] if number == 0 else [])
        first, *rest = session.response_trailers()
        assert first == Continue(Phase.RESPONSE_TRAILERS)
        assert rest == [BodyEnded(8, NO_USAGE, streamed=False)]


def test_the_end_of_a_response_s_body_is_reported_once_with_its_size_and_usage() -> None:
    usage = b'{"usage": {"prompt_tokens": 3, "completion_tokens": 2}}'
    session = a_session()
    session.request_headers({":method": "GET"}, end_of_stream=True, response_echo=True)
    session.decided(a_pick())
    session.response_headers(Response(200, streamed=True, readable=True))
    assert BodyStarted() in session.response_body(usage[:20], end_of_stream=False)
    ended = session.response_body(usage[20:], end_of_stream=True)
    assert ended[1:] == (BodyEnded(len(usage), TokenUsage(3, 2, None), streamed=True),)
    assert session.response_body(b"", end_of_stream=True)[1:] == ()
    assert session.response_trailers() == (Continue(Phase.RESPONSE_TRAILERS),)


def test_a_body_that_cannot_be_read_has_a_size_and_no_usage() -> None:
    session = a_session()
    session.request_headers({":method": "GET"}, end_of_stream=True, response_echo=True)
    session.decided(a_pick())
    session.response_headers(Response(200))
    *_, ended = session.response_body(b'{"usage": {"prompt_tokens": 3}}', end_of_stream=True)
    assert ended == BodyEnded(31, NO_USAGE, streamed=False)


def test_an_error_of_ours_is_told_unless_the_request_is_on_its_way() -> None:
    session = a_session()
    session.request_headers(HEADERS, end_of_stream=False)
    assert refusal(session.failed())[0].status == 500
    assert session.failed() == ()
    session = a_session()
    scheduled(session, Mode.BUFFERED)
    session.decided(a_pick())
    assert session.failed() == ()


@given(size=st.integers(0, 4 * CHUNK_BYTES))
def test_chunks_make_up_the_body_and_only_the_last_is_the_last(size: int) -> None:
    body = bytes(size)
    cut = list(chunks(body))
    assert b"".join(piece for piece, _ in cut) == body
    assert [last for _, last in cut] == [False] * (len(cut) - 1) + [True]
    assert all(len(piece) <= CHUNK_BYTES for piece, _ in cut)


@given(
    cuts=st.lists(st.integers(0, len(BODY)), max_size=12),
    mode=st.sampled_from([Mode.FULL_DUPLEX, Mode.HOLD]),
    trailers=st.booleans(),
)
def test_however_a_body_is_cut_the_decision_and_the_bytes_sent_on_are_the_same(
    cuts: list[int], mode: Mode, trailers: bool
) -> None:
    edges = [0, *sorted(cuts), len(BODY)]
    chunks = [BODY[start:end] for start, end in itertools.pairwise(edges)]
    session = a_session()
    actions = list(session.request_headers(HEADERS, end_of_stream=False, mode=mode))
    for number, chunk in enumerate(chunks):
        actions += session.request_body(chunk, end_of_stream=number == len(chunks) - 1 and not trailers)
    if trailers:
        actions += session.request_trailers()
    whole = a_session()
    assert actions == scheduled(whole, mode)
    answers = session.decided(a_pick())
    assert answers[0] == whole.decided(a_pick())[0]
    if mode is Mode.FULL_DUPLEX:
        (echo,) = [action for action in answers if isinstance(action, SendBody)]
        assert (echo.body, echo.end_of_stream) == (BODY, not trailers)
    else:
        assert answers.count(Continue(Phase.REQUEST_BODY)) == len(chunks)


steps = st.one_of(
    st.tuples(st.just("request_headers"), st.sampled_from(list(Mode)), st.booleans()),
    st.tuples(st.just("request_body"), st.sampled_from([b"", b"x", BODY, bytes(300)]), st.booleans()),
    st.sampled_from([(name,) for name in ("request_trailers", "response_headers", "response_trailers", "failed")]),
    st.tuples(st.just("response_body"), st.just(b"x"), st.booleans()),
    st.sampled_from([("picked",), ("rejected",), ("closed",)]),
)


@given(script=st.lists(steps, max_size=14))
def test_no_order_of_events_raises_answers_twice_or_keeps_bytes(script: list[tuple[Any, ...]]) -> None:
    budget = BodyBudget(1 << 30)
    session = a_session(budget, max_body=250)
    done: list[Action] = []
    for name, *arguments in [*script, ("closed",)]:
        if name == "request_headers":
            done += session.request_headers(HEADERS, end_of_stream=arguments[1], mode=arguments[0])
        elif name in ("request_body", "response_body"):
            done += getattr(session, name)(arguments[0], end_of_stream=arguments[1])
        elif name == "picked":
            done += session.decided(a_pick())
        elif name == "rejected":
            done += session.decided(Rejection("none_healthy", ""))
        elif name == "closed":
            session.closed()
        else:
            done += getattr(session, name)()
    assert budget.used == 0
    assert sum(isinstance(action, Schedule) for action in done) <= 1
    assert sum(isinstance(action, Respond | Route) for action in done) <= 1
    assert sum(isinstance(action, ProtocolViolation) for action in done) <= 1


@pytest.mark.parametrize("mode", READING)
def test_a_load_report_is_asked_for_where_the_pool_wants_it_and_is_kept_from_the_client(mode: Mode) -> None:
    session = a_session(reports=True)
    scheduled(session, mode)
    (route,) = [action for action in session.decided(a_pick()) if isinstance(action, Route)]
    assert route.add == ((REQUEST_HEADER, "TEXT"),)
    response = Response(200, served="10.0.0.1:8000")
    assert session.response_headers(response, "TEXT x=1") == (
        ChangeResponse((), "endpoint-load-metrics"),
        ResponseStarted(response),
        Report("TEXT x=1", "10.0.0.1:8000"),
    )
    assert session.response_headers() == (Continue(Phase.RESPONSE_HEADERS),)


def test_a_client_that_asks_for_a_load_report_itself_gets_it_as_it_asked() -> None:
    session = a_session(reports=True)
    session.request_headers({**HEADERS, ":method": "GET", REQUEST_HEADER: "JSON"}, end_of_stream=True)
    (route,) = session.decided(a_pick())
    assert isinstance(route, Route)
    assert (route.add, route.remove) == ((), ())
    assert session.response_headers(Response(200), "JSON {}") == (
        Continue(Phase.RESPONSE_HEADERS),
        ResponseStarted(Response(200)),
        Report("JSON {}", ""),
    )


def test_a_response_is_reported_only_where_its_request_was_routed_and_a_report_only_where_it_is_wanted() -> None:
    answer = Response(500, served="10.0.0.1:8000")
    session = a_session()
    assert session.response_headers(answer, "TEXT x=1") == (Continue(Phase.RESPONSE_HEADERS),)
    scheduled(session, Mode.BUFFERED)
    session.decided(a_pick())
    assert session.response_headers(answer, "TEXT x=1") == (Continue(Phase.RESPONSE_HEADERS), ResponseStarted(answer))


def test_where_no_report_is_wanted_none_is_asked_for() -> None:
    session = a_session()
    scheduled(session, Mode.BUFFERED)
    (route,) = session.decided(a_pick())
    assert isinstance(route, Route)
    assert route.add == ()
