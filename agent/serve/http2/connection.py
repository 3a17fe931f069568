"""The server side of one HTTP/2 connection (RFC 9113), without a socket: bytes in, events of streams and bytes out.

    receive(bytes) --> Stream.on_headers, on_data ..., then one of on_half_close and on_close
    send_headers, send_data, end_stream --> outgoing(): read it after `receive`, and when `wake` was called

It implements what gRPC clients and Envoy use: no server push, no priorities. Sending respects the peer's flow-control
windows: data that does not fit waits at its stream, in order. Received data is handed on at once, so windows are
returned as data arrives. A connection error raises `ConnectionFailed`; a stream error ends that stream alone.

This module does not know gRPC: `agent.serve.grpc.call` subclasses `Stream`, so that a DATA frame which holds one whole
gRPC message reaches its handler in one call. Pure: the socket and the clock belong to `agent.serve.grpc.listener`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from agent.serve.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW_SIZE,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    FRAME_HEADER_SIZE,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_CONTINUATION_FRAMES,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_MAX_FRAME_SIZE,
    MAX_RESET_STREAMS,
    MAX_WINDOW_SIZE,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTING,
    SETTINGS,
    SETTINGS_ENABLE_PUSH,
    SETTINGS_INITIAL_WINDOW_SIZE,
    SETTINGS_MAX_CONCURRENT_STREAMS,
    SETTINGS_MAX_FRAME_SIZE,
    SETTINGS_MAX_HEADER_LIST_SIZE,
    UINT32,
    WINDOW_UPDATE,
    ConnectionFailed,
    ErrorCode,
    StreamFailed,
    check_size,
    frame,
    without_padding,
)
from agent.serve.http2.header_fields import FieldDecoder


class Stream:
    """One request and its response. A subclass overrides the events, which its connection calls.

    No event follows once `done` is true, and nothing may be sent. `on_close` comes only where the peer reset the stream
    or the connection ended before the response did. Events must not raise.
    """

    __slots__ = ("connection", "done", "half_closed", "queue", "receive_window", "send_window", "stream_id")

    def __init__(self, connection: Connection, stream_id: int, send_window: int) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.done = False
        self.half_closed = False  # the peer has sent END_STREAM
        self.receive_window = INITIAL_WINDOW_SIZE  # bytes that the peer may send
        self.send_window = send_window  # bytes that the peer accepts
        self.queue: deque[bytes | Callable[[], None]] = deque()  # data that waits for a window, and what follows it

    def on_headers(self, path: str) -> None:
        """The request began; `path` is its `:path`."""
        raise NotImplementedError

    def on_data(self, data: bytes) -> None:
        """The payload of one DATA frame."""
        raise NotImplementedError

    def on_half_close(self) -> None:
        """The peer sent END_STREAM."""
        raise NotImplementedError

    def on_close(self) -> None:
        """The stream was reset, or its connection ended."""
        raise NotImplementedError

    def when_sent(self, action: Callable[[], None]) -> None:
        """Call `action` once all data sent so far is out of the queue; at once if nothing waits."""
        if self.queue:
            self.queue.append(action)
        else:
            action()


class Connection:
    """One connection. `new_stream(connection, stream_id, send_window)` makes a stream for each request.

    `wake` is called when `outgoing` has bytes that no call of `receive` produced.
    """

    def __init__(self, new_stream: Callable[[Connection, int, int], Stream], wake: Callable[[], None]) -> None:
        self._new_stream = new_stream
        self._wake = wake
        self._receiving = False
        self._going_away = False
        self._preface_received = self._settings_received = False
        self._input = b""  # an incomplete frame
        self._block = b""  # a field block whose END_HEADERS has not come
        self._block_flags = self._block_stream_id = self._block_frames = 0
        self._fields = FieldDecoder()
        self._streams: dict[int, Stream] = {}
        self._blocked: dict[int, Stream] = {}  # those whose queue is not empty
        self._last_stream_id = 0  # the highest that the peer has opened
        # The latest streams that were reset here: the peer may not know it yet, so their frames are ignored.
        self._reset_streams: dict[int, None] = {}
        self._receive_window = MAX_WINDOW_SIZE
        self._send_window = DEFAULT_WINDOW_SIZE
        self._initial_send_window = DEFAULT_WINDOW_SIZE
        self._max_frame_size = MAX_FRAME_SIZE  # of frames to the peer
        self._paused = False
        self._on_frame: Final[dict[int, Callable[[int, int, bytes], None]]] = {
            DATA: self._on_data,
            HEADERS: self._on_headers,
            PRIORITY: self._on_priority,
            RST_STREAM: self._on_rst_stream,
            SETTINGS: self._on_settings,
            PUSH_PROMISE: self._on_push_promise,
            PING: self._on_ping,
            GOAWAY: self._on_goaway,
            WINDOW_UPDATE: self._on_window_update,
            CONTINUATION: self._on_continuation,
        }
        self._out: list[bytes] = [
            frame(
                SETTINGS,
                0,
                0,
                SETTING.pack(SETTINGS_MAX_CONCURRENT_STREAMS, MAX_CONCURRENT_STREAMS)
                + SETTING.pack(SETTINGS_INITIAL_WINDOW_SIZE, INITIAL_WINDOW_SIZE)
                + SETTING.pack(SETTINGS_MAX_HEADER_LIST_SIZE, MAX_HEADER_LIST_SIZE),
            ),
            frame(WINDOW_UPDATE, 0, 0, UINT32.pack(MAX_WINDOW_SIZE - DEFAULT_WINDOW_SIZE)),
        ]

    # -- the socket calls these --------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Process bytes from the peer. Raises `ConnectionFailed`, after which `outgoing` ends with GOAWAY."""
        self._receiving = True
        try:
            self._process(self._input + data if self._input else data)
        except ConnectionFailed as error:
            self._out.append(self._goaway_frame(error.code))
            raise
        finally:
            self._receiving = False

    def outgoing(self) -> bytes:
        """The bytes to write now; they are returned once."""
        out, self._out = self._out, []
        return out[0] if len(out) == 1 else b"".join(out)

    def pause(self, *, paused: bool) -> None:
        """Hold back DATA while the socket's write buffer is full."""
        self._paused = paused
        if not paused:
            self._flush_all()

    def ping(self) -> None:
        """Send PING."""
        self._write(frame(PING, 0, 0, bytes(8)))

    def goaway(self) -> None:
        """Send GOAWAY (NO_ERROR) and refuse new streams; open streams continue."""
        if not self._going_away:
            self._going_away = True
            self._write(self._goaway_frame(ErrorCode.NO_ERROR))

    def closed(self) -> None:
        """The socket was closed: close every stream."""
        streams, self._streams = self._streams, {}
        self._blocked.clear()
        for stream in streams.values():
            if not stream.done:
                stream.done = True
                stream.on_close()

    # -- streams call these ------------------------------------------------------------------------------------------

    def send_headers(self, stream: Stream, block: bytes) -> None:
        """Send the response's header fields, encoded."""
        self._write(frame(HEADERS, END_HEADERS, stream.stream_id, block))

    def send_data(self, stream: Stream, data: bytes) -> None:
        """Send data, or queue what the peer's windows do not admit."""
        size = len(data)
        fits = size <= stream.send_window and size <= self._send_window and size <= self._max_frame_size
        if fits and not stream.queue and not self._paused:
            stream.send_window -= size
            self._send_window -= size
            self._write(frame(DATA, 0, stream.stream_id, data))
        else:
            stream.queue.append(data)
            self._blocked[stream.stream_id] = stream
            self._flush(stream)

    def end_stream(self, stream: Stream, trailers: bytes) -> None:
        """End the response with trailers, encoded, behind all queued data."""
        stream.done = True
        if stream.queue:
            stream.queue.append(lambda: self._end_stream(stream, trailers))
        else:
            self._end_stream(stream, trailers)

    # -- sending -----------------------------------------------------------------------------------------------------

    def _end_stream(self, stream: Stream, trailers: bytes) -> None:
        self._write(frame(HEADERS, END_HEADERS | END_STREAM, stream.stream_id, trailers))
        if not stream.half_closed:  # the rest of the request is not needed (RFC 9113, 8.1)
            self._rst_stream(stream.stream_id, ErrorCode.NO_ERROR)
        self._forget(stream)

    def _rst_stream(self, stream_id: int, code: ErrorCode) -> None:
        self._write(frame(RST_STREAM, 0, stream_id, UINT32.pack(code)))
        self._reset_streams[stream_id] = None
        if len(self._reset_streams) > MAX_RESET_STREAMS:
            del self._reset_streams[next(iter(self._reset_streams))]

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        """A stream error."""
        self._rst_stream(stream.stream_id, code)
        self._close(stream)

    def _close(self, stream: Stream) -> None:
        self._forget(stream)
        if not stream.done:
            stream.done = True
            stream.on_close()

    def _forget(self, stream: Stream) -> None:
        self._streams.pop(stream.stream_id, None)
        self._blocked.pop(stream.stream_id, None)

    def _goaway_frame(self, code: ErrorCode) -> bytes:
        return frame(GOAWAY, 0, 0, UINT32.pack(self._last_stream_id) + UINT32.pack(code))

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        if not self._receiving and len(self._out) == 1:
            self._wake()

    def _flush_all(self) -> None:
        for stream in list(self._blocked.values()):
            self._flush(stream)

    def _flush(self, stream: Stream) -> None:
        """Send from the stream's queue what the windows admit."""
        queue = stream.queue
        while queue:
            first = queue[0]
            if not isinstance(first, bytes):
                queue.popleft()
                first()
                continue
            admitted = min(stream.send_window, self._send_window, self._max_frame_size)
            if admitted <= 0 or self._paused:
                return
            piece = first[:admitted]
            if len(piece) == len(first):
                queue.popleft()
            else:
                queue[0] = first[admitted:]
            stream.send_window -= len(piece)
            self._send_window -= len(piece)
            self._write(frame(DATA, 0, stream.stream_id, piece))
        self._blocked.pop(stream.stream_id, None)

    # -- receiving ---------------------------------------------------------------------------------------------------

    def _process(self, data: bytes) -> None:
        at, size = 0, len(data)
        self._input = b""
        if not self._preface_received:
            if not data.startswith(PREFACE[:size]):
                raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "invalid connection preface")
            if size < len(PREFACE):
                self._input = data
                return
            self._preface_received, at = True, len(PREFACE)
        while size - at >= FRAME_HEADER_SIZE:
            high, low, kind, flags, stream_id = FRAME_HEADER.unpack_from(data, at)
            length = high << 8 | low
            if length > MAX_FRAME_SIZE:
                raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes, over {MAX_FRAME_SIZE}")
            end = at + FRAME_HEADER_SIZE + length
            if end > size:
                break
            payload = data[at + FRAME_HEADER_SIZE : end]
            at = end
            if self._block_stream_id and (kind != CONTINUATION or stream_id != self._block_stream_id):
                raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "HEADERS not followed by CONTINUATION")
            if not self._settings_received and kind != SETTINGS:
                raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "first frame is not SETTINGS")
            handle = self._on_frame.get(kind)
            if handle is not None:  # frames of unknown types are ignored (RFC 9113, 5.5)
                handle(stream_id & MAX_WINDOW_SIZE, flags, payload)  # the highest bit is reserved
        self._input = data[at:]

    def _on_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window <= MAX_WINDOW_SIZE - INITIAL_WINDOW_SIZE:
            self._write(frame(WINDOW_UPDATE, 0, 0, UINT32.pack(MAX_WINDOW_SIZE - self._receive_window)))
            self._receive_window = MAX_WINDOW_SIZE
        stream = self._streams.get(stream_id)
        if stream is None:
            if not 0 < stream_id <= self._last_stream_id:
                raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "DATA on an idle stream")
            if stream_id not in self._reset_streams:
                self._rst_stream(stream_id, ErrorCode.STREAM_CLOSED)
            return
        if stream.half_closed:
            self._reset(stream, ErrorCode.STREAM_CLOSED)
            return
        if flags & PADDED:
            payload = without_padding(payload)
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise ConnectionFailed(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
        if stream.receive_window <= INITIAL_WINDOW_SIZE // 2 and not flags & END_STREAM:
            self._write(frame(WINDOW_UPDATE, 0, stream_id, UINT32.pack(INITIAL_WINDOW_SIZE - stream.receive_window)))
            stream.receive_window = INITIAL_WINDOW_SIZE
        if flags & END_STREAM:
            stream.half_closed = True
        if not stream.done:
            stream.on_data(payload)
        if stream.half_closed and not stream.done:
            stream.on_half_close()

    def _on_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "HEADERS on a stream with an even identifier")
        if flags & PADDED:
            payload = without_padding(payload)
        if flags & PRIORITY_FLAG:
            payload = payload[5:]
        if flags & END_HEADERS:
            self._on_field_block(stream_id, flags, payload)
        else:
            self._block, self._block_flags, self._block_stream_id, self._block_frames = payload, flags, stream_id, 1

    def _on_continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not self._block_stream_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        self._block_frames += 1
        if len(self._block) > MAX_HEADER_LIST_SIZE or self._block_frames > MAX_CONTINUATION_FRAMES:
            raise ConnectionFailed(ErrorCode.ENHANCE_YOUR_CALM, "field block over the limit")
        if flags & END_HEADERS:
            block, self._block, self._block_stream_id = self._block, b"", 0
            self._on_field_block(stream_id, self._block_flags, block)

    def _on_field_block(self, stream_id: int, flags: int, block: bytes) -> None:
        if stream_id <= self._last_stream_id:
            self._on_trailers(stream_id, flags, block)
            return
        self._last_stream_id = stream_id
        try:
            path = self._fields.request_path(block)
        except StreamFailed:
            self._rst_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        if self._going_away or len(self._streams) >= MAX_CONCURRENT_STREAMS:
            self._rst_stream(stream_id, ErrorCode.REFUSED_STREAM)
            return
        stream = self._streams[stream_id] = self._new_stream(self, stream_id, self._initial_send_window)
        stream.half_closed = bool(flags & END_STREAM)
        stream.on_headers(path)
        if stream.half_closed and not stream.done:
            stream.on_half_close()

    def _on_trailers(self, stream_id: int, flags: int, block: bytes) -> None:
        malformed = False
        try:
            self._fields.trailers(block)
        except StreamFailed:
            malformed = True
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id not in self._reset_streams:
                raise ConnectionFailed(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        elif stream.half_closed:
            self._reset(stream, ErrorCode.STREAM_CLOSED)
        elif malformed:
            self._reset(stream, ErrorCode.PROTOCOL_ERROR)
        elif not flags & END_STREAM:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        else:
            stream.half_closed = True
            if not stream.done:
                stream.on_half_close()

    def _on_priority(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not stream_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        stream = self._streams.get(stream_id)
        if len(payload) != 5 and stream is not None:
            self._reset(stream, ErrorCode.FRAME_SIZE_ERROR)

    def _on_rst_stream(self, stream_id: int, flags: int, payload: bytes) -> None:
        check_size("RST_STREAM", payload, 4)
        if not 0 < stream_id <= self._last_stream_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._close(stream)

    def _on_settings(self, stream_id: int, flags: int, payload: bytes) -> None:
        self._settings_received = True
        if len(payload) % SETTING.size or (flags & ACK and payload):
            raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS with a payload of {len(payload)} bytes")
        if stream_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream other than 0")
        if flags & ACK:
            return
        for name, value in SETTING.iter_unpack(payload):
            if name == SETTINGS_ENABLE_PUSH and value > 1:
                raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH of {value}")
            if name == SETTINGS_INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW_SIZE:
                    raise ConnectionFailed(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE of {value}")
                change, self._initial_send_window = value - self._initial_send_window, value
                for stream in self._streams.values():
                    stream.send_window += change
            elif name == SETTINGS_MAX_FRAME_SIZE:
                if not MAX_FRAME_SIZE <= value <= MAX_MAX_FRAME_SIZE:
                    raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE of {value}")
                self._max_frame_size = value
        self._write(frame(SETTINGS, ACK, 0, b""))
        self._flush_all()

    def _on_push_promise(self, stream_id: int, flags: int, payload: bytes) -> None:
        raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _on_ping(self, stream_id: int, flags: int, payload: bytes) -> None:
        check_size("PING", payload, 8)
        if stream_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "PING on a stream other than 0")
        if not flags & ACK:
            self._write(frame(PING, ACK, 0, payload))

    def _on_goaway(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream other than 0")

    def _on_window_update(self, stream_id: int, flags: int, payload: bytes) -> None:
        check_size("WINDOW_UPDATE", payload, 4)
        increment = UINT32.unpack(payload)[0] & MAX_WINDOW_SIZE
        code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
        if not stream_id:
            self._send_window += increment
            if not increment or self._send_window > MAX_WINDOW_SIZE:
                raise ConnectionFailed(code, f"WINDOW_UPDATE by {increment} on stream 0")
            self._flush_all()
            return
        if stream_id > self._last_stream_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.send_window += increment
        if not increment or stream.send_window > MAX_WINDOW_SIZE:
            self._reset(stream, code)
        else:
            self._flush(stream)
