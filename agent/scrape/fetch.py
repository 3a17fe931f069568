"""One keep-alive connection to one endpoint: one GET at a time, or two in one write; answers within limits of size.

Reading costs one copy: the socket is read into a buffer that is borrowed while an answer comes in, and the page is cut
out of it. The time-out is for the whole answer, so that a server that sends a byte a second does not hold a scrape up.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, cast

from agent.scrape.http import HEAD_BYTES, BadAnswer, Chunks, Head, head

_BUFFER_BYTES: Final = 128 << 10
_KEPT_BUFFERS: Final = 16
# What is read of an answer that is not 200 before the connection is given up: its text is for nobody.
_ERROR_BYTES: Final = 64 << 10


class FetchFailed(Exception):
    """A GET without an answer that can be used: `reason` is one of `agent.scrape.reasons.REASONS`.

    `stale`: nothing came on a connection that had served before; the server may have closed it as we asked, which says
    nothing of the server. `status` is that of an answer which is not 200, else 0.
    """

    def __init__(self, reason: str, detail: str, *, stale: bool = False, status: int = 0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail
        self.stale = stale


class Buffers:
    """Buffers that connections borrow while an answer comes in: a few serve a thousand connections."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def borrow(self) -> bytearray:
        """A buffer of the usual size."""
        return self._free.pop() if self._free else bytearray(_BUFFER_BYTES)

    def give_back(self, buffer: bytearray) -> None:
        """Keep it for the next, unless it has grown or there are enough."""
        if len(buffer) == _BUFFER_BYTES and len(self._free) < _KEPT_BUFFERS:
            self._free.append(buffer)


# The body, and whether the answer told its end: by a length or a last chunk, and not by closing the connection.
Answered = Callable[[bytes, bool], None]
Failed = Callable[[FetchFailed], None]


class Connection(asyncio.BufferedProtocol):
    """A connection that is open. `get` while `idle`; it then calls exactly one of `answered` and `failed`.

    `on_idle_close` is called when the peer closes while nothing is asked.
    """

    __slots__ = (
        "_answered", "_body_at", "_buffer", "_buffers", "_chunks", "_failed", "_filled", "_head", "_limit",
        "_on_idle_close", "_owed", "_transport", "_two", "gets",
    )  # fmt: skip

    def __init__(self, buffers: Buffers, on_idle_close: Callable[[], None]) -> None:
        self._buffers = buffers
        self._on_idle_close = on_idle_close
        self._transport: asyncio.Transport | None = None
        self._buffer: bytearray | None = None
        self._filled = 0
        self._head: Head | None = None
        self._body_at = 0
        self._chunks: Chunks | None = None
        self._limit = 0
        self._answered: Answered | None = None
        self._failed: Failed | None = None
        self._two = False  # the present answer is the first of two
        self._owed = False  # the first is here, and nobody has taken the second yet
        self.gets = 0

    @property
    def open(self) -> bool:
        """Whether something can be asked, now or when the present answer is here."""
        return self._transport is not None and not self._transport.is_closing()

    def get(self, request: bytes, limit: int, answered: Answered, failed: Failed, *, two: bool = False) -> None:
        """Ask; the body may have `limit` bytes.

        `two`: the request is two GETs. Where the first is answered well and the connection stays, `second` has to be
        called before `answered` returns, or the connection is closed; else it is closed before either is called.
        """
        transport = self._transport
        if transport is None:
            failed(FetchFailed("reset", "the connection was closed", stale=True))
            return
        self.gets += 1
        self._limit, self._answered, self._failed = limit, answered, failed
        self._two = two
        self._filled = 0
        self._head = self._chunks = None
        transport.write(request)

    def second(self, limit: int, answered: Answered, failed: Failed) -> None:
        """Take the answer to the second of two GETs; its body may have `limit` bytes."""
        self.gets += 1
        self._owed = False
        self._limit, self._answered, self._failed = limit, answered, failed
        if self._filled:
            self._take()

    def fail(self, reason: str, detail: str, status: int = 0) -> None:
        """Give the present GET up and close: what is still to come cannot be told from the next answer."""
        failed = self._failed
        self._end()
        self.close()
        if failed is not None:
            failed(FetchFailed(reason, detail, status=status))

    def close(self) -> None:
        """Close without a word to anybody."""
        transport, self._transport = self._transport, None
        self._end()
        if transport is not None:
            transport.abort()

    # -- what the event loop calls -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open."""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to."""
        buffer = self._buffer
        if buffer is None:
            if self._answered is None:
                # Bytes that nobody asked for: `buffer_updated` closes the connection.
                return memoryview(bytearray(64))
            # Borrowed when the answer is here and not when it is asked for: so most answers share one buffer, which
            # the CPU's caches hold.
            self._buffer = buffer = self._buffers.borrow()
            return memoryview(buffer)
        room = len(buffer) - self._filled
        if room < 16384:
            grown = bytearray(2 * len(buffer))
            grown[: self._filled] = buffer[: self._filled]
            self._buffers.give_back(buffer)
            self._buffer = buffer = grown
        return memoryview(buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came in."""
        if self._buffer is None:
            self.close()
            self._on_idle_close()
            return
        self._filled += nbytes
        self._take()

    def _take(self) -> None:
        try:
            if self._head is None and not self._read_head():
                return
            self._read_body()
        except BadAnswer as bad:
            self.fail("bad_http", str(bad))

    def eof_received(self) -> bool:
        """The peer will send no more."""
        answer = self._head
        if self._answered is not None and answer is not None and answer.length is None and not answer.chunked:
            self._finish(bytes(memoryview(self._buffer or b"")[self._body_at : self._filled]), whole=False, end=-1)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by whom ever."""
        if self._transport is None:
            return
        self._transport = None
        failed, said, answer = self._failed, self._filled, self._head
        self._end()
        if failed is None:
            self._on_idle_close()
        elif isinstance(exc, ssl.SSLError):
            # By TLS 1.3 a server says only now what it thinks of our certificate, or that it misses one.
            failed(FetchFailed("tls_client", f"the server refuses us: {exc.reason}; write certFile and keyFile"))
        elif not said:
            failed(FetchFailed("reset", "the server closed the connection before an answer", stale=self.gets > 1))
        elif exc is not None or answer is None:
            failed(FetchFailed("reset", f"the connection broke after {said} bytes of the answer"))
        else:
            of = "its last chunk" if answer.length is None else f"the {answer.length} bytes of its page"
            failed(FetchFailed("truncated", f"the answer ended after {said} bytes, before {of}"))

    # -- within --------------------------------------------------------------------------------------------------

    def _read_head(self) -> bool:
        buffer = self._buffer
        if buffer is None:
            return False
        while True:
            end = buffer.find(b"\r\n\r\n", 0, min(self._filled, HEAD_BYTES))
            if end < 0:
                if self._filled >= HEAD_BYTES:
                    raise BadAnswer(f"the answer has no body within {HEAD_BYTES} bytes")
                if self._filled >= 7 and not buffer.startswith(b"HTTP/1."):
                    raise BadAnswer(f"the answer begins with {bytes(buffer[:40])!r}, which is not HTTP/1")
                return False
            answer = head(bytes(buffer[:end]))
            if answer.status >= 200:
                break
            # An interim answer: the real one follows.
            left = self._filled - end - 4
            buffer[:left] = buffer[end + 4 : self._filled]
            self._filled = left
        self._head = answer
        self._body_at = end + 4
        if answer.status != 200:
            self._limit = min(self._limit, _ERROR_BYTES)
        if answer.length is not None and answer.length > self._limit:
            self._too_large(answer, f"{answer.length} bytes, over the limit of {self._limit}")
            return False
        if answer.chunked:
            self._chunks = Chunks(self._body_at)
        return True

    def _read_body(self) -> None:
        answer, buffer = self._head, self._buffer
        if answer is None or buffer is None:
            return
        if answer.length is not None:
            end = self._body_at + answer.length
            if self._filled >= end:
                body = bytes(memoryview(buffer)[self._body_at : end])
                self._finish(body, whole=True, end=end)
            return
        chunks = self._chunks
        if chunks is not None:
            chunks.take(buffer, self._filled)
            size = chunks.size
            if size <= self._limit and chunks.done:
                self._finish(chunks.body(), whole=True, end=chunks.at)
                return
        else:
            size = self._filled - self._body_at
        # Twice: chunks of a few bytes are as long with their sizes.
        if size > self._limit or self._filled > 2 * self._limit + HEAD_BYTES:
            self._too_large(answer, f"over {self._limit} bytes, which is the limit")

    def _too_large(self, answer: Head, what: str) -> None:
        if answer.status == 200:
            self.fail("too_large", f"the page has {what}")
        else:
            self.fail("status", _status(answer.status), answer.status)

    def _finish(self, body: bytes, *, whole: bool, end: int) -> None:
        """The answer is here; `end`: where it ends in the buffer, -1 where the connection's end is its end."""
        answer, answered, failed, two = self._head, self._answered, self._failed, self._two
        if answer is None or answered is None or failed is None:
            self._end()
            return
        keep = answer.keep and end >= 0
        if two and keep and answer.status == 200 and not answer.encoding:
            self._first_of_two(end)
            answered(body, whole)
            if self._owed:
                self.close()
            return
        keep = keep and not two and self._filled == end
        self._end()
        if not keep:  # the server will close it, or has sent more than it announced
            self.close()
        if answer.status != 200:
            failed(FetchFailed("status", _status(answer.status), status=answer.status))
        elif answer.encoding:
            failed(FetchFailed("encoding", f"the page is in {answer.encoding}, and identity was asked for"))
        else:
            answered(body, whole)

    def _first_of_two(self, end: int) -> None:
        """What came behind the first answer begins the second."""
        buffer, rest = self._buffer, self._filled - end
        if rest and buffer is not None:
            buffer[:rest] = buffer[end : self._filled]
            self._buffer = None
        self._end()
        self._owed = True
        self._head = None
        self._filled = rest
        if rest:
            self._buffer = buffer

    def _end(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self._buffers.give_back(buffer)
        self._answered = self._failed = None
        self._chunks = None
        self._two = self._owed = False


def _status(status: int) -> str:
    """What to tell of an answer that is not 200."""
    if status in (301, 302, 303, 307, 308):
        return f"HTTP {status}: the server sends us elsewhere; ask at the place where the metrics are"
    if status in (401, 403):
        return f"HTTP {status}: the server wants to know who asks; write tokenFile"
    return f"HTTP {status}: is this the path of the metrics?" if status == 404 else f"HTTP {status}"
