"""The server's side of gRPC over HTTP/2, without a socket: bytes come in as calls and messages, answers go out.

Of HTTP/2 (RFC 9113) it is what a gRPC client and Envoy use of it: no push, no priorities. Of gRPC's own protocol (its
PROTOCOL-HTTP2.md) all but compression. Header fields are decoded by the library `hpack`; of a connection's calls nearly
all have the same few bytes of indexes, so what these stand for is kept until the table behind them changes.

    receive(bytes) --> Calls.began, .message ..., then one of .half_closed and .gone
    send, finish   --> outgoing(), at the end of `receive`, or when `wake` was called

Sending keeps to the peer's windows: what does not fit waits at its call, in order. Receiving gives back what was taken,
as messages are handed on at once. Whatever breaks the protocol ends the connection (`Broken`), or where HTTP/2 says so
only the one call. Pure: a socket and a clock are somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.serve.grpc.call import Call, Calls, Unreadable
from agent.serve.http2.frames import (
    ACK,
    ANSWER,
    CALL_WINDOW,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FIRST_WINDOW,
    FLOW_CONTROL_ERROR,
    FRAME_BYTES,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HAS_PRIORITY,
    HEAD,
    HEADER_BYTES,
    HEADERS,
    MOST_CALLS,
    MOST_CONTINUATIONS,
    MOST_ENDED,
    MOST_WINDOW,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PREFIX,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTING,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    WORD,
    Broken,
    Fields,
    Malformed,
    frame,
    literal,
    percent_encoded,
    sized,
    unpadded,
)


class Outgoing:
    """The side that speaks. `wake` is called when there is something to take from `outgoing` that no reading led to."""

    def __init__(self, calls: Calls, wake: Callable[[], None]) -> None:
        self._owner = calls
        self._wake = wake
        self._receiving = False
        self._calls: dict[int, Call] = {}
        self._blocked: dict[int, Call] = {}  # those with something that waits
        self._last = 0  # the newest call's number
        self._ended: dict[int, None] = {}  # what we ended while the peer spoke, the latest: it may speak for a while
        self._closing = False
        self._window = FIRST_WINDOW
        self._frame_bytes = FRAME_BYTES
        self._paused = False
        self._out: list[bytes] = [
            frame(SETTINGS, 0, 0, SETTING.pack(3, MOST_CALLS) + SETTING.pack(4, CALL_WINDOW)
                   + SETTING.pack(6, HEADER_BYTES)),
            frame(WINDOW_UPDATE, 0, 0, WORD.pack(MOST_WINDOW - FIRST_WINDOW)),
        ]  # fmt: skip

    def outgoing(self) -> bytes:
        """What is to be written now."""
        out, self._out = self._out, []
        return out[0] if len(out) == 1 else b"".join(out)

    def pause(self, *, paused: bool) -> None:
        """The socket takes no more, or takes more again."""
        self._paused = paused
        if not paused:
            self._flush_all()

    def ping(self) -> None:
        """Ask whether the peer is there."""
        self._say(frame(PING, 0, 0, bytes(8)))

    def go_away(self) -> None:
        """Take no more calls."""
        if not self._closing:
            self._closing = True
            self._say(frame(GOAWAY, 0, 0, WORD.pack(self._last) + WORD.pack(NO_ERROR)))

    # -- what the calls' owner says, through `Call` ---------------------------------------------------------------

    def send(self, call: Call, message: bytes) -> None:
        """A message of this call."""
        if not call.answered:
            call.answered = True
            self._say(frame(HEADERS, END_HEADERS, call.stream, ANSWER))
        data = PREFIX.pack(0, len(message)) + message
        size = len(data)
        fits = size <= call.window and size <= self._window and size <= self._frame_bytes
        if fits and not call.waiting and not self._paused:
            call.window -= size
            self._window -= size
            self._say(frame(DATA, 0, call.stream, data))
        else:
            call.waiting.append(data)
            self._blocked[call.stream] = call
            self._flush(call)

    def finish(self, call: Call, status: int, text: str) -> None:
        """The end of this call."""
        fields = b"" if call.answered else ANSWER
        fields += literal(b"grpc-status", b"%d" % status)
        if text:
            fields += literal(b"grpc-message", percent_encoded(text))
        call.done = True
        if call.waiting:
            call.waiting.append(lambda: self._close(call, fields))
        else:
            self._close(call, fields)

    def _close(self, call: Call, fields: bytes) -> None:
        self._say(frame(HEADERS, END_HEADERS | END_STREAM, call.stream, fields))
        if not call.half_closed:  # nothing that may still come is of interest
            self._end(call.stream, NO_ERROR)
        self._drop(call)

    def _end(self, stream: int, code: int) -> None:
        self._say(frame(RST_STREAM, 0, stream, WORD.pack(code)))
        self._ended[stream] = None
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]

    def _reset(self, call: Call, code: int) -> None:
        self._end(call.stream, code)
        self._drop(call)
        if not call.done:
            call.done = True
            self._owner.gone(call)

    def _drop(self, call: Call) -> None:
        self._calls.pop(call.stream, None)
        self._blocked.pop(call.stream, None)
        call.rest = bytearray()

    def _say(self, frame: bytes) -> None:
        self._out.append(frame)
        if not self._receiving and len(self._out) == 1:
            self._wake()

    def _flush_all(self) -> None:
        for call in list(self._blocked.values()):
            self._flush(call)

    def _flush(self, call: Call) -> None:
        """Say what waits at this call, as far as the windows go."""
        waiting = call.waiting
        while waiting:
            first = waiting[0]
            if not isinstance(first, bytes):
                waiting.popleft()
                first()
                continue
            room = min(call.window, self._window, self._frame_bytes)
            if room <= 0 or self._paused:
                return
            piece = first[:room]
            if len(piece) == len(first):
                waiting.popleft()
            else:
                waiting[0] = first[room:]
            call.window -= len(piece)
            self._window -= len(piece)
            self._say(frame(DATA, 0, call.stream, piece))
        self._blocked.pop(call.stream, None)


class Connection(Outgoing):
    """One connection; a message of more than `most_bytes` ends its call. `wake` is called when there is something to
    take from `outgoing` outside of `receive`."""

    def __init__(self, calls: Calls, most_bytes: int, wake: Callable[[], None]) -> None:
        super().__init__(calls, wake)
        self._most_bytes = most_bytes
        self._greeted = self._settled = False
        self._input = b""
        self._block = b""  # header fields whose end has not come
        self._block_flags = self._block_id = self._block_frames = 0
        self._fields = Fields()
        self._takers: Final[dict[int, Callable[[int, int, bytes], None]]] = {
            DATA: self._take_data,
            HEADERS: self._take_headers,
            RST_STREAM: self._take_reset,
            SETTINGS: self._take_settings,
            PUSH_PROMISE: self._refuse_push,
            PING: self._take_ping,
            GOAWAY: self._take_goodbye,
            PRIORITY: self._take_priority,
            WINDOW_UPDATE: self._take_window,
            CONTINUATION: self._take_continuation,
        }
        self._taken = 0
        self._first_window = FIRST_WINDOW

    # -- what the socket tells -----------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Bytes came in. Raises `Broken`, after which `outgoing` has the last words."""
        self._receiving = True
        try:
            self._frames(self._input + data if self._input else data)
        except Broken as broken:
            self._out.append(frame(GOAWAY, 0, 0, WORD.pack(self._last) + WORD.pack(broken.code)))
            raise
        finally:
            self._receiving = False

    def lost(self) -> None:
        """The connection has ended."""
        calls, self._calls = self._calls, {}
        self._blocked.clear()
        for call in calls.values():
            if not call.done:
                call.done = True
                self._owner.gone(call)

    # -- frames ---------------------------------------------------------------------------------------------------

    def _frames(self, data: bytes) -> None:
        at, size = 0, len(data)
        self._input = b""
        if not self._greeted:
            if not data.startswith(PREFACE[:size]):
                raise Broken(PROTOCOL_ERROR, "it does not begin as HTTP/2 does")
            if size < len(PREFACE):
                self._input = data
                return
            self._greeted, at = True, len(PREFACE)
        while size - at >= 9:
            high, low, kind, flags, stream = HEAD.unpack_from(data, at)
            length = high << 8 | low
            if length > FRAME_BYTES:
                raise Broken(FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            end = at + 9 + length
            if end > size:
                break
            payload = data[at + 9 : end]
            at = end
            if self._block_id and (kind != CONTINUATION or stream != self._block_id):
                raise Broken(PROTOCOL_ERROR, "header fields that do not end")
            if not self._settled and kind != SETTINGS:
                raise Broken(PROTOCOL_ERROR, "no settings at its beginning")
            take = self._takers.get(kind)
            if take is not None:  # what nobody knows is passed over
                take(stream & MOST_WINDOW, flags, payload)
        self._input = data[at:]

    def _take_data(self, stream: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._taken += size
        if self._taken >= CALL_WINDOW:
            self._say(frame(WINDOW_UPDATE, 0, 0, WORD.pack(self._taken)))
            self._taken = 0
        call = self._calls.get(stream)
        if call is None:
            if not 0 < stream <= self._last:
                raise Broken(PROTOCOL_ERROR, "data of no call")
            if stream not in self._ended:
                self._end(stream, STREAM_CLOSED)
            return
        if call.half_closed:
            self._reset(call, STREAM_CLOSED)
            return
        if flags & PADDED:
            payload = unpadded(payload)
        call.taken += size
        if call.taken > CALL_WINDOW:
            raise Broken(FLOW_CONTROL_ERROR, "more than the window")
        if call.taken >= CALL_WINDOW // 2 and not flags & END_STREAM:
            self._say(frame(WINDOW_UPDATE, 0, stream, WORD.pack(call.taken)))
            call.taken = 0
        if flags & END_STREAM:
            call.half_closed = True
        if not call.done:
            self._messages(call, payload)
        if call.half_closed and not call.done:
            self._owner.half_closed(call)

    def _messages(self, call: Call, payload: bytes) -> None:
        if not call.rest and len(payload) >= 5:
            compressed, length = PREFIX.unpack_from(payload)
            if len(payload) == 5 + length and not compressed and length <= self._most_bytes:
                self._owner.message(call, payload[5:])
                return
        try:
            for message in call.messages(payload, self._most_bytes):
                self._owner.message(call, message)
        except Unreadable as bad:
            self.finish(call, bad.status, str(bad))
            self._owner.gone(call)

    def _take_headers(self, stream: int, flags: int, payload: bytes) -> None:
        if not stream & 1:
            raise Broken(PROTOCOL_ERROR, "a call with an even number")
        if flags & PADDED:
            payload = unpadded(payload)
        if flags & HAS_PRIORITY:
            payload = payload[5:]
        if flags & END_HEADERS:
            self._open(stream, flags, payload)
        else:
            self._block, self._block_flags, self._block_id, self._block_frames = payload, flags, stream, 1

    def _take_continuation(self, stream: int, flags: int, payload: bytes) -> None:
        if not self._block_id:
            raise Broken(PROTOCOL_ERROR, "the continuation of nothing")
        self._block += payload
        self._block_frames += 1
        if len(self._block) > HEADER_BYTES or self._block_frames > MOST_CONTINUATIONS:
            raise Broken(ENHANCE_YOUR_CALM, "header fields without end")
        if flags & END_HEADERS:
            block, self._block, self._block_id = self._block, b"", 0
            self._open(stream, self._block_flags, block)

    def _open(self, stream: int, flags: int, block: bytes) -> None:
        if stream <= self._last:
            self._take_trailers(stream, flags, block)
            return
        self._last = stream
        try:
            path = self._fields.path(block)
        except Malformed:
            self._end(stream, PROTOCOL_ERROR)
            return
        if self._closing or len(self._calls) >= MOST_CALLS:
            self._end(stream, REFUSED_STREAM)
            return
        call = self._calls[stream] = Call(self, stream, self._first_window)
        call.half_closed = bool(flags & END_STREAM)
        self._owner.began(call, path)
        if call.half_closed and not call.done:
            self._owner.half_closed(call)

    def _take_trailers(self, stream: int, flags: int, block: bytes) -> None:
        """Fields that end what the peer has to say."""
        try:
            self._fields.trailers(block)
            code = NO_ERROR
        except Malformed:
            code = PROTOCOL_ERROR
        call = self._calls.get(stream)
        if call is None:
            if stream not in self._ended:
                raise Broken(STREAM_CLOSED, "header fields of a call that is over")
        elif call.half_closed or code:
            self._reset(call, STREAM_CLOSED if call.half_closed else code)
        elif not flags & END_STREAM:
            raise Broken(PROTOCOL_ERROR, "header fields in the middle of a call")
        else:
            call.half_closed = True
            if not call.done:
                self._owner.half_closed(call)

    def _take_priority(self, stream: int, flags: int, payload: bytes) -> None:
        if not stream:
            raise Broken(PROTOCOL_ERROR, "the priority of no call")
        call = self._calls.get(stream)
        if len(payload) != 5 and call is not None:
            self._reset(call, FRAME_SIZE_ERROR)

    def _take_goodbye(self, stream: int, flags: int, payload: bytes) -> None:
        if stream:
            raise Broken(PROTOCOL_ERROR, "a call that says goodbye")

    def _take_reset(self, stream: int, flags: int, payload: bytes) -> None:
        sized(payload, 4)
        if not 0 < stream <= self._last:
            raise Broken(PROTOCOL_ERROR, "a reset of no call")
        call = self._calls.get(stream)
        if call is not None:
            self._drop(call)
            if not call.done:
                call.done = True
                self._owner.gone(call)

    def _take_settings(self, stream: int, flags: int, payload: bytes) -> None:
        self._settled = True
        if len(payload) % 6 or (flags & ACK and payload):
            raise Broken(FRAME_SIZE_ERROR, "settings that are none")
        if stream:
            raise Broken(PROTOCOL_ERROR, "settings of one call")
        if flags & ACK:
            return
        for name, value in SETTING.iter_unpack(payload):
            if name == 2 and value > 1:
                raise Broken(PROTOCOL_ERROR, "neither push nor no push")
            if name == 4:
                if value > MOST_WINDOW:
                    raise Broken(FLOW_CONTROL_ERROR, "a window that is too large")
                more, self._first_window = value - self._first_window, value
                for call in self._calls.values():
                    call.window += more
            elif name == 5:
                if not FRAME_BYTES <= value < 1 << 24:
                    raise Broken(PROTOCOL_ERROR, "a size of frames that is none")
                self._frame_bytes = value
        self._say(frame(SETTINGS, ACK, 0, b""))
        self._flush_all()

    def _take_ping(self, stream: int, flags: int, payload: bytes) -> None:
        sized(payload, 8)
        if stream:
            raise Broken(PROTOCOL_ERROR, "a ping of one call")
        if not flags & ACK:
            self._say(frame(PING, ACK, 0, payload))

    def _take_window(self, stream: int, flags: int, payload: bytes) -> None:
        sized(payload, 4)
        more = WORD.unpack(payload)[0] & MOST_WINDOW
        code = FLOW_CONTROL_ERROR if more else PROTOCOL_ERROR
        if not stream:
            self._window += more
            if not more or self._window > MOST_WINDOW:
                raise Broken(code, "a window that is none")
            self._flush_all()
            return
        if stream > self._last:
            raise Broken(PROTOCOL_ERROR, "the window of no call")
        call = self._calls.get(stream)
        if call is None:
            return
        call.window += more
        if not more or call.window > MOST_WINDOW:
            self._reset(call, code)
        else:
            self._flush(call)

    def _refuse_push(self, stream: int, flags: int, payload: bytes) -> None:
        raise Broken(PROTOCOL_ERROR, "a push from a client")
