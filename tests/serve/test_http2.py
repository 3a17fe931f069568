"""gRPC over HTTP/2 without a socket, spoken to by the library h2: what was said arrives, wherever its bytes are cut."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.serve.grpc.call import Call
from agent.serve.http2.connection import Connection
from agent.serve.http2.frames import (
    CALL_WINDOW,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_BYTES,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_BYTES,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    UNIMPLEMENTED,
    WINDOW_UPDATE,
    Broken,
    frame,
    literal,
)

PATH = "/service/Method"
FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "picker"),
    (":path", PATH),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
HELLO = PREFACE + frame(SETTINGS, 0, 0, b"")


def grpc(message: bytes, *, compressed: bool = False) -> bytes:
    return struct.pack(">BI", compressed, len(message)) + message


class Book:
    """Keeps what it is told, and does with each call as a test says."""

    def __init__(self) -> None:
        self.began_with: list[str] = []
        self.heard: dict[int, list[bytes]] = {}
        self.ends: dict[int, list[str]] = {}
        self.calls: dict[int, Call] = {}
        self.on_message: Callable[[Call, bytes], None] = lambda _, __: None
        self.on_half_closed: Callable[[Call], None] = lambda _: None

    def began(self, call: Call, path: str) -> None:
        assert call.stream not in self.calls
        self.began_with.append(path)
        self.calls[call.stream] = call
        self.heard[call.stream], self.ends[call.stream] = [], []

    def message(self, call: Call, message: bytes) -> None:
        assert not self.ends[call.stream]
        self.heard[call.stream].append(message)
        self.on_message(call, message)

    def half_closed(self, call: Call) -> None:
        self.ends[call.stream].append("half_closed")
        self.on_half_closed(call)

    def gone(self, call: Call) -> None:
        self.ends[call.stream].append("gone")


class Rig:
    """A client of the library h2 on one side, our connection on the other, and nothing between them."""

    def __init__(self, most_bytes: int = 1 << 20, window: int = 65_535, frame_bytes: int = FRAME_BYTES) -> None:
        self.book = Book()
        self.wakes = 0
        self.ours = Connection(self.book, most_bytes, self._wake)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.client.initiate_connection()
        self.client.update_settings(
            {
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: frame_bytes,
            }
        )
        self.events: list[h2.events.Event] = []
        self.acknowledge = True
        self.exchange()

    def _wake(self) -> None:
        self.wakes += 1

    def exchange(self, cuts: tuple[int, ...] = ()) -> None:
        """Hand what either has to say to the other until both are silent; what the client says is cut at `cuts`."""
        while True:
            said = self.client.data_to_send()
            places = sorted({0, len(said), *(cut % (len(said) + 1) for cut in cuts)})
            for start, end in itertools.pairwise(places):
                self.ours.receive(said[start:end])
            answer = self.ours.outgoing()
            if not said and not answer:
                return
            for event in self.client.receive_data(answer):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived) and self.acknowledge:
                    self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def open(self, fields: list[tuple[str, str]] | None = None, *, end: bool = False) -> int:
        stream = int(self.client.get_next_available_stream_id())
        self.client.send_headers(stream, fields or FIELDS, end_stream=end)
        return stream

    def say(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """All of it, as far as the windows that we gave go, and more when we give more."""
        while True:
            room = min(self.client.local_flow_control_window(stream), self.client.max_outbound_frame_size)
            piece, data = data[:room], data[room:]
            self.client.send_data(stream, piece, end_stream=end and not data)
            if not data:
                return
            self.exchange()

    def answered(self, stream: int) -> list[bytes]:
        """The messages that came back on this call."""
        whole = b"".join(
            bytes(event.data)
            for event in self.events
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream
        )
        found = []
        while whole:
            _, size = struct.unpack_from(">BI", whole)
            found.append(whole[5 : 5 + size])
            whole = whole[5 + size :]
        return found

    def trailers(self, stream: int) -> dict[str, str]:
        found: dict[str, str] = {}
        for event in self.events:
            if isinstance(event, h2.events.TrailersReceived | h2.events.ResponseReceived) and event.stream_id == stream:
                found |= {_text(name): _text(value) for name, value in event.headers}
        return found


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


MESSAGES = st.lists(st.binary(max_size=400), max_size=6)


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.lists(st.integers(0, 5000), max_size=8).map(tuple))
def test_messages_arrive_whole_and_in_order_wherever_the_bytes_are_cut(
    calls: list[list[bytes]], cuts: tuple[int, ...]
) -> None:
    rig = Rig()
    streams = [rig.open() for _ in calls]
    for stream, messages in zip(streams, calls, strict=True):
        rig.client.send_data(stream, b"".join(map(grpc, messages)), end_stream=True)
    rig.exchange(cuts)
    assert rig.book.began_with == [PATH] * len(calls)
    assert list(rig.book.heard.values()) == calls
    assert list(rig.book.ends.values()) == [["half_closed"]] * len(calls)


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=90_000), max_size=4),
    st.integers(0, 70_000),
    st.sampled_from([FRAME_BYTES, 40_000]),
)
def test_answers_keep_to_the_windows_of_the_peer_and_all_of_them_arrive(
    answers: list[bytes], window: int, frame_bytes: int
) -> None:
    """The library refuses a byte over its window, or a frame over its size."""
    rig = Rig(window=window, frame_bytes=frame_bytes)
    rig.acknowledge = False
    stream = rig.open(end=True)
    rig.exchange()
    done: list[str] = []
    for answer in answers:
        rig.book.calls[stream].send(answer)
    rig.book.calls[stream].then(lambda: done.append("all out"))
    rig.book.calls[stream].finish()
    rig.exchange()
    for _ in range(400):
        if done:
            break
        rig.client.increment_flow_control_window(7_000, stream)
        rig.client.increment_flow_control_window(7_000)
        rig.exchange()
    rig.exchange()
    assert done == ["all out"]
    assert rig.answered(stream) == answers
    assert rig.trailers(stream)["grpc-status"] == "0"
    assert any(isinstance(event, h2.events.StreamEnded) for event in rig.events)


def test_a_body_of_many_windows_is_taken_and_its_room_given_back() -> None:
    rig = Rig(most_bytes=64 << 20)
    message = bytes(3 * CALL_WINDOW + 12_345)
    stream = rig.open()
    rig.exchange()
    rig.say(stream, grpc(message), end=True)
    rig.exchange()
    assert rig.book.heard[stream] == [message]
    again = rig.open()
    rig.exchange()
    rig.say(again, grpc(b"after"), end=True)
    rig.exchange()
    assert rig.book.heard[again] == [b"after"]


def test_calls_are_answered_one_beside_the_other() -> None:
    rig = Rig()
    rig.book.on_message = lambda call, message: call.send(message[::-1])
    rig.book.on_half_closed = lambda call: call.finish()
    streams = [rig.open() for _ in range(3)]
    for stream in reversed(streams):
        rig.client.send_data(stream, grpc(b"call %d" % stream), end_stream=True)
    rig.exchange()
    for stream in streams:
        assert rig.answered(stream) == [(b"call %d" % stream)[::-1]]
        assert rig.trailers(stream) == {
            ":status": "200", "content-type": "application/grpc", "grpc-status": "0",
        }  # fmt: skip


def test_header_fields_that_change_are_read_each_time() -> None:
    rig = Rig()
    for number in range(200):
        method = f"/service/Method{number % 7}"
        fields = [(name, method if name == ":path" else value) for name, value in FIELDS]
        if number % 3 == 0:
            fields.append((f"x-{number}", "y" * (number % 50)))
        rig.open(fields, end=True)
        rig.exchange()
    assert rig.book.began_with == [f"/service/Method{number % 7}" for number in range(200)]


def test_a_refusal_of_a_call_needs_no_message() -> None:
    rig = Rig()
    stream = rig.open()
    rig.exchange()
    rig.book.calls[stream].finish(UNIMPLEMENTED, "no such thing: é")
    rig.exchange()
    assert rig.trailers(stream)["grpc-status"] == "12"
    assert rig.trailers(stream)["grpc-message"] == "no%20such%20thing%3A%20%C3%A9"
    assert any(isinstance(event, h2.events.StreamReset) for event in rig.events)  # it need not go on talking
    rig.book.calls[stream].send(b"more")
    rig.book.calls[stream].finish()
    assert rig.ours.outgoing() == b""


@pytest.mark.parametrize("text", ["x" * 500, "é" * 80, "x" * 118 + "éé", "x" * 119 + "é", "100 %"])
def test_words_of_any_length_are_cut_between_two_characters(text: str) -> None:
    rig = Rig()
    stream = rig.open()
    rig.exchange()
    rig.book.calls[stream].finish(UNIMPLEMENTED, text)
    rig.exchange()
    told = unquote(rig.trailers(stream)["grpc-message"].removesuffix("%C3"))
    assert told
    assert text.startswith(told)


def test_a_call_that_is_broken_off_is_told_once_and_so_are_all_when_the_connection_ends() -> None:
    rig = Rig()
    one, two, three = (rig.open() for _ in range(3))
    rig.client.reset_stream(one)
    rig.exchange()
    rig.book.calls[three].finish()
    rig.exchange()
    rig.ours.lost()
    assert (rig.book.ends[one], rig.book.ends[two], rig.book.ends[three]) == (["gone"], ["gone"], [])


@pytest.mark.parametrize(
    ("data", "status"),
    [(grpc(b"x", compressed=True), "12"), (struct.pack(">BI", 0, 2000), "8"), (grpc(bytes(1001)), "8")],
)
def test_a_message_that_cannot_be_taken_ends_its_call_and_no_other(data: bytes, status: str) -> None:
    rig = Rig(most_bytes=1000)
    bad, good = rig.open(), rig.open()
    rig.client.send_data(bad, data)
    rig.client.send_data(good, grpc(bytes(1000)), end_stream=True)
    rig.exchange()
    assert rig.trailers(bad)["grpc-status"] == status
    assert (rig.book.ends[bad], rig.book.heard[bad]) == (["gone"], [])
    assert (rig.book.ends[good], rig.book.heard[good]) == (["half_closed"], [bytes(1000)])


def test_who_goes_away_takes_no_more_calls_and_answers_those_that_it_has() -> None:
    rig = Rig()
    stream = rig.open()
    rig.exchange()
    rig.ours.go_away()
    rig.ours.go_away()
    rig.book.calls[stream].send(b"still")
    rig.ours.receive(frame(HEADERS, END_HEADERS, stream + 2, BLOCK))
    said = rig.ours.outgoing()  # the library takes the first of these for the end of all
    assert said.startswith(frame(GOAWAY, 0, 0, struct.pack(">II", stream, 0)))
    assert frame(DATA, 0, stream, grpc(b"still")) in said
    assert said.endswith(frame(RST_STREAM, 0, stream + 2, struct.pack(">I", 7)))
    assert said.count(frame(GOAWAY, 0, 0, bytes(8))[:9]) == 1
    assert rig.book.began_with == [PATH]


def test_what_is_said_outside_of_reading_wakes_the_socket_once_until_it_is_taken() -> None:
    rig = Rig()
    stream = rig.open()
    rig.exchange()
    before = rig.wakes
    rig.book.calls[stream].send(b"one")
    rig.book.calls[stream].send(b"two")
    assert rig.wakes == before + 1
    rig.exchange()
    rig.book.calls[stream].send(b"three")
    assert rig.wakes == before + 2


def test_while_the_socket_takes_no_more_messages_wait() -> None:
    rig = Rig()
    stream = rig.open()
    rig.exchange()
    rig.ours.pause(paused=True)
    out: list[bool] = []
    rig.book.calls[stream].send(b"one")
    rig.book.calls[stream].then(lambda: out.append(True))
    rig.exchange()
    assert (rig.answered(stream), out) == ([], [])
    rig.ours.pause(paused=False)
    rig.exchange()
    assert (rig.answered(stream), out) == ([b"one"], [True])


def settings_frame(name: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", name, value))


TRAILERS = literal(b"x", b"y")
BLOCK = bytes.fromhex("8386") + b"\x44" + bytes([len(PATH)]) + PATH.encode()  # POST, http, a literal path


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        PREFACE + frame(PING, 0, 0, bytes(8)),
        HELLO + frame(DATA, 0, 1, b"x"),
        HELLO + frame(DATA, 0, 0, b"x"),
        HELLO + frame(HEADERS, END_HEADERS, 2, BLOCK),
        HELLO + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
        HELLO + frame(HEADERS, END_HEADERS, 1, b"\x80"),
        HELLO + frame(HEADERS, 0, 1, BLOCK) + frame(PING, 0, 0, bytes(8)),
        HELLO + frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, END_HEADERS, 3, b""),
        HELLO + frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, 0, 1, b"") * 100,
        HELLO + frame(HEADERS, 0, 1, bytes(16_000)) + frame(CONTINUATION, 0, 1, bytes(16_000)) * 5,
        HELLO + frame(CONTINUATION, END_HEADERS, 1, BLOCK),
        HELLO + frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09" + bytes(4)),
        HELLO + frame(HEADERS, END_HEADERS, 1, BLOCK) + frame(HEADERS, END_HEADERS, 1, TRAILERS),
        HELLO + frame(HEADERS, END_HEADERS, 5, BLOCK) + frame(HEADERS, END_HEADERS, 3, BLOCK),
        HELLO + frame(HEADERS, END_HEADERS, 1, BLOCK) + frame(RST_STREAM, 0, 1, bytes(4))
        + frame(HEADERS, END_HEADERS | END_STREAM, 1, TRAILERS),
        HELLO + frame(HEADERS, END_HEADERS | END_STREAM, 1, BLOCK) + frame(DATA, PADDED, 3, b""),
        HELLO + frame(HEADERS, END_HEADERS, 1, BLOCK) + frame(DATA, PADDED, 1, b"\x05x"),
        HELLO + frame(HEADERS, END_HEADERS, 1, b"\x00\x01x\x7f\xff\xff\x03" + bytes(100)),
        HELLO + frame(RST_STREAM, 0, 1, bytes(4)),
        HELLO + frame(RST_STREAM, 0, 1, bytes(3)),
        HELLO + frame(PING, 0, 0, bytes(7)),
        HELLO + frame(SETTINGS, 0, 0, bytes(5)),
        HELLO + frame(PING, 0, 1, bytes(8)),
        HELLO + frame(SETTINGS, 0, 1, b""),
        HELLO + settings_frame(2, 2),
        HELLO + frame(GOAWAY, 0, 1, bytes(8)),
        HELLO + frame(PRIORITY, 0, 0, bytes(5)),
        HELLO + frame(WINDOW_UPDATE, 0, 1, b"\x00\x00\x00\x01"),
        HELLO + settings_frame(4, 1 << 31),
        HELLO + settings_frame(5, 100),
        HELLO + frame(WINDOW_UPDATE, 0, 0, bytes(4)),
        HELLO + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
        HELLO + frame(PUSH_PROMISE, 0, 1, bytes(4)),
        HELLO + b"\x00\x40\x01" + bytes([DATA, 0, 0, 0, 0, 1]),
    ],
)  # fmt: skip
def test_what_breaks_the_protocol_ends_the_connection_with_a_word_why(data: bytes) -> None:
    connection = Connection(Book(), 1000, lambda: None)
    connection.outgoing()
    with pytest.raises(Broken) as broken:
        connection.receive(data)
    assert str(broken.value)
    said = connection.outgoing()
    assert said.endswith(frame(GOAWAY, 0, 0, said[-8:-4] + struct.pack(">I", broken.value.code)))


BEGUN = frame(HEADERS, END_HEADERS, 1, BLOCK)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (BEGUN + frame(WINDOW_UPDATE, 0, 1, bytes(4)), PROTOCOL_ERROR),
        (BEGUN + frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), FLOW_CONTROL_ERROR),
        (BEGUN + frame(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
        (BEGUN + frame(DATA, END_STREAM, 1, b"") + frame(DATA, 0, 1, b"x"), STREAM_CLOSED),
        (BEGUN + frame(DATA, END_STREAM, 1, b"") + frame(HEADERS, 5, 1, TRAILERS), STREAM_CLOSED),
        (BEGUN + frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x83"), PROTOCOL_ERROR),
    ],
)
def test_what_goes_wrong_in_one_call_ends_that_call_and_no_other(data: bytes, code: int) -> None:
    book = Book()
    connection = Connection(book, 1000, lambda: None)
    connection.receive(HELLO + data)
    reset = frame(RST_STREAM, 0, 1, struct.pack(">I", code))
    assert connection.outgoing().endswith(reset)
    assert len(book.ends[1]) - book.ends[1].count("half_closed") == 1
    connection.receive(frame(DATA, 0, 1, b"more") + frame(HEADERS, 5, 1, TRAILERS))  # it had not heard of its end yet
    connection.receive(frame(HEADERS, END_HEADERS, 3, BLOCK) + frame(DATA, END_STREAM, 3, grpc(b"x")))
    assert reset not in connection.outgoing()
    assert book.heard[3] == [b"x"]


def test_who_goes_on_in_a_call_that_it_ended_is_told_once() -> None:
    connection = Connection(Book(), 1000, lambda: None)
    connection.receive(HELLO + BEGUN + frame(RST_STREAM, 0, 1, bytes(4)))
    connection.outgoing()
    connection.receive(frame(DATA, 0, 1, b"x") * 2)
    assert connection.outgoing() == frame(RST_STREAM, 0, 1, struct.pack(">I", STREAM_CLOSED))


def fields_of(*fields: tuple[str, str]) -> bytes:
    return b"".join(literal(name.encode(), value.encode()) for name, value in fields)


REQUEST = ((":method", "POST"), (":scheme", "http"), (":path", PATH))


@pytest.mark.parametrize(
    "fields",
    [
        REQUEST[1:],
        REQUEST[:2],
        (REQUEST[0], REQUEST[2]),
        (*REQUEST[:2], (":path", "")),
        (*REQUEST, REQUEST[0]),
        (*REQUEST, (":status", "200")),
        (*REQUEST, (":other", "1")),
        (("te", "trailers"), *REQUEST),
        (*REQUEST, ("TE", "trailers")),
        (*REQUEST, ("te", "gzip")),
        (*REQUEST, ("connection", "close")),
        (*REQUEST, ("transfer-encoding", "chunked")),
    ],
)
def test_header_fields_that_are_no_request_refuse_their_call_and_no_other(fields: tuple[tuple[str, str], ...]) -> None:
    book = Book()
    connection = Connection(book, 1000, lambda: None)
    connection.receive(HELLO)
    connection.outgoing()
    connection.receive(frame(HEADERS, END_HEADERS, 1, fields_of(*fields)))
    assert connection.outgoing() == frame(RST_STREAM, 0, 1, struct.pack(">I", PROTOCOL_ERROR))
    connection.receive(frame(HEADERS, END_HEADERS, 3, fields_of(*REQUEST, ("te", "trailers"), ("x", "connection"))))
    assert (list(book.calls), book.began_with) == ([3], [PATH])


def test_the_window_of_a_call_is_given_back_as_it_is_taken() -> None:
    connection = Connection(Book(), 64 << 20, lambda: None)
    connection.receive(HELLO + frame(HEADERS, END_HEADERS, 1, BLOCK))
    connection.outgoing()
    given_back = frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", CALL_WINDOW // 2))
    for number in range(1, 2 * CALL_WINDOW // FRAME_BYTES + 1):
        connection.receive(frame(DATA, 0, 1, bytes(FRAME_BYTES)))
        assert (given_back in connection.outgoing()) is (number * FRAME_BYTES % (CALL_WINDOW // 2) == 0)


@pytest.mark.parametrize(
    "data",
    [
        frame(PRIORITY, 0, 1, bytes(5)),
        frame(0x20, 0xFF, 7, b"anything"),
        frame(GOAWAY, 0, 0, bytes(8)),
        frame(PING, 1, 0, bytes(8)),
        settings_frame(99, 5),
    ],
)
def test_what_is_of_no_concern_is_passed_over(data: bytes) -> None:
    book = Book()
    connection = Connection(book, 1000, lambda: None)
    connection.receive(HELLO + data + frame(HEADERS, END_HEADERS, 1, BLOCK) + frame(DATA, END_STREAM, 1, grpc(b"x")))
    assert (book.began_with, book.heard) == ([PATH], {1: [b"x"]})


def test_padding_and_priorities_of_a_call_are_taken_off() -> None:
    book = Book()
    connection = Connection(book, 1000, lambda: None)
    padded = b"\x03" + bytes(5) + BLOCK + bytes(3)
    connection.receive(HELLO + frame(HEADERS, END_HEADERS | PADDED | 0x20, 1, padded))
    connection.receive(frame(DATA, END_STREAM | PADDED, 1, b"\x04" + grpc(b"x") + bytes(4)))
    assert (book.began_with, book.heard) == ([PATH], {1: [b"x"]})


FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 0x7FFFFFFF, 0xFFFFFFFF]),
    st.binary(max_size=30) | st.just(BLOCK) | st.just(grpc(b"message")),
)


@settings(max_examples=400)
@given(st.booleans(), st.lists(FRAMES | st.binary(max_size=20), max_size=12))
def test_whatever_comes_in_ends_at_worst_the_connection_and_each_call_once(hello: bool, pieces: list[bytes]) -> None:
    book = Book()
    book.on_message = lambda call, message: call.send(message)
    book.on_half_closed = lambda call: call.finish()
    connection = Connection(book, HEADER_BYTES, lambda: None)
    try:
        for piece in ([HELLO] if hello else []) + pieces:
            connection.receive(piece)
    except Broken as broken:
        connection.go_away()
        reason = str(broken)
    else:
        reason = "none"
    connection.lost()
    assert reason
    assert all(len(ends) == 1 for ends in book.ends.values())
