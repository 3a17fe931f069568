"""The router without a socket: which handler answers a path, and what is answered where none can."""

from __future__ import annotations

import pytest

from agent.serve.grpc.router import GrpcRouter
from agent.serve.grpc.status import StatusCode
from tests.fakes.http2_client import Http2Client
from tests.grpc.services import ECHO, MAX_MESSAGE_BYTES, EchoService

UNARY, SERVER_STREAM, BIDI = f"/{ECHO}/Unary", f"/{ECHO}/ServerStream", f"/{ECHO}/Bidi"


class Routed:
    """A client of a router that has the service."""

    def __init__(self) -> None:
        self.service = EchoService()
        self.failures: list[tuple[str, str]] = []
        router = GrpcRouter((self.service,), lambda path, error: self.failures.append((path, repr(error))))
        self.client = Http2Client(router)


@pytest.fixture
def routed() -> Routed:
    return Routed()


def test_a_unary_call_is_answered_with_one_message(routed: Routed) -> None:
    stream = routed.client.call(UNARY, b"abc")
    assert (routed.client.responses(stream), routed.client.status(stream)) == ([b"cba"], StatusCode.OK)


def test_a_unary_call_is_answered_when_the_client_half_closes(routed: Routed) -> None:
    stream = routed.client.call(UNARY, b"abc", end=False)
    assert routed.client.status(stream) == -1
    routed.client.h2.end_stream(stream)
    routed.client.exchange()
    assert routed.client.responses(stream) == [b"cba"]


def test_a_server_stream_ends_where_its_handler_finishes_it(routed: Routed) -> None:
    stream = routed.client.call(SERVER_STREAM, b"n")
    assert (routed.client.responses(stream), routed.client.status(stream)) == ([b"n 0", b"n 1", b"n 2"], StatusCode.OK)
    assert routed.service.left == []


def test_a_server_stream_is_sent_on_until_the_client_leaves(routed: Routed) -> None:
    stream = routed.client.call(SERVER_STREAM, b"endless")
    (call,) = routed.service.streams
    call.send(b"later")
    routed.client.exchange()
    assert routed.client.responses(stream)[3:] == [b"later"]
    assert (routed.client.status(stream), routed.service.left) == (-1, [])
    routed.client.h2.reset_stream(stream)
    routed.client.exchange()
    assert routed.service.left == ["ServerStream"]
    call.send(b"too late")
    assert routed.client.server.outgoing() == b""


def test_a_bidi_call_has_a_handler_of_its_own(routed: Routed) -> None:
    one, two = (routed.client.call(BIDI, b"ab", end=False) for _ in range(2))
    routed.client.h2.reset_stream(one)
    routed.client.h2.end_stream(two)
    routed.client.exchange()
    assert (routed.client.responses(two), routed.client.status(two)) == ([b"ba"], StatusCode.OK)
    assert routed.service.left == ["Bidi"]


@pytest.mark.parametrize("path", [f"/{ECHO}/Other", f"/{ECHO}/unary", "/igw.test.Other/Unary", "/", "*", f"/{ECHO}"])
def test_an_unknown_path_is_unimplemented(path: str, routed: Routed) -> None:
    stream = routed.client.call(path, b"abc")
    assert routed.client.status(stream) == StatusCode.UNIMPLEMENTED
    assert "there%20is%20no%20method" in routed.client.trailers(stream)["grpc-message"]
    assert routed.failures == []


@pytest.mark.parametrize("path", [UNARY, SERVER_STREAM])
@pytest.mark.parametrize(
    ("messages", "reason"),
    [((), "no%20request"), ((b"a", b"b"), "more%20than%20one"), ((b"", b""), "more%20than%20one")],
)
def test_a_call_that_takes_one_request_is_unimplemented_with_none_or_two(
    path: str, messages: tuple[bytes, ...], reason: str, routed: Routed
) -> None:
    stream = routed.client.call(path, *messages)
    assert (routed.client.responses(stream), routed.client.status(stream)) == ([], StatusCode.UNIMPLEMENTED)
    assert reason in routed.client.trailers(stream)["grpc-message"]


@pytest.mark.parametrize("path", [UNARY, SERVER_STREAM])
def test_a_call_that_takes_one_request_ends_with_a_client_that_leaves_before_it(path: str, routed: Routed) -> None:
    stream = routed.client.call(path, b"endless", end=False)
    routed.client.h2.reset_stream(stream)
    routed.client.exchange()
    assert (routed.service.left, routed.service.streams, routed.failures) == ([], [], [])


@pytest.mark.parametrize(
    ("path", "request_", "responses"),
    [
        (UNARY, b"raise", []),
        (SERVER_STREAM, b"raise", [b"raise 0", b"raise 1", b"raise 2"]),
        (BIDI, b"raise", []),
        (f"/{ECHO}/BidiFails", b"x", []),
    ],
)
def test_a_handler_that_raises_is_internal_and_counted_and_the_connection_lives_on(
    path: str, request_: bytes, responses: list[bytes], routed: Routed
) -> None:
    stream = routed.client.call(path, request_)
    assert (routed.client.responses(stream), routed.client.status(stream)) == (responses, StatusCode.INTERNAL)
    assert routed.failures == [(path, "ZeroDivisionError('division by zero')")]
    assert routed.client.responses(routed.client.call(UNARY, b"abc")) == [b"cba"]


def test_a_status_that_a_handler_raises_is_the_answer_and_no_failure(routed: Routed) -> None:
    stream = routed.client.call(UNARY, b"refuse")
    assert routed.client.status(stream) == StatusCode.NOT_FOUND
    assert routed.client.trailers(stream)["grpc-message"] == "nothing%20here"
    assert routed.failures == []


@pytest.mark.parametrize(("path", "limit"), [(UNARY, MAX_MESSAGE_BYTES), (BIDI, 2 * MAX_MESSAGE_BYTES)])
def test_each_method_has_its_own_limit_of_a_message(path: str, limit: int, routed: Routed) -> None:
    within, over = routed.client.call(path, bytes(limit)), routed.client.call(path, bytes(limit + 1))
    assert routed.client.responses(within) == [bytes(limit)]
    assert routed.client.status(over) == StatusCode.RESOURCE_EXHAUSTED


def test_two_handlers_of_one_path_are_refused() -> None:
    with pytest.raises(ValueError, match=f"two handlers for /{ECHO}/Unary"):
        GrpcRouter((EchoService(), EchoService()), lambda _, __: None)
