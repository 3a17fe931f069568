"""gRPC calls without a socket: message framing, status and trailers, and errors of handlers."""

from __future__ import annotations

import struct
from urllib.parse import unquote

import h2.events
import pytest

from agent.serve.grpc.call import Call
from agent.serve.grpc.status import StatusCode, StatusError
from tests.fakes.http2_client import PATH, CallRecorder, Http2Client, grpc_message


def test_the_status_codes_are_those_of_grpc() -> None:
    assert " ".join(code.name for code in StatusCode) == (
        "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
        "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
        "UNAUTHENTICATED"
    )
    assert [int(code) for code in StatusCode] == list(range(17))


def test_a_call_may_be_finished_without_a_message() -> None:
    recorder = CallRecorder()
    client = Http2Client(recorder)
    stream = client.open()
    client.exchange()
    recorder.calls[stream].finish(StatusCode.UNIMPLEMENTED, "no such thing: é")
    client.exchange()
    assert client.status(stream) == StatusCode.UNIMPLEMENTED
    assert client.trailers(stream)["grpc-message"] == "no%20such%20thing%3A%20%C3%A9"
    assert any(isinstance(event, h2.events.StreamReset) for event in client.events)  # the client need not go on
    recorder.calls[stream].send(b"more")
    recorder.calls[stream].finish()
    assert client.server.outgoing() == b""


@pytest.mark.parametrize(
    "text",
    [
        *("x" * size for size in (1, 126, 127, 254, 255, 999, 3000)),
        "é" * 400,
        "x" * 998 + "éé",
        "x" * 999 + "é",
        "100 %",
    ],
)
def test_a_status_message_of_any_length_is_cut_between_two_characters(text: str) -> None:
    recorder = CallRecorder()
    client = Http2Client(recorder)
    stream = client.open()
    client.exchange()
    recorder.calls[stream].finish(StatusCode.UNIMPLEMENTED, text)
    client.exchange()
    message = unquote(client.trailers(stream)["grpc-message"].removesuffix("%C3"))
    assert message
    assert text.startswith(message)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (grpc_message(b"x", compressed=True), StatusCode.UNIMPLEMENTED),
        (struct.pack(">BI", 0, 2000), StatusCode.RESOURCE_EXHAUSTED),
        (grpc_message(bytes(1001)), StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_a_message_that_is_compressed_or_too_large_ends_its_call_and_no_other(data: bytes, status: StatusCode) -> None:
    recorder = CallRecorder(max_message_bytes=1000)
    client = Http2Client(recorder)
    bad, good = client.open(), client.open()
    client.h2.send_data(bad, data)
    client.h2.send_data(good, grpc_message(bytes(1000)), end_stream=True)
    client.exchange()
    assert client.status(bad) == status
    assert (recorder.ends[bad], recorder.messages[bad]) == (["closed"], [])
    assert (recorder.ends[good], recorder.messages[good]) == (["half-closed"], [bytes(1000)])


def test_a_call_whose_last_message_is_cut_is_internal() -> None:
    recorder = CallRecorder()
    client = Http2Client(recorder)
    stream = client.open()
    client.send(stream, grpc_message(b"whole") + grpc_message(b"cut")[:-1], end=True)
    client.exchange()
    assert (recorder.messages[stream], recorder.ends[stream]) == ([b"whole"], ["closed"])
    assert client.status(stream) == StatusCode.INTERNAL


@pytest.mark.parametrize("event", ["on_message", "on_half_close"])
def test_an_exception_of_a_handler_is_internal_and_ends_its_call_and_no_other(event: str) -> None:
    recorder = CallRecorder()
    client = Http2Client(recorder)
    other = client.open()
    client.exchange()

    def fail(call: Call, *_: bytes) -> None:
        raise ZeroDivisionError

    setattr(recorder, event, fail)
    stream = client.call("/service/Failing", b"one", b"two")
    assert client.trailers(stream)["grpc-message"] == "the%20handler%20failed"
    assert client.status(stream) == StatusCode.INTERNAL
    assert recorder.ends[stream][-1] == "closed"
    assert [(path, type(error)) for path, error in recorder.failures] == [("/service/Failing", ZeroDivisionError)]
    recorder.on_message = lambda call, _: call.finish()
    client.send(other, grpc_message(b"x"))
    client.exchange()
    assert client.status(other) == StatusCode.OK


def test_a_status_error_of_a_handler_is_the_status_of_its_call_and_no_failure() -> None:
    def refuse(call: Call, message: bytes) -> None:
        raise StatusError(StatusCode.INVALID_ARGUMENT, "not that one")

    recorder = CallRecorder()
    recorder.on_message = refuse
    client = Http2Client(recorder)
    stream = client.call(PATH, b"x")
    assert client.status(stream) == StatusCode.INVALID_ARGUMENT
    assert client.trailers(stream)["grpc-message"] == "not%20that%20one"
    assert (recorder.ends[stream], recorder.failures) == (["closed"], [])


def test_an_exception_behind_the_status_is_counted_and_changes_nothing() -> None:
    def finish_and_fail(call: Call, message: bytes) -> None:
        call.finish()
        raise ZeroDivisionError

    recorder = CallRecorder()
    recorder.on_message = finish_and_fail
    client = Http2Client(recorder)
    stream = client.call(PATH, b"x")
    assert client.status(stream) == StatusCode.OK
    assert (recorder.ends[stream], len(recorder.failures)) == ([], 1)


def test_a_call_that_is_over_keeps_neither_its_handler_nor_bytes_of_a_message() -> None:
    recorder = CallRecorder()
    client = Http2Client(recorder)
    finished, reset = client.open(), client.open()
    for stream in (finished, reset):
        client.send(stream, grpc_message(bytes(100))[:50])
    client.exchange()
    recorder.calls[finished].finish()
    client.h2.reset_stream(reset)
    client.exchange()
    for stream in (finished, reset):
        assert recorder.calls[stream].handler is None
        assert recorder.messages[stream] == []
