"""TLS connections of a port: handshakes limited in time and in number, then a transport for the port's own protocol.

The socket's bytes go through OpenSSL in memory. The TLS of `asyncio` closes the socket of a failed handshake without
the alert that would state the reason to the client, reports no failure to the application, and does not limit
handshakes. Everything that one read brings in is handed to the protocol at once, so that what it writes is one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from agent.events import Hook
from agent.events.tls import HandshakeFailed
from agent.serve.tls.reasons import TLS_HANDSHAKE, Failure, failure
from agent.serve.tls.server import ServerTls

HANDSHAKE_SECONDS: Final = 10.0
# With one more, the oldest handshake is ended: connections that send nothing must not stop those that do.
MAX_HANDSHAKES: Final = 256
_RECORD_BYTES: Final = 1 << 14  # the most that one read of OpenSSL returns
_USE_HTTPS: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 35\r\n\r\n"
    b"this port speaks TLS: use https://\n"
)

MakeProtocol = Callable[[], asyncio.Protocol]


def client_of(transport: asyncio.BaseTransport | None) -> str:
    """The IP address at the other end; empty where it is unknown."""
    peer = transport.get_extra_info("peername") if transport is not None else None
    return str(peer[0]) if peer else ""


class TlsAcceptor:
    """The factory of a server's protocols: each connection gets a protocol of `make_protocol` after its handshake."""

    def __init__(self, tls: ServerTls, make_protocol: MakeProtocol) -> None:
        self.tls = tls
        self.make_protocol = make_protocol
        self._handshakes: dict[TlsConnection, None] = {}  # the oldest first
        self._closed = False

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return TlsConnection(self)

    def close(self) -> None:
        """End the handshakes, also those that begin from now on: the event loop may have accepted connections before.

        The connections behind are closed by their own protocols.
        """
        self._closed = True
        for connection in tuple(self._handshakes):
            connection.abort()

    def begun(self, connection: TlsConnection) -> None:
        """A handshake begins."""
        if self._closed:
            connection.abort()
            return
        if len(self._handshakes) >= MAX_HANDSHAKES:
            next(iter(self._handshakes)).fail(Failure("too_many"))
        self._handshakes[connection] = None

    def over(self, connection: TlsConnection, failed: Failure | None = None) -> None:
        """A handshake is over, with what went wrong."""
        self._handshakes.pop(connection, None)
        if failed is not None:
            self.tls.hook(HandshakeFailed(self.tls.port.name, failed.reason, failed.detail, connection.client))


class TlsConnection(asyncio.Protocol):
    """One connection: what the event loop calls with the bytes of the socket."""

    def __init__(self, acceptor: TlsAcceptor) -> None:
        self._acceptor = acceptor
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = acceptor.tls.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._first = b""  # the first bytes of the client, during the handshake
        self._handshake: asyncio.TimerHandle | None = None  # its time limit, None once it is over
        self._socket: asyncio.Transport | None = None
        self._transport: TlsTransport | None = None
        self.protocol: asyncio.Protocol | None = None  # the port's own, from the end of the handshake

    # -- what the event loop calls -----------------------------------------------------------------------------------

    @property
    def client(self) -> str:
        """The client's IP address, empty where it is unknown."""
        return client_of(self._socket)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self._socket = cast(asyncio.Transport, transport)
        loop = asyncio.get_running_loop()
        self._handshake = loop.call_later(HANDSHAKE_SECONDS, self.fail, Failure("timeout"))
        self._acceptor.begun(self)

    def data_received(self, data: bytes) -> None:
        """Bytes arrived on the socket."""
        self._incoming.write(data)
        if self._handshake is not None:
            if len(self._first) < 2:
                self._first += data[:2]
            if not self._shake_hands():
                return
        self._read()

    def eof_received(self) -> None:
        """The client sends no more; the event loop closes the socket."""

    def pause_writing(self) -> None:
        """The write buffer of the socket is full."""
        if self.protocol is not None:
            self.protocol.pause_writing()

    def resume_writing(self) -> None:
        """The write buffer of the socket has room."""
        if self.protocol is not None:
            self.protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by either side."""
        self._end_handshake(Failure("closed"))
        protocol, self.protocol, self._socket = self.protocol, None, None
        if self._transport is not None:
            self._transport.closing = True
            self._transport = None  # they refer to each other
        if protocol is not None:
            protocol.connection_lost(exc)

    # -- what the transport and the acceptor call --------------------------------------------------------------------

    def fail(self, failed: Failure) -> None:
        """End a handshake that has not succeeded."""
        self._end_handshake(failed)
        self.abort()

    def abort(self) -> None:
        """Close the socket at once."""
        self._end_handshake(None)
        if self._socket is not None:
            self._socket.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and write."""
        if self._socket is None or self._socket.is_closing():
            return
        left = memoryview(data)
        try:
            while left:
                left = left[self._tls.write(left) :]
        except ssl.SSLError:  # the connection has failed; the event loop reports its end
            self.abort()
            return
        self._flush()

    def close(self) -> None:
        """Close once all outgoing bytes are written, the notice of the end among them."""
        if self._socket is None or self._socket.is_closing():
            return
        with contextlib.suppress(ssl.SSLError):  # it would wait for the notice of the client, which is not needed
            self._tls.unwrap()
        self._flush()
        if self._socket is not None:
            self._socket.close()

    # -- within ------------------------------------------------------------------------------------------------------

    def _shake_hands(self) -> bool:
        """Continue the handshake; True once the connection is open."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            failed = failure(error, self._first)
            if failed.reason == "plaintext" and self._acceptor.tls.port.alpn == "http/1.1":
                self._outgoing.read()
                self._outgoing.write(_USE_HTTPS)
            self._flush()  # else the alert that states the reason
            self._end_handshake(failed)
            if self._socket is not None:
                self._socket.close()
            return False
        self._flush()
        self._end_handshake(None)
        if self._socket is None or self._socket.is_closing():
            return False
        self._transport = TlsTransport(self, self._socket, self._tls)
        protocol = self._acceptor.make_protocol()
        self.protocol = protocol
        protocol.connection_made(self._transport)
        return True

    def _read(self) -> None:
        """Hand all that has arrived to the protocol."""
        chunks: list[bytes] = []
        ended = False
        try:
            # OpenSSL takes whole records out of `_incoming`. Asking for another one when there is none would raise.
            while self._incoming.pending and not ended:
                chunk = self._tls.read(_RECORD_BYTES)
                chunks.append(chunk)
                ended = not chunk  # the client has sent the notice of its end
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            ended = True
        if self._outgoing.pending:
            self._flush()
        protocol = self.protocol
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if data and protocol is not None:
            protocol.data_received(data)
        if ended:
            self.close()

    def _flush(self) -> None:
        if self._socket is not None and self._outgoing.pending:
            self._socket.write(self._outgoing.read())

    def _end_handshake(self, failed: Failure | None) -> None:
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None
            self._acceptor.over(self, failed)


class PlainAcceptor:
    """The factory of a plaintext port's protocols. A client that begins with TLS is reported and disconnected."""

    def __init__(self, port: str, hook: Hook, make_protocol: MakeProtocol) -> None:
        self.port = port
        self.hook = hook
        self.closed = False
        self._make_protocol = make_protocol

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _FirstBytes(self, self._make_protocol())

    def close(self) -> None:
        """Abort the connections that open from now on: the event loop may have accepted some before."""
        self.closed = True


class _FirstBytes(asyncio.Protocol):
    """Looks at the first bytes of a connection, then leaves it to the port's protocol."""

    def __init__(self, acceptor: PlainAcceptor, protocol: asyncio.Protocol) -> None:
        self._acceptor = acceptor
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        if self._acceptor.closed:
            cast(asyncio.Transport, transport).abort()
            return
        self._transport = cast(asyncio.Transport, transport)
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """The first bytes."""
        transport = self._transport
        if transport is None:
            return
        if data.startswith(TLS_HANDSHAKE):
            self._acceptor.hook(HandshakeFailed(self._acceptor.port, "tls", "", client_of(transport)))
            transport.abort()
            return
        transport.set_protocol(self._protocol)
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """The client sent nothing."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """The write buffer has room."""
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by either side."""
        if self._transport is not None:
            self._transport = None
            self._protocol.connection_lost(exc)


class TlsTransport(asyncio.Transport):
    """What the port's protocol writes to. Its write buffer is the socket's."""

    def __init__(self, connection: TlsConnection, socket: asyncio.Transport, tls: ssl.SSLObject) -> None:
        super().__init__()
        self._connection = connection
        self._socket = socket
        self._tls = tls
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write the data, at once or when the socket takes it."""
        self._connection.write(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object` and `sslcontext`, else what the socket's transport has."""
        if name == "ssl_object":
            return self._tls
        if name == "sslcontext":
            return self._tls.context
        return self._socket.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self.closing or self._socket.is_closing()

    def close(self) -> None:
        """Close once all outgoing bytes are written."""
        self.closing = True
        self._connection.close()

    def abort(self) -> None:
        """Close at once."""
        self.closing = True
        self._connection.abort()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Another protocol."""
        self._connection.protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol; RuntimeError once the connection is closed."""
        if self._connection.protocol is None:
            raise RuntimeError("the connection is closed")
        return self._connection.protocol

    def is_reading(self) -> bool:
        """Whether the socket is read."""
        return self._socket.is_reading()

    def pause_reading(self) -> None:
        """Do not read the socket."""
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Read the socket again."""
        self._socket.resume_reading()

    def can_write_eof(self) -> bool:
        """Never: TLS closes both directions."""
        return False

    def get_write_buffer_size(self) -> int:
        """Bytes that the socket has not taken."""
        return self._socket.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The limits of `set_write_buffer_limits`."""
        return self._socket.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When the protocol is to pause writing."""
        self._socket.set_write_buffer_limits(high, low)
