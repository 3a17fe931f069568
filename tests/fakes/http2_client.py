"""A gRPC client without a socket: the library h2 on one side, the agent's connection on the other."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.settings

from agent.serve.grpc.call import Call, CallOpener
from agent.serve.http2.connection import Connection
from agent.serve.http2.frames import MAX_FRAME_SIZE

PATH = "/service/Method"
FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "picker"),
    (":path", PATH),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


def grpc_message(message: bytes, *, compressed: bool = False) -> bytes:
    """A message with its prefix."""
    return struct.pack(">BI", compressed, len(message)) + message


def grpc_connection(opener: CallOpener, wake: Callable[[], None] = lambda: None) -> Connection:
    """A connection whose streams are calls, as a listener makes it."""
    return Connection(lambda connection, stream, window: Call(connection, stream, window, opener), wake)


class CallRecorder:
    """Records the events of all calls by stream; a test sets what happens on one."""

    def __init__(self, max_message_bytes: int = 1 << 20) -> None:
        self.max_message_bytes = max_message_bytes
        self.paths: list[str] = []
        self.messages: dict[int, list[bytes]] = {}
        self.ends: dict[int, list[str]] = {}
        self.calls: dict[int, Call] = {}
        self.failures: list[tuple[str, Exception]] = []
        self.on_message: Callable[[Call, bytes], None] = lambda _, __: None
        self.on_half_close: Callable[[Call], None] = lambda _: None

    def open(self, call: Call) -> None:
        assert call.stream_id not in self.calls
        self.paths.append(call.path)
        self.calls[call.stream_id] = call
        self.messages[call.stream_id], self.ends[call.stream_id] = [], []
        call.max_message_bytes = self.max_message_bytes
        call.handler = RecordedCall(self, call)

    def handler_failed(self, call: Call, error: Exception) -> None:
        self.failures.append((call.path, error))


class RecordedCall:
    """The handler of one call."""

    def __init__(self, recorder: CallRecorder, call: Call) -> None:
        self._recorder = recorder
        self._call = call

    def on_message(self, message: bytes) -> None:
        assert not self._recorder.ends[self._call.stream_id]
        self._recorder.messages[self._call.stream_id].append(message)
        self._recorder.on_message(self._call, message)

    def on_half_close(self) -> None:
        self._recorder.ends[self._call.stream_id].append("half-closed")
        self._recorder.on_half_close(self._call)

    def on_close(self) -> None:
        self._recorder.ends[self._call.stream_id].append("closed")


class Http2Client:
    """The client, and the connection that it is connected to. `exchange` moves bytes; `events` is what came back."""

    def __init__(self, opener: CallOpener, window: int = 65_535, max_frame_size: int = MAX_FRAME_SIZE) -> None:
        self.wakes = 0
        self.server = grpc_connection(opener, self._wake)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.h2.update_settings(
            {
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: max_frame_size,
            }
        )
        self.events: list[h2.events.Event] = []
        self.acknowledge = True
        self.exchange()

    def _wake(self) -> None:
        self.wakes += 1

    def exchange(self, cuts: tuple[int, ...] = ()) -> None:
        """Move bytes until neither side has any; those of the client are cut at `cuts`."""
        while True:
            sent = self.h2.data_to_send()
            places = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
            for start, end in itertools.pairwise(places):
                self.server.receive(sent[start:end])
            answer = self.server.outgoing()
            if not sent and not answer:
                return
            for event in self.h2.receive_data(answer):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived) and self.acknowledge:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def open(self, fields: list[tuple[str, str]] | None = None, *, path: str = PATH, end: bool = False) -> int:
        """Begin a call; the stream."""
        stream = int(self.h2.get_next_available_stream_id())
        found = fields or [(name, path if name == ":path" else value) for name, value in FIELDS]
        self.h2.send_headers(stream, found, end_stream=end)
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send all of it, in as many frames and windows as it takes."""
        while True:
            admitted = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            piece, data = data[:admitted], data[admitted:]
            self.h2.send_data(stream, piece, end_stream=end and not data)
            if not data:
                return
            self.exchange()

    def call(self, path: str, *messages: bytes, end: bool = True) -> int:
        """A call with these messages, exchanged; the stream."""
        stream = self.open(path=path)
        self.h2.send_data(stream, b"".join(map(grpc_message, messages)), end_stream=end)
        self.exchange()
        return stream

    def responses(self, stream: int) -> list[bytes]:
        """The messages that came back on this stream."""
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
        """The response's fields, those of its headers included."""
        found: dict[str, str] = {}
        for event in self.events:
            if isinstance(event, h2.events.TrailersReceived | h2.events.ResponseReceived) and event.stream_id == stream:
                found |= {_text(name): _text(value) for name, value in event.headers}
        return found

    def status(self, stream: int) -> int:
        """The call's `grpc-status`; -1 while it is open."""
        return int(self.trailers(stream).get("grpc-status", "-1"))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
