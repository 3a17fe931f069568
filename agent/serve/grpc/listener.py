"""A TCP listener that serves gRPC: sockets and timers around `agent.serve.http2.connection`.

Everything that one read brings in is processed before the next read, and everything that this produces is written at
once, so a hundred calls that arrive together cost one write. PING detects a peer that vanished without closing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, cast

from agent.events.tls import REASONS
from agent.serve.grpc.call import Call, CallOpener
from agent.serve.http2.connection import Connection
from agent.serve.http2.frames import ConnectionFailed
from agent.serve.listen import ListeningSocket, listen
from agent.serve.tls.connection import TlsAcceptor
from agent.serve.tls.reasons import TLS_HANDSHAKE
from agent.serve.tls.server import ServerTls

# Keepalive: a connection on which nothing arrived for the first time gets a PING; it is aborted if nothing arrives
# within the second. A vanished peer is therefore detected within twice the first time plus the second.
KEEPALIVE_SECONDS: Final = 15.0
KEEPALIVE_TIMEOUT_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 1.0  # for writing what is left to a peer
# A connection with more unwritten bytes is aborted: flow control does not bound PING acknowledgements and the like.
MAX_UNWRITTEN_BYTES: Final = 64 << 20
_WRITE_HIGH_WATER_BYTES: Final = 1 << 20


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
        self._listener.protocols.add(self)
        if self._listener.closed:  # the event loop accepted it before
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER_BYTES)
        self._timer = asyncio.get_running_loop().call_later(KEEPALIVE_SECONDS, self._check_idle)
        self._write()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        self._received = True
        try:
            self.connection.receive(data)
        except ConnectionFailed as error:
            self._listener.connection_failed(REASONS["tls"] if data.startswith(TLS_HANDSHAKE) else str(error))
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
    """Accepts connections; `opener` (a `GrpcRouter`) handles their calls. With `tls` they begin with its handshake.

    `connection_failed` receives the reason of each connection that ended with an HTTP/2 connection error.
    """

    def __init__(
        self, opener: CallOpener, connection_failed: Callable[[str], None], tls: ServerTls | None = None
    ) -> None:
        self._opener = opener
        self.connection_failed = connection_failed
        self.protocols: set[GrpcProtocol] = set()
        self.closed = False
        self._tls = tls
        self._acceptor: TlsAcceptor | None = None
        self._listener: ListeningSocket | None = None
        self._all_closed: asyncio.Event | None = None

    def connection(self, wake: Callable[[], None]) -> Connection:
        """A new connection's HTTP/2 state."""
        return Connection(self._call, wake)

    async def listen(self, host: str, port: int) -> int:
        """Accept connections; returns the port. Raises OSError when the address is in use or not local."""
        protocol: Callable[[], asyncio.Protocol] = partial(GrpcProtocol, self)
        if self._tls is not None:
            self._acceptor = TlsAcceptor(self._tls, protocol)
            protocol = self._acceptor
        self._listener = await listen(protocol, host, port)
        return self._listener.port

    def goaway(self) -> None:
        """Accept no more connections, and no more calls on the open ones."""
        self.closed = True
        if self._listener is not None:
            self._listener.close()
        if self._acceptor is not None:
            self._acceptor.close()
        for protocol in tuple(self.protocols):
            protocol.connection.goaway()

    async def close(self) -> None:
        """Close every connection once its outgoing bytes are written; abort those that take over `CLOSE_SECONDS`."""
        await asyncio.sleep(0)  # the port is closed
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
        self._listener = None

    def protocol_closed(self) -> None:
        """A connection has closed."""
        if self._all_closed is not None and not self.protocols:
            self._all_closed.set()

    def _call(self, connection: Connection, stream_id: int, send_window: int) -> Call:
        return Call(connection, stream_id, send_window, self._opener)
