"""What is said on one connection of gRPC: the frames of its calls, as far as the peer's windows go.

Pure: whoever has the socket takes what is to be written from `outgoing`.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.serve.calls import Call, Calls
from agent.serve.frames import (
    ANSWER,
    CALL_WINDOW,
    DATA,
    END_HEADERS,
    END_STREAM,
    FIRST_WINDOW,
    FRAME_BYTES,
    GOAWAY,
    HEADER_BYTES,
    HEADERS,
    MOST_CALLS,
    MOST_ENDED,
    MOST_WINDOW,
    NO_ERROR,
    PING,
    PREFIX,
    RST_STREAM,
    SETTING,
    SETTINGS,
    WINDOW_UPDATE,
    WORD,
    frame,
    literal,
    percent_encoded,
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
