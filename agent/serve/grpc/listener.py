"""A TCP listener that serves gRPC: sockets and timers around `agent.serve.http2.connection`.

Everything that one read brings in is processed before the next read, and everything that this produces is written at
once, so a hundred calls that arrive together cost one write. PING detects a peer that vanished without closing.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from agent.serve.grpc.call import Call, CallOpener
from agent.serve.http2.connection import Connection
from agent.serve.http2.frames import ConnectionFailed

# Keepalive: a connection on which nothing arrived for the first time gets a PING; it is aborted if nothing arrives
# within the second. A vanished peer is therefore detected within twice the first time plus the second.
KEEPALIVE_SECONDS: Final = 15.0
KEEPALIVE_TIMEOUT_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 1.0  # for writing what is left to a peer
# A connection with more unwritten bytes is aborted: flow control does not bound PING acknowledgements and the like.
MAX_UNWRITTEN_BYTES: Final = 64 << 20
_WRITE_HIGH_WATER_BYTES: Final = 1 << 20
_LISTEN_BACKLOG: Final = 1024


class GrpcProtocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, listener: GrpcListener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._write_scheduled = False
        self._received = True  # since the timer was set
        self._timer: asyncio.TimerHandle | None = None
        self.connection = listener.connection(self._schedule_write)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER_BYTES)
        self._listener.protocols.add(self)
        self._timer = asyncio.get_running_loop().call_later(KEEPALIVE_SECONDS, self._check_idle)
        self._write()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        self._received = True
        try:
            self.connection.receive(data)
        except ConnectionFailed as error:
            self._listener.connection_failed(str(error))
            self.close()
            return
        self._write()

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self.connection.pause(paused=True)

    def resume_writing(self) -> None:
        """The write buffer has room."""
        self.connection.pause(paused=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by either side."""
        self._transport = None
        self._listener.protocols.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.connection.closed()
        self._listener.protocol_closed()

    def close(self) -> None:
        """Close once all outgoing bytes are written."""
        self._write()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _schedule_write(self) -> None:
        """Write at the end of this turn of the event loop, together with what else it produces."""
        if not self._write_scheduled:
            self._write_scheduled = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._write_scheduled = False
        out = self.connection.outgoing()
        transport = self._transport
        if out and transport is not None:
            transport.write(out)
            if transport.get_write_buffer_size() > MAX_UNWRITTEN_BYTES:
                transport.abort()

    def _check_idle(self) -> None:
        """Send PING if nothing arrived since the last check."""
        loop = asyncio.get_running_loop()
        if self._received:
            self._timer = loop.call_later(KEEPALIVE_SECONDS, self._check_idle)
        else:
            self.connection.ping()
            self._timer = loop.call_later(KEEPALIVE_TIMEOUT_SECONDS, self._ping_timeout)
        self._received = False

    def _ping_timeout(self) -> None:
        if self._received:
            self._check_idle()
        else:
            self.abort()


class GrpcListener:
    """Accepts connections; `opener` (a `GrpcRouter`) handles their calls.

    `connection_failed` receives the reason of each connection that ended with an HTTP/2 connection error.
    """

    def __init__(self, opener: CallOpener, connection_failed: Callable[[str], None]) -> None:
        self._opener = opener
        self.connection_failed = connection_failed
        self.protocols: set[GrpcProtocol] = set()
        self._server: asyncio.Server | None = None
        self._all_closed: asyncio.Event | None = None

    def connection(self, wake: Callable[[], None]) -> Connection:
        """A new connection's HTTP/2 state."""
        return Connection(self._call, wake)

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Accept connections, over TLS where there is a context; returns the port. Raises OSError when the address is
        in use or not local."""
        loop = asyncio.get_running_loop()
        protocol = partial(GrpcProtocol, self)
        if host == "::":  # all addresses, IPv4 included
            dual = socket.create_server(
                (host, port), family=socket.AF_INET6, backlog=_LISTEN_BACKLOG, dualstack_ipv6=True
            )
            self._server = await loop.create_server(protocol, sock=dual, backlog=_LISTEN_BACKLOG, ssl=tls)
        else:
            # Without reuse_port a second process on this port fails, where it would silently take half of the calls.
            self._server = await loop.create_server(
                protocol, host or None, port, backlog=_LISTEN_BACKLOG, reuse_port=False, ssl=tls
            )
        server: Any = self._server  # `sockets` is a tuple in asyncio and its types, a list in uvloop
        return int(server.sockets[0].getsockname()[1])

    def goaway(self) -> None:
        """Accept no more connections, and no more calls on the open ones."""
        if self._server is not None:
            self._server.close()
        for protocol in tuple(self.protocols):
            protocol.connection.goaway()

    async def close(self) -> None:
        """Close every connection once its outgoing bytes are written; abort those that take over `CLOSE_SECONDS`."""
        self._all_closed = asyncio.Event()
        for protocol in tuple(self.protocols):
            protocol.close()
        self.protocol_closed()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._all_closed.wait()
        except TimeoutError:
            for protocol in tuple(self.protocols):
                protocol.abort()
        self._server = None

    def protocol_closed(self) -> None:
        """A connection has closed."""
        if self._all_closed is not None and not self.protocols:
            self._all_closed.set()

    def _call(self, connection: Connection, stream_id: int, send_window: int) -> Call:
        return Call(connection, stream_id, send_window, self._opener)
