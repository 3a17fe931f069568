"""An event loop with simulated time: when no callback is ready, the time is at once that of the next timer.

Connections lead to servers within the test: to a `SimulatedServer`, or to an asyncio server that the test starts on
this loop. A minute of scraping takes milliseconds and runs the same way each time.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

WALL_AT_ZERO = 1_790_000_000.0
MAX_UNREAD_BYTES = 1 << 20  # of a PipeEnd; then its protocol has to pause


class _Leaping(selectors.SelectSelector):
    """A selector without file descriptors, which advances the time by its time-out instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """No event, after the time-out. RuntimeError without a time-out: a deadlock."""
        if timeout is None:
            raise RuntimeError("deadlock: no callback and no timer is pending")
        self.now += max(0.0, timeout)
        return []


class SimulatedServer(Protocol):
    """A server at an address."""

    async def connected(self, loop: SimulatedLoop) -> None:
        """Returns when a connection is open; OSError where none is opened."""
        ...

    def requested(self, transport: SimulatedTransport, request: bytes) -> None:
        """Bytes were received; the response is written to the wire, now or later."""
        ...

    def disconnected(self, transport: SimulatedTransport) -> None:
        """The agent has closed the connection."""
        ...


class SimulatedTransport(asyncio.Transport):
    """The agent's end of a connection; `deliver` and `close_by_server` are the server's."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, server: SimulatedServer, protocol: asyncio.BufferedProtocol
    ) -> None:
        super().__init__()
        self.loop = loop
        self._server = server
        self._protocol = protocol
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send to the server, which receives it in the next iteration of the loop."""
        self.loop.call_soon(self._requested, bytes(data))

    def is_closing(self) -> bool:
        """Whether either side has closed the connection."""
        return self.closed

    def abort(self) -> None:
        """The agent closes the connection."""
        if not self.closed:
            self._server.disconnected(self)
            self.close_by_server()

    def deliver(self, data: bytes) -> None:
        """Deliver bytes from the server, at most the size of the agent's buffer at a time."""
        while data and not self.closed:
            room = memoryview(self._protocol.get_buffer(len(data)))
            size = min(len(room), len(data))
            room[:size] = data[:size]
            data = data[size:]
            self._protocol.buffer_updated(size)

    def close_by_server(self) -> None:
        """The server closes the connection."""
        if not self.closed:
            self.closed = True
            self.loop.call_soon(self._protocol.connection_lost, None)

    def _requested(self, data: bytes) -> None:
        if not self.closed:
            self._server.requested(self, data)


def simulate(
    servers: Mapping[tuple[str, int], SimulatedServer], main: Callable[[SimulatedLoop], Awaitable[None]]
) -> None:
    """Run `main` on a simulated loop with these servers, by (host, port); raises an exception of a callback."""
    loop = SimulatedLoop(servers)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_run(main, loop))
    if loop.broken:
        raise loop.broken[0]


async def _run(main: Callable[[SimulatedLoop], Awaitable[None]], loop: SimulatedLoop) -> None:
    await main(loop)


def raise_broken() -> None:
    """Raise the first exception of a callback on the running simulated loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    if loop.broken:
        raise loop.broken[0]


class SimulatedLoop(asyncio.SelectorEventLoop):
    """`servers` by (host, port); other addresses refuse connections, unless an asyncio server listens there."""

    def __init__(self, servers: Mapping[tuple[str, int], SimulatedServer]) -> None:
        self._leaping = _Leaping()
        super().__init__(self._leaping)
        self._servers = servers
        self._listeners: dict[int, Listener] = {}
        self._next_port = 20000
        self.broken: list[BaseException] = []  # exceptions of callbacks
        self.set_exception_handler(self._break)

    def _break(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.broken.append(context.get("exception") or RuntimeError(context["message"]))

    async def after(self, seconds: float) -> None:
        """Returns after this much simulated time."""
        over = asyncio.Event()
        self.call_later(seconds, over.set)
        await over.wait()

    def time(self) -> float:
        """Simulated seconds since the loop was made."""
        return self._leaping.now

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BufferedProtocol], host: str, port: int, **_: object
    ) -> tuple[asyncio.Transport, asyncio.BufferedProtocol]:
        """A connection to a server on this loop."""
        listener = self._listeners.get(port)
        if listener is not None:
            return listener.connect(protocol_factory)
        server = self._servers.get((host, port))
        if server is None:
            raise ConnectionRefusedError
        await server.connected(self)
        protocol = protocol_factory()
        transport = SimulatedTransport(self, server, protocol)
        protocol.connection_made(transport)
        return transport, protocol

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str = "", port: int = 0, **_: object
    ) -> Listener:
        """Listen on this loop; port 0 is a free one."""
        if not port:
            self._next_port += 1
            port = self._next_port
        listener = self._listeners[port] = Listener(self, protocol_factory, host, port)
        return listener

    def stop_listening(self, port: int) -> None:
        """Refuse connections to this port from now on."""
        self._listeners.pop(port, None)


class Listener:
    """A listening asyncio server on a SimulatedLoop."""

    def __init__(
        self, loop: SimulatedLoop, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> None:
        self._loop = loop
        self._protocol_factory = protocol_factory
        self.name = (host, port)

    @property
    def sockets(self) -> list[Listener]:
        """Itself, for `getsockname`."""
        return [self]

    def getsockname(self) -> tuple[str, int]:
        """Host and port."""
        return self.name

    def fileno(self) -> int:
        """A number of which the event loop has no reader."""
        return 1 << 20

    def connect(
        self, protocol_factory: Callable[[], asyncio.BufferedProtocol]
    ) -> tuple[asyncio.Transport, asyncio.BufferedProtocol]:
        """Open a connection: the client's transport and protocol."""
        protocol = protocol_factory()
        client, server = PipeEnd(self._loop, protocol), PipeEnd(self._loop, self._protocol_factory())
        client.peer, server.peer = server, client
        for end in (server, client):
            end.protocol.connection_made(end)
        return client, protocol

    def close(self) -> None:
        """Stop listening; open connections stay open."""
        self._loop.stop_listening(self.name[1])

    async def wait_closed(self) -> None:
        """Returns at once."""


class PipeEnd(asyncio.Transport):
    """One end of a connection between two protocols on a SimulatedLoop."""

    peer: PipeEnd

    def __init__(self, loop: SimulatedLoop, protocol: asyncio.BaseProtocol) -> None:
        super().__init__({"socket": self})
        self._loop = loop
        self.protocol = protocol
        self._unread = 0
        self._closed = False
        self._resets = False

    def setsockopt(self, level: int, option: int, value: object) -> None:
        """SO_LINGER, the only option that is used: closing resets the connection."""
        assert option == socket.SO_LINGER
        self._resets = True

    def is_closing(self) -> bool:
        """Whether this end is closed."""
        return self._closed

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send to the peer, which receives it in the next iteration of the loop."""
        if self._closed or not data:
            return
        self._unread += len(data)
        if self._unread > MAX_UNREAD_BYTES:
            self.protocol.pause_writing()
        self._loop.call_soon(self.peer._receive, bytes(data))

    def close(self) -> None:
        """Close after the bytes that were written."""
        if not self._closed:
            self._closed = True
            error = ConnectionResetError() if self._resets else None
            self._loop.call_soon(self.peer._peer_closed, error)
            self._loop.call_soon(self.protocol.connection_lost, None)

    abort = close  # every written byte counts as sent

    def _receive(self, data: bytes) -> None:
        size = len(data)
        while data and not self._closed:
            if isinstance(self.protocol, asyncio.BufferedProtocol):
                room = memoryview(self.protocol.get_buffer(len(data)))
                taken = min(len(room), len(data))
                room[:taken] = data[:taken]
                self.protocol.buffer_updated(taken)
                data = data[taken:]
            else:
                assert isinstance(self.protocol, asyncio.Protocol)
                self.protocol.data_received(data)
                data = b""
        peer = self.peer
        paused = peer._unread > MAX_UNREAD_BYTES
        peer._unread -= size
        if paused and peer._unread <= MAX_UNREAD_BYTES and not peer._closed:
            peer.protocol.resume_writing()

    def _peer_closed(self, error: Exception | None) -> None:
        if self._closed:
            return
        if error is not None:
            self._closed = True
            self.protocol.connection_lost(error)
        elif not self.protocol.eof_received():  # type: ignore[attr-defined]
            self.close()


class LoopClock:
    """`agent.clock.Clock` of a loop; `used` gives the seconds of CPU time that the agent is assumed to have used."""

    def __init__(self, loop: asyncio.AbstractEventLoop, used: Callable[[], float] = float) -> None:
        self._loop = loop
        self._used = used

    def now(self) -> float:
        """The time of the loop in seconds."""
        return self._loop.time()

    def wall(self) -> float:
        """Seconds since 1970."""
        return WALL_AT_ZERO + self._loop.time()

    def cpu(self) -> float:
        """Seconds of CPU."""
        return self._used()
