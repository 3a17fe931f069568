"""An event loop in whose world no time is waited for: when nothing is to be done, it is at once the time of the next
thing. Connections lead to servers that are part of the test, so that a minute of scraping takes a few milliseconds and
runs the same way each time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

WALL_AT_ZERO = 1_790_000_000.0


class _Leaping(selectors.SelectSelector):
    """Waits for nobody: what it is told to wait has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Nothing came, and the time has passed. RuntimeError where everybody waits for somebody else."""
        if timeout is None:
            raise RuntimeError("nothing is planned any more, and somebody waits")
        self.now += max(0.0, timeout)
        return []


class Server(Protocol):
    """Somebody at an address."""

    async def connected(self, loop: SimulatedLoop) -> None:
        """Returns when a connection is open; OSError where none is opened."""
        ...

    def asked(self, wire: Wire, request: bytes) -> None:
        """Bytes came in; what is to be answered goes over the wire, now or later."""
        ...

    def left(self, wire: Wire) -> None:
        """The other side has closed."""
        ...


class Wire(asyncio.Transport):
    """The agent's end of a connection; `bring` and `hang_up` are the server's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: Server, protocol: asyncio.BufferedProtocol) -> None:
        super().__init__()
        self.loop = loop
        self._server = server
        self._protocol = protocol
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """To the server, which reads it a turn of the loop later."""
        self.loop.call_soon(self._asked, bytes(data))

    def is_closing(self) -> bool:
        """Whether either side has closed."""
        return self.closed

    def abort(self) -> None:
        """The agent closes."""
        if not self.closed:
            self._server.left(self)
            self.hang_up()

    def bring(self, data: bytes) -> None:
        """Bytes of the server, as much at a time as the agent has room for."""
        while data and not self.closed:
            room = memoryview(self._protocol.get_buffer(len(data)))
            size = min(len(room), len(data))
            room[:size] = data[:size]
            data = data[size:]
            self._protocol.buffer_updated(size)

    def hang_up(self) -> None:
        """The server closes."""
        if not self.closed:
            self.closed = True
            self.loop.call_soon(self._protocol.connection_lost, None)

    def _asked(self, data: bytes) -> None:
        if not self.closed:
            self._server.asked(self, data)


def simulate(servers: Mapping[tuple[str, int], Server], main: Callable[[SimulatedLoop], Awaitable[None]]) -> None:
    """Run `main` in a world with these servers, by (host, port); raises what a callback in it raised."""
    loop = SimulatedLoop(servers)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_run(main, loop))
    if loop.broken:
        raise loop.broken[0]


async def _run(main: Callable[[SimulatedLoop], Awaitable[None]], loop: SimulatedLoop) -> None:
    await main(loop)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """`servers` are those that can be reached, by (host, port); nobody listens elsewhere."""

    def __init__(self, servers: Mapping[tuple[str, int], Server]) -> None:
        self._leaping = _Leaping()
        super().__init__(self._leaping)
        self._servers = servers
        self.broken: list[BaseException] = []  # what callbacks raised: nobody else hears of it
        self.set_exception_handler(self._break)

    def _break(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.broken.append(context.get("exception") or RuntimeError(context["message"]))

    async def after(self, seconds: float) -> None:
        """Returns when so much time has passed in this world."""
        over = asyncio.Event()
        self.call_later(seconds, over.set)
        await over.wait()

    def time(self) -> float:
        """Seconds since it was made."""
        return self._leaping.now

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BufferedProtocol], host: str, port: int, **_: object
    ) -> tuple[Wire, asyncio.BufferedProtocol]:
        """A connection to a server of this world."""
        server = self._servers.get((host, port))
        if server is None:
            raise ConnectionRefusedError
        await server.connected(self)
        protocol = protocol_factory()
        wire = Wire(self, server, protocol)
        protocol.connection_made(wire)
        return wire, protocol


class LoopClock:
    """`agent.clock.Clock` in that world; `used` says how many seconds of CPU the agent is to have used."""

    def __init__(self, loop: asyncio.AbstractEventLoop, used: Callable[[], float] = float) -> None:
        self._loop = loop
        self._used = used

    def now(self) -> float:
        """Seconds since the loop was made."""
        return self._loop.time()

    def wall(self) -> float:
        """Seconds since 1970."""
        return WALL_AT_ZERO + self._loop.time()

    def cpu(self) -> float:
        """Seconds of CPU."""
        return self._used()
