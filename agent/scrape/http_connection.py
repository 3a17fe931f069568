"""One persistent HTTP/1.1 connection to one server: one GET at a time, or two pipelined GETs; sizes are limited.

A body is copied once: the socket is read into a buffer that is borrowed for the duration of a response, and the body is
cut out of it. Time-outs are the caller's and apply to the whole response, so that a slow trickle of bytes cannot delay
a scrape.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, cast

from agent.scrape.http import MAX_HEAD_BYTES, REDIRECTS, ChunkedBody, MalformedResponse, ResponseHead, parse_head

_BUFFER_BYTES: Final = 128 << 10
_KEPT_BUFFERS: Final = 16
# The body of a response other than 200 is discarded, up to this size; a longer one closes the connection.
_MAX_ERROR_BYTES: Final = 64 << 10


class FetchFailed(Exception):
    """A GET without a usable response: `reason` is one of `agent.scrape.reasons.REASONS`.

    `stale`: a connection that had served before was closed before the response began. The server may have closed it
    before it received the request, so this is no failure of the server. `status` is that of a response other than 200,
    else 0.
    """

    def __init__(self, reason: str, detail: str, *, stale: bool = False, status: int = 0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail
        self.stale = stale


class BufferPool:
    """Buffers that connections borrow for the duration of a response: a few serve a thousand connections."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def borrow(self) -> bytearray:
        """A buffer of the default size."""
        return self._free.pop() if self._free else bytearray(_BUFFER_BYTES)

    def give_back(self, buffer: bytearray) -> None:
        """Return a buffer to the pool; it is dropped if it has grown or the pool is full."""
        if len(buffer) == _BUFFER_BYTES and len(self._free) < _KEPT_BUFFERS:
            self._free.append(buffer)


# Called with the body, and whether its end was explicit: a content length or a last chunk, not the connection's end.
OnBody = Callable[[bytes, bool], None]
OnFailure = Callable[[FetchFailed], None]


class HttpConnection(asyncio.BufferedProtocol):
    """An open connection. `get` calls exactly one of `on_body` and `on_failure`; call it only while no GET is active.

    `on_idle_close` is called when the server closes the connection while no GET is active.
    """

    __slots__ = (
        "_body_at", "_buffer", "_buffers", "_chunked_body", "_filled", "_head", "_limit", "_on_body", "_on_failure",
        "_on_idle_close", "_pipelined", "_second_expected", "_transport", "gets",
    )  # fmt: skip

    def __init__(self, buffers: BufferPool, on_idle_close: Callable[[], None]) -> None:
        self._buffers = buffers
        self._on_idle_close = on_idle_close
        self._transport: asyncio.Transport | None = None
        self._buffer: bytearray | None = None
        self._filled = 0
        self._head: ResponseHead | None = None
        self._body_at = 0
        self._chunked_body: ChunkedBody | None = None
        self._limit = 0
        self._on_body: OnBody | None = None
        self._on_failure: OnFailure | None = None
        self._pipelined = False  # the current response is the first of two
        self._second_expected = False  # the first response is complete, and `read_second` was not called yet
        self.gets = 0

    @property
    def open(self) -> bool:
        """Whether a GET can be sent, now or after the current response."""
        return self._transport is not None and not self._transport.is_closing()

    def get(
        self, request: bytes, limit: int, on_body: OnBody, on_failure: OnFailure, *, pipelined: bool = False
    ) -> None:
        """Send a GET; the body of its response may have `limit` bytes.

        `pipelined`: the request is two GETs. If the first response is good and the connection persists, `on_body` has
        to call `read_second`, or the connection is closed; otherwise it is closed before the callback.
        """
        transport = self._transport
        if transport is None:
            on_failure(FetchFailed("reset", "the connection was closed", stale=True))
            return
        self.gets += 1
        self._limit, self._on_body, self._on_failure = limit, on_body, on_failure
        self._pipelined = pipelined
        self._filled = 0
        self._head = self._chunked_body = None
        transport.write(request)

    def read_second(self, limit: int, on_body: OnBody, on_failure: OnFailure) -> None:
        """Read the response to the second of two pipelined GETs; its body may have `limit` bytes."""
        self.gets += 1
        self._second_expected = False
        self._limit, self._on_body, self._on_failure = limit, on_body, on_failure
        if self._filled:
            self._read()

    def fail(self, reason: str, detail: str, status: int = 0) -> None:
        """Fail the active GET and close: the rest of its response would be taken for the next one."""
        on_failure = self._on_failure
        self._reset()
        self.close()
        if on_failure is not None:
            on_failure(FetchFailed(reason, detail, status=status))

    def close(self) -> None:
        """Close without calling a callback."""
        transport, self._transport = self._transport, None
        self._reset()
        if transport is not None:
            transport.abort()

    # -- called by the event loop --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer for the next read."""
        buffer = self._buffer
        if buffer is None:
            if self._on_body is None:
                # Unexpected bytes: `buffer_updated` closes the connection.
                return memoryview(bytearray(64))
            # Borrowed when the response arrives and not when the GET is sent: most responses then use the same buffer,
            # which stays in the CPU's caches.
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
        """Bytes were read."""
        if self._buffer is None:
            self.close()
            self._on_idle_close()
            return
        self._filled += nbytes
        self._read()

    def _read(self) -> None:
        try:
            if self._head is None and not self._read_head():
                return
            self._read_body()
        except MalformedResponse as bad:
            self.fail("bad_http", str(bad))

    def eof_received(self) -> bool:
        """The server sends no more bytes."""
        head = self._head
        if self._on_body is not None and head is not None and head.length is None and not head.chunked:
            self._finish(bytes(memoryview(self._buffer or b"")[self._body_at : self._filled]), whole=False, end=-1)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by either side."""
        if self._transport is None:
            return
        self._transport = None
        on_failure, received, head = self._on_failure, self._filled, self._head
        self._reset()
        if on_failure is None:
            self._on_idle_close()
        elif isinstance(exc, ssl.SSLError):
            # With TLS 1.3 a server rejects or requires our certificate only after the handshake.
            on_failure(
                FetchFailed(
                    "tls_client", f"the server rejects the connection: {exc.reason}; write certFile and keyFile"
                )
            )
        elif not received:
            on_failure(FetchFailed("reset", "the server closed the connection before a response", stale=self.gets > 1))
        elif exc is not None or head is None:
            on_failure(FetchFailed("reset", f"the connection was closed after {received} bytes of the response"))
        else:
            end = "its last chunk" if head.length is None else f"the {head.length} bytes of its page"
            on_failure(FetchFailed("truncated", f"the response ended after {received} bytes, before {end}"))

    # -- within --------------------------------------------------------------------------------------------------

    def _read_head(self) -> bool:
        buffer = self._buffer
        if buffer is None:
            return False
        while True:
            end = buffer.find(b"\r\n\r\n", 0, min(self._filled, MAX_HEAD_BYTES))
            if end < 0:
                if self._filled >= MAX_HEAD_BYTES:
                    raise MalformedResponse(f"the head of the response has over {MAX_HEAD_BYTES} bytes")
                if self._filled >= 7 and not buffer.startswith(b"HTTP/1."):
                    raise MalformedResponse(f"the response begins with {bytes(buffer[:40])!r}, which is not HTTP/1")
                return False
            head = parse_head(bytes(buffer[:end]))
            if head.status >= 200:
                break
            # An interim response (1xx): the final one follows.
            left = self._filled - end - 4
            buffer[:left] = buffer[end + 4 : self._filled]
            self._filled = left
        self._head = head
        self._body_at = end + 4
        if head.status != 200:
            self._limit = min(self._limit, _MAX_ERROR_BYTES)
        if head.length is not None and head.length > self._limit:
            self._too_large(head, f"{head.length} bytes, over the limit of {self._limit}")
            return False
        if head.chunked:
            self._chunked_body = ChunkedBody(self._body_at)
        return True

    def _read_body(self) -> None:
        head, buffer = self._head, self._buffer
        if head is None or buffer is None:
            return
        if head.length is not None:
            end = self._body_at + head.length
            if self._filled >= end:
                body = bytes(memoryview(buffer)[self._body_at : end])
                self._finish(body, whole=True, end=end)
            return
        chunked_body = self._chunked_body
        if chunked_body is not None:
            chunked_body.feed(buffer, self._filled)
            size = chunked_body.size
            if size <= self._limit and chunked_body.done:
                self._finish(chunked_body.body(), whole=True, end=chunked_body.at)
                return
        else:
            size = self._filled - self._body_at
        # Twice the limit: the sizes of very small chunks take as many bytes as the chunks.
        if size > self._limit or self._filled > 2 * self._limit + MAX_HEAD_BYTES:
            self._too_large(head, f"over {self._limit} bytes, which is the limit")

    def _too_large(self, head: ResponseHead, size: str) -> None:
        if head.status == 200:
            self.fail("too_large", f"the page has {size}")
        else:
            self.fail("status", _status(head), head.status)

    def _finish(self, body: bytes, *, whole: bool, end: int) -> None:
        """The response is complete; `end`: its end in the buffer, -1 where the connection's end is its end."""
        head, on_body, on_failure, pipelined = self._head, self._on_body, self._on_failure, self._pipelined
        if head is None or on_body is None or on_failure is None:
            self._reset()
            return
        keep = head.keep and end >= 0
        if pipelined and keep and head.status == 200 and not head.encoding:
            self._start_second(end)
            on_body(body, whole)
            if self._second_expected:
                self.close()
            return
        keep = keep and not pipelined and self._filled == end
        self._reset()
        if not keep:  # the server will close it, or has sent more bytes than it announced
            self.close()
        if head.status != 200:
            on_failure(FetchFailed("status", _status(head), status=head.status))
        elif head.encoding:
            on_failure(FetchFailed("encoding", f"the page is in {head.encoding}, and identity was requested"))
        else:
            on_body(body, whole)

    def _start_second(self, end: int) -> None:
        """Keep the bytes after the first response: they are the beginning of the second."""
        buffer, rest = self._buffer, self._filled - end
        if rest and buffer is not None:
            buffer[:rest] = buffer[end : self._filled]
            self._buffer = None
        self._reset()
        self._second_expected = True
        self._head = None
        self._filled = rest
        if rest:
            self._buffer = buffer

    def _reset(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self._buffers.give_back(buffer)
        self._on_body = self._on_failure = None
        self._chunked_body = None
        self._pipelined = self._second_expected = False


def _status(head: ResponseHead) -> str:
    """The detail for a status other than 200."""
    status = head.status
    if status in REDIRECTS:
        target = f" to {head.location!r}" if head.location else ""
        return f"HTTP {status}: redirects{target} are not followed; configure the final address and path"
    if status in (401, 403):
        return f"HTTP {status}: the server requires authentication; write tokenFile"
    return f"HTTP {status}: is this the path of the metrics?" if status == 404 else f"HTTP {status}"
