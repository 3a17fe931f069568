"""The HTTP/2 connection without a socket, against the library h2 and against frames written by hand."""

from __future__ import annotations

import struct

import h2.events
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.serve.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ENABLE_PUSH,
    SETTINGS_INITIAL_WINDOW_SIZE,
    SETTINGS_MAX_CONCURRENT_STREAMS,
    SETTINGS_MAX_FRAME_SIZE,
    SETTINGS_MAX_HEADER_LIST_SIZE,
    WINDOW_UPDATE,
    ConnectionFailed,
    ErrorCode,
    frame,
)
from agent.serve.http2.header_fields import literal
from tests.fakes.http2_client import FIELDS, PATH, CallRecorder, Http2Client, grpc_connection, grpc_message

CLIENT_PREFACE = PREFACE + frame(SETTINGS, 0, 0, b"")
TRAILERS = literal(b"x", b"y")
BLOCK = bytes.fromhex("8386") + b"\x44" + bytes([len(PATH)]) + PATH.encode()  # POST, http, a literal path
REQUEST = frame(HEADERS, END_HEADERS, 1, BLOCK)
MESSAGES = st.lists(st.binary(max_size=400), max_size=6)


def setting(name: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", name, value))


def rst_stream(stream: int, code: ErrorCode) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.lists(st.integers(0, 5000), max_size=8).map(tuple))
def test_messages_arrive_whole_and_in_order_wherever_the_bytes_are_cut(
    calls: list[list[bytes]], cuts: tuple[int, ...]
) -> None:
    recorder = CallRecorder()
    client = Http2Client(recorder)
    streams = [client.open() for _ in calls]
    for stream, messages in zip(streams, calls, strict=True):
        client.h2.send_data(stream, b"".join(map(grpc_message, messages)), end_stream=True)
    client.exchange(cuts)
    assert recorder.paths == [PATH] * len(calls)
    assert list(recorder.messages.values()) == calls
    assert list(recorder.ends.values()) == [["half-closed"]] * len(calls)


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=90_000), max_size=4),
    st.integers(0, 70_000),
    st.sampled_from([MAX_FRAME_SIZE, 40_000]),
)
def test_responses_respect_the_windows_of_the_peer_and_arrive_whole(
    responses: list[bytes], window: int, max_frame_size: int
) -> None:
    """The library refuses a byte over its window, or a frame over its size."""
    recorder = CallRecorder()
    client = Http2Client(recorder, window, max_frame_size)
    client.acknowledge = False
    stream = client.open(end=True)
    client.exchange()
    done: list[str] = []
    for response in responses:
        recorder.calls[stream].send(response)
    recorder.calls[stream].when_sent(lambda: done.append("all sent"))
    recorder.calls[stream].finish()
    client.exchange()
    for _ in range(400):
        if done:
            break
        client.h2.increment_flow_control_window(7_000, stream)
        client.h2.increment_flow_control_window(7_000)
        client.exchange()
    client.exchange()
    assert done == ["all sent"]
    assert client.responses(stream) == responses
    assert client.status(stream) == 0
    assert any(isinstance(event, h2.events.StreamEnded) for event in client.events)


def test_a_body_of_many_windows_is_received_and_its_windows_are_returned() -> None:
    recorder = CallRecorder(max_message_bytes=64 << 20)
    client = Http2Client(recorder)
    message = bytes(3 * INITIAL_WINDOW_SIZE + 12_345)
    stream = client.open()
    client.exchange()
    client.send(stream, grpc_message(message), end=True)
    client.exchange()
    assert recorder.messages[stream] == [message]
    second = client.call(PATH, b"after")
    assert recorder.messages[second] == [b"after"]


def test_concurrent_streams_are_answered_each_on_its_own() -> None:
    recorder = CallRecorder()
    recorder.on_message = lambda call, message: call.send(message[::-1])
    recorder.on_half_close = lambda call: call.finish()
    client = Http2Client(recorder)
    streams = [client.open() for _ in range(3)]
    for stream in reversed(streams):
        client.h2.send_data(stream, grpc_message(b"call %d" % stream), end_stream=True)
    client.exchange()
    for stream in streams:
        assert client.responses(stream) == [(b"call %d" % stream)[::-1]]
        assert client.trailers(stream) == {
            ":status": "200", "content-type": "application/grpc", "grpc-status": "0",
        }  # fmt: skip


def test_header_fields_that_change_are_decoded_each_time() -> None:
    recorder = CallRecorder()
    client = Http2Client(recorder)
    for number in range(200):
        method = f"/service/Method{number % 7}"
        fields = [(name, method if name == ":path" else value) for name, value in FIELDS]
        if number % 3 == 0:
            fields.append((f"x-{number}", "y" * (number % 50)))
        client.open(fields, end=True)
        client.exchange()
    assert recorder.paths == [f"/service/Method{number % 7}" for number in range(200)]


def test_a_stream_is_closed_once_by_its_reset_or_by_the_end_of_the_connection() -> None:
    recorder = CallRecorder()
    client = Http2Client(recorder)
    reset, open_, finished = (client.open() for _ in range(3))
    client.h2.reset_stream(reset)
    client.exchange()
    recorder.calls[finished].finish()
    client.exchange()
    client.server.closed()
    assert (recorder.ends[reset], recorder.ends[open_], recorder.ends[finished]) == (["closed"], ["closed"], [])


def test_after_goaway_new_streams_are_refused_and_open_ones_are_answered() -> None:
    recorder = CallRecorder()
    client = Http2Client(recorder)
    stream = client.open()
    client.exchange()
    client.server.goaway()
    client.server.goaway()
    recorder.calls[stream].send(b"still")
    client.server.receive(frame(HEADERS, END_HEADERS, stream + 2, BLOCK))
    sent = client.server.outgoing()  # h2 would take the first of these for the end of all
    assert sent.startswith(frame(GOAWAY, 0, 0, struct.pack(">II", stream, ErrorCode.NO_ERROR)))
    assert frame(DATA, 0, stream, grpc_message(b"still")) in sent
    assert sent.endswith(rst_stream(stream + 2, ErrorCode.REFUSED_STREAM))
    assert sent.count(frame(GOAWAY, 0, 0, bytes(8))[:9]) == 1
    assert recorder.paths == [PATH]


def test_sending_outside_of_receive_wakes_the_socket_once_until_it_reads_what_is_outgoing() -> None:
    recorder = CallRecorder()
    client = Http2Client(recorder)
    stream = client.open()
    client.exchange()
    before = client.wakes
    recorder.calls[stream].send(b"one")
    recorder.calls[stream].send(b"two")
    assert client.wakes == before + 1
    client.exchange()
    recorder.calls[stream].send(b"three")
    assert client.wakes == before + 2


def test_messages_wait_while_writing_is_paused() -> None:
    recorder = CallRecorder()
    client = Http2Client(recorder)
    stream = client.open()
    client.exchange()
    client.server.pause(paused=True)
    sent: list[bool] = []
    recorder.calls[stream].send(b"one")
    recorder.calls[stream].when_sent(lambda: sent.append(True))
    client.exchange()
    assert (client.responses(stream), sent) == ([], [])
    client.server.pause(paused=False)
    client.exchange()
    assert (client.responses(stream), sent) == ([b"one"], [True])


def test_the_limits_are_announced_under_the_identifiers_of_rfc_9113() -> None:
    announced = grpc_connection(CallRecorder()).outgoing()
    assert announced.startswith(
        frame(
            SETTINGS,
            0,
            0,
            struct.pack(">HIHIHI", 3, 1 << 17, 4, 4 << 20, 6, 64 << 10),
        )
    )
    names = (SETTINGS_MAX_CONCURRENT_STREAMS, SETTINGS_INITIAL_WINDOW_SIZE, SETTINGS_MAX_HEADER_LIST_SIZE)
    assert names == (3, 4, 6)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "PROTOCOL_ERROR: invalid connection preface"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "PROTOCOL_ERROR: invalid connection preface"),
        (PREFACE + frame(PING, 0, 0, bytes(8)), "PROTOCOL_ERROR: first frame is not SETTINGS"),
        (CLIENT_PREFACE + frame(DATA, 0, 1, b"x"), "PROTOCOL_ERROR: DATA on an idle stream"),
        (CLIENT_PREFACE + frame(DATA, 0, 0, b"x"), "PROTOCOL_ERROR: DATA on an idle stream"),
        (CLIENT_PREFACE + frame(HEADERS, END_HEADERS, 2, BLOCK), "PROTOCOL_ERROR: HEADERS on a stream with an even"),
        (CLIENT_PREFACE + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), "COMPRESSION_ERROR: "),
        (CLIENT_PREFACE + frame(HEADERS, END_HEADERS, 1, b"\x80"), "COMPRESSION_ERROR: "),
        (CLIENT_PREFACE + frame(HEADERS, 0, 1, BLOCK) + frame(PING, 0, 0, bytes(8)),
         "PROTOCOL_ERROR: HEADERS not followed by CONTINUATION"),
        (CLIENT_PREFACE + frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, END_HEADERS, 3, b""),
         "PROTOCOL_ERROR: HEADERS not followed by CONTINUATION"),
        (CLIENT_PREFACE + frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, 0, 1, b"") * 100,
         "ENHANCE_YOUR_CALM: field block over the limit"),
        (CLIENT_PREFACE + frame(HEADERS, 0, 1, bytes(16_000)) + frame(CONTINUATION, 0, 1, bytes(16_000)) * 5,
         "ENHANCE_YOUR_CALM: field block over the limit"),
        (CLIENT_PREFACE + frame(CONTINUATION, END_HEADERS, 1, BLOCK), "PROTOCOL_ERROR: CONTINUATION without HEADERS"),
        (CLIENT_PREFACE + frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09" + bytes(4)),
         "PROTOCOL_ERROR: padding longer than the frame"),
        (CLIENT_PREFACE + REQUEST + frame(HEADERS, END_HEADERS, 1, TRAILERS),
         "PROTOCOL_ERROR: trailers without END_STREAM"),
        (CLIENT_PREFACE + frame(HEADERS, END_HEADERS, 5, BLOCK) + frame(HEADERS, END_HEADERS, 3, BLOCK),
         "STREAM_CLOSED: HEADERS on a closed stream"),
        (CLIENT_PREFACE + REQUEST + frame(RST_STREAM, 0, 1, bytes(4))
         + frame(HEADERS, END_HEADERS | END_STREAM, 1, TRAILERS), "STREAM_CLOSED: HEADERS on a closed stream"),
        (CLIENT_PREFACE + frame(HEADERS, END_HEADERS | END_STREAM, 1, BLOCK) + frame(DATA, PADDED, 3, b""),
         "PROTOCOL_ERROR: DATA on an idle stream"),
        (CLIENT_PREFACE + REQUEST + frame(DATA, PADDED, 1, b"\x05x"), "PROTOCOL_ERROR: padding longer than the frame"),
        (CLIENT_PREFACE + frame(HEADERS, END_HEADERS, 1, b"\x00\x01x\x7f\xff\xff\x03" + bytes(100)),
         "COMPRESSION_ERROR: "),
        (CLIENT_PREFACE + frame(RST_STREAM, 0, 1, bytes(4)), "PROTOCOL_ERROR: RST_STREAM on an idle stream"),
        (CLIENT_PREFACE + frame(RST_STREAM, 0, 1, bytes(3)), "FRAME_SIZE_ERROR: RST_STREAM with a payload of 3 bytes"),
        (CLIENT_PREFACE + frame(PING, 0, 0, bytes(7)), "FRAME_SIZE_ERROR: PING with a payload of 7 bytes, not 8"),
        (CLIENT_PREFACE + frame(SETTINGS, 0, 0, bytes(5)), "FRAME_SIZE_ERROR: SETTINGS with a payload of 5 bytes"),
        (CLIENT_PREFACE + frame(PING, 0, 1, bytes(8)), "PROTOCOL_ERROR: PING on a stream other than 0"),
        (CLIENT_PREFACE + frame(SETTINGS, 0, 1, b""), "PROTOCOL_ERROR: SETTINGS on a stream other than 0"),
        (CLIENT_PREFACE + setting(SETTINGS_ENABLE_PUSH, 2), "PROTOCOL_ERROR: SETTINGS_ENABLE_PUSH of 2"),
        (CLIENT_PREFACE + frame(GOAWAY, 0, 1, bytes(8)), "PROTOCOL_ERROR: GOAWAY on a stream other than 0"),
        (CLIENT_PREFACE + frame(PRIORITY, 0, 0, bytes(5)), "PROTOCOL_ERROR: PRIORITY on stream 0"),
        (CLIENT_PREFACE + frame(WINDOW_UPDATE, 0, 1, b"\x00\x00\x00\x01"),
         "PROTOCOL_ERROR: WINDOW_UPDATE on an idle stream"),
        (CLIENT_PREFACE + setting(SETTINGS_INITIAL_WINDOW_SIZE, 1 << 31),
         "FLOW_CONTROL_ERROR: SETTINGS_INITIAL_WINDOW_SIZE of 2147483648"),
        (CLIENT_PREFACE + setting(SETTINGS_MAX_FRAME_SIZE, 100), "PROTOCOL_ERROR: SETTINGS_MAX_FRAME_SIZE of 100"),
        (CLIENT_PREFACE + frame(WINDOW_UPDATE, 0, 0, bytes(4)), "PROTOCOL_ERROR: WINDOW_UPDATE by 0 on stream 0"),
        (CLIENT_PREFACE + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
         "FLOW_CONTROL_ERROR: WINDOW_UPDATE by 2147483647 on stream 0"),
        (CLIENT_PREFACE + frame(PUSH_PROMISE, 0, 1, bytes(4)), "PROTOCOL_ERROR: PUSH_PROMISE from a client"),
        (CLIENT_PREFACE + b"\x00\x40\x01" + bytes([DATA, 0, 0, 0, 0, 1]),
         "FRAME_SIZE_ERROR: frame of 16385 bytes, over 16384"),
    ],
)  # fmt: skip
def test_a_connection_error_ends_the_connection_with_its_code_and_a_reason(data: bytes, error: str) -> None:
    connection = grpc_connection(CallRecorder())
    connection.outgoing()
    with pytest.raises(ConnectionFailed) as failed:
        connection.receive(data)
    assert str(failed.value).startswith(error)
    sent = connection.outgoing()
    assert sent.endswith(frame(GOAWAY, 0, 0, sent[-8:-4] + struct.pack(">I", failed.value.code)))
    assert ErrorCode(failed.value.code).name == error.partition(":")[0]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (REQUEST + frame(WINDOW_UPDATE, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (REQUEST + frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), ErrorCode.FLOW_CONTROL_ERROR),
        (REQUEST + frame(PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (REQUEST + frame(DATA, END_STREAM, 1, b"") + frame(DATA, 0, 1, b"x"), ErrorCode.STREAM_CLOSED),
        (REQUEST + frame(DATA, END_STREAM, 1, b"") + frame(HEADERS, END_HEADERS | END_STREAM, 1, TRAILERS),
         ErrorCode.STREAM_CLOSED),
        (REQUEST + frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x83"), ErrorCode.PROTOCOL_ERROR),
    ],
)  # fmt: skip
def test_a_stream_error_ends_that_stream_and_no_other(data: bytes, code: ErrorCode) -> None:
    recorder = CallRecorder()
    connection = grpc_connection(recorder)
    connection.receive(CLIENT_PREFACE + data)
    assert connection.outgoing().endswith(rst_stream(1, code))
    assert recorder.ends[1].count("closed") == 1
    # Frames that the peer sent before it received RST_STREAM are ignored.
    connection.receive(frame(DATA, 0, 1, b"more") + frame(HEADERS, END_HEADERS | END_STREAM, 1, TRAILERS))
    connection.receive(frame(HEADERS, END_HEADERS, 3, BLOCK) + frame(DATA, END_STREAM, 3, grpc_message(b"x")))
    assert rst_stream(1, code) not in connection.outgoing()
    assert recorder.messages[3] == [b"x"]


def test_data_on_a_stream_that_the_peer_reset_is_answered_with_one_rst_stream() -> None:
    connection = grpc_connection(CallRecorder())
    connection.receive(CLIENT_PREFACE + REQUEST + frame(RST_STREAM, 0, 1, bytes(4)))
    connection.outgoing()
    connection.receive(frame(DATA, 0, 1, b"x") * 2)
    assert connection.outgoing() == rst_stream(1, ErrorCode.STREAM_CLOSED)


def encoded(*fields: tuple[str, str]) -> bytes:
    return b"".join(literal(name.encode(), value.encode()) for name, value in fields)


POST = ((":method", "POST"), (":scheme", "http"), (":path", PATH))


@pytest.mark.parametrize(
    "fields",
    [
        POST[1:],
        POST[:2],
        (POST[0], POST[2]),
        (*POST[:2], (":path", "")),
        (*POST, POST[0]),
        (*POST, (":status", "200")),
        (*POST, (":other", "1")),
        (("te", "trailers"), *POST),
        (*POST, ("TE", "trailers")),
        (*POST, ("te", "gzip")),
        (*POST, ("connection", "close")),
        (*POST, ("transfer-encoding", "chunked")),
    ],
)
def test_a_malformed_request_is_reset_and_no_other(fields: tuple[tuple[str, str], ...]) -> None:
    recorder = CallRecorder()
    connection = grpc_connection(recorder)
    connection.receive(CLIENT_PREFACE)
    connection.outgoing()
    connection.receive(frame(HEADERS, END_HEADERS, 1, encoded(*fields)))
    assert connection.outgoing() == rst_stream(1, ErrorCode.PROTOCOL_ERROR)
    connection.receive(frame(HEADERS, END_HEADERS, 3, encoded(*POST, ("te", "trailers"), ("x", "connection"))))
    assert (list(recorder.calls), recorder.paths) == ([3], [PATH])


def test_the_receive_window_of_a_stream_is_returned_at_half_its_size() -> None:
    connection = grpc_connection(CallRecorder(max_message_bytes=64 << 20))
    connection.receive(CLIENT_PREFACE + REQUEST)
    connection.outgoing()
    update = frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", INITIAL_WINDOW_SIZE // 2))
    for number in range(1, 2 * INITIAL_WINDOW_SIZE // MAX_FRAME_SIZE + 1):
        connection.receive(frame(DATA, 0, 1, bytes(MAX_FRAME_SIZE)))
        assert (update in connection.outgoing()) is (number * MAX_FRAME_SIZE % (INITIAL_WINDOW_SIZE // 2) == 0)


@pytest.mark.parametrize(
    "data",
    [
        frame(PRIORITY, 0, 1, bytes(5)),
        frame(0x20, 0xFF, 7, b"anything"),
        frame(GOAWAY, 0, 0, bytes(8)),
        frame(PING, ACK, 0, bytes(8)),
        setting(99, 5),
    ],
)
def test_frames_and_settings_that_need_no_action_are_ignored(data: bytes) -> None:
    recorder = CallRecorder()
    connection = grpc_connection(recorder)
    connection.receive(CLIENT_PREFACE + data + REQUEST + frame(DATA, END_STREAM, 1, grpc_message(b"x")))
    assert (recorder.paths, recorder.messages) == ([PATH], {1: [b"x"]})


def test_padding_and_priority_fields_are_removed() -> None:
    recorder = CallRecorder()
    connection = grpc_connection(recorder)
    padded = b"\x03" + bytes(5) + BLOCK + bytes(3)
    connection.receive(CLIENT_PREFACE + frame(HEADERS, END_HEADERS | PADDED | PRIORITY_FLAG, 1, padded))
    connection.receive(frame(DATA, END_STREAM | PADDED, 1, b"\x04" + grpc_message(b"x") + bytes(4)))
    assert (recorder.paths, recorder.messages) == ([PATH], {1: [b"x"]})


FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 0x7FFFFFFF, 0xFFFFFFFF]),
    st.binary(max_size=30) | st.just(BLOCK) | st.just(grpc_message(b"message")),
)


@settings(max_examples=400)
@given(st.booleans(), st.lists(FRAMES | st.binary(max_size=20), max_size=12))
def test_any_input_ends_at_worst_the_connection_and_each_call_once(preface: bool, pieces: list[bytes]) -> None:
    recorder = CallRecorder(max_message_bytes=MAX_HEADER_LIST_SIZE)
    recorder.on_message = lambda call, message: call.send(message)
    recorder.on_half_close = lambda call: call.finish()
    connection = grpc_connection(recorder)
    try:
        for piece in ([CLIENT_PREFACE] if preface else []) + pieces:
            connection.receive(piece)
    except ConnectionFailed as failed:
        connection.goaway()
        reason = str(failed)
    else:
        reason = "none"
    connection.closed()
    assert reason
    assert recorder.failures == []
    assert all(len(ends) == 1 for ends in recorder.ends.values())
