"""A call of gRPC, as those see it who answer it, and what they are told of it; no frames and no sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from agent.serve.http2.frames import OK, PREFIX, RESOURCE_EXHAUSTED, UNIMPLEMENTED


class Unreadable(Exception):
    """The call cannot be read on; `status` is gRPC's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Call:
    """One call: `of` is whatever its owner keeps there. Once it is `done`, nothing is told of it or said to it."""

    __slots__ = (
        "answered", "done", "half_closed", "of", "rest", "speaker", "stream", "taken", "waiting", "window",
    )  # fmt: skip

    def __init__(self, speaker: Speaker, stream: int, window: int) -> None:
        self.speaker = speaker
        self.stream = stream
        self.of: Any = None
        self.done = False
        self.half_closed = False  # the peer says no more
        self.answered = False  # the answer's header fields are out
        self.rest = bytearray()  # of a message that is not whole
        self.taken = 0  # bytes that were taken and not given back
        self.window = window  # bytes that the peer takes
        self.waiting: deque[bytes | Callable[[], None]] = deque()

    def send(self, message: bytes) -> None:
        """A message to the peer."""
        if not self.done:
            self.speaker.send(self, message)

    def then(self, do: Callable[[], None]) -> None:
        """Call `do` once all that was sent so far is out."""
        if self.waiting:
            self.waiting.append(do)
        else:
            do()

    def messages(self, payload: bytes, most_bytes: int) -> Iterator[bytes]:
        """The messages of gRPC that have become whole with these bytes, until the call is done. Raises `Unreadable`."""
        rest = self.rest
        rest += payload
        while len(rest) >= 5 and not self.done:
            compressed, length = PREFIX.unpack_from(rest)
            if compressed:
                raise Unreadable(UNIMPLEMENTED, "messages are not taken compressed")
            if length > most_bytes:
                raise Unreadable(RESOURCE_EXHAUSTED, f"a message of {length} bytes, over {most_bytes}")
            if len(rest) < 5 + length:
                return
            message = bytes(rest[5 : 5 + length])
            del rest[: 5 + length]
            yield message

    def finish(self, status: int = OK, text: str = "") -> None:
        """The end of the call: gRPC's status, and words where it is not well."""
        if not self.done:
            self.speaker.finish(self, status, text)


class Speaker(Protocol):
    """What a call says its part to."""

    def send(self, call: Call, message: bytes) -> None:
        """A message of this call."""
        ...

    def finish(self, call: Call, status: int, text: str) -> None:
        """The end of this call."""
        ...


class Calls(Protocol):
    """Who is told of calls. Nothing may be raised from here."""

    def began(self, call: Call, path: str) -> None:
        """A call of this method, `/SERVICE/METHOD`."""
        ...

    def message(self, call: Call, message: bytes) -> None:
        """A message of the peer's."""
        ...

    def half_closed(self, call: Call) -> None:
        """The peer says no more, and waits for the end of the answer."""
        ...

    def gone(self, call: Call) -> None:
        """The peer has broken it off, or the connection has ended."""
        ...
