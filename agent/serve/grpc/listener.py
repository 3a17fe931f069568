"""A port that speaks gRPC: sockets and timers around `agent.serve.http2.connection`.

What comes in is handled to its end before the next read, and everything that this gives rise to is written at once, so
a hundred calls that come together cost one write. A peer that vanished without a word is noticed by pings.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from agent.serve.grpc.call import Calls
from agent.serve.http2.connection import Connection
from agent.serve.http2.frames import Broken

# A silent peer is asked whether it is there. It is looked for this often, and one that is not there is given up within
# twice this time and `PATIENCE_SECONDS`.
SILENCE_SECONDS: Final = 15.0
PATIENCE_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 1.0  # for the last words to a peer
# What a peer may leave unread of what is said without regard to its windows (answers to pings and the like).
MOST_UNREAD: Final = 64 << 20
_HIGH_WATER: Final = 1 << 20
_BACKLOG: Final = 1024


class Wire(asyncio.Protocol):
    """One connection."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._due = False
        self._heard = True  # since the timer was set last
        self._timer: asyncio.TimerHandle | None = None
        self.connection = Connection(port.calls, port.most_bytes, self._soon)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._port.wires.add(self)
        self._timer = asyncio.get_running_loop().call_later(SILENCE_SECONDS, self._look)
        self._write()

    def data_received(self, data: bytes) -> None:
        """Bytes came in."""
        self._heard = True
        try:
            self.connection.receive(data)
        except Broken as broken:
            self._port.broken(str(broken))
            self.close()
            return
        self._write()

    def pause_writing(self) -> None:
        """The peer does not keep up."""
        self.connection.pause(paused=True)

    def resume_writing(self) -> None:
        """It does again."""
        self.connection.pause(paused=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by whom ever."""
        self._transport = None
        self._port.wires.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.connection.lost()
        self._port.one_less()

    def close(self) -> None:
        """Close behind what is still to be said."""
        self._write()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _soon(self) -> None:
        """There is something to say: say it with all else that comes up in this turn of the loop."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._due = False
        out = self.connection.outgoing()
        transport = self._transport
        if out and transport is not None:
            transport.write(out)
            if transport.get_write_buffer_size() > MOST_UNREAD:
                transport.abort()

    def _look(self) -> None:
        """Ask a peer of which nothing was heard since the last look whether it is there."""
        loop = asyncio.get_running_loop()
        if self._heard:
            self._timer = loop.call_later(SILENCE_SECONDS, self._look)
        else:
            self.connection.ping()
            self._timer = loop.call_later(PATIENCE_SECONDS, self._give_up)
        self._heard = False

    def _give_up(self) -> None:
        if self._heard:
            self._look()
        else:
            self.abort()


class Port:
    """Listens, and hands calls to `calls`; a message of more than `most_bytes` ends its call.

    `broken` is told of each connection that ended against the protocol.
    """

    def __init__(self, calls: Calls, most_bytes: int, broken: Callable[[str], None]) -> None:
        self.calls = calls
        self.most_bytes = most_bytes
        self.broken = broken
        self.wires: set[Wire] = set()
        self._server: asyncio.Server | None = None
        self._empty: asyncio.Event | None = None

    async def listen(self, host: str, port: int) -> int:
        """Take connections; the port. OSError when the address is taken or not ours."""
        loop = asyncio.get_running_loop()
        made = partial(Wire, self)
        if host == "::":  # all addresses, those of IPv4 too
            every = socket.create_server((host, port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
            self._server = await loop.create_server(made, sock=every, backlog=_BACKLOG)
        else:
            # A second one on this port is an error, not a silent half of the load.
            self._server = await loop.create_server(made, host or None, port, backlog=_BACKLOG, reuse_port=False)
        server: Any = self._server  # whose sockets are a tuple for asyncio and its types, and a list for uvloop
        return int(server.sockets[0].getsockname()[1])

    def go_away(self) -> None:
        """Take no more connections, and no more calls on those that there are."""
        if self._server is not None:
            self._server.close()
        for wire in tuple(self.wires):
            wire.connection.go_away()

    async def close(self) -> None:
        """Close every connection behind what is still to be said to it."""
        self._empty = asyncio.Event()
        for wire in tuple(self.wires):
            wire.close()
        self.one_less()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._empty.wait()
        except TimeoutError:
            for wire in tuple(self.wires):
                wire.abort()
        self._server = None

    def one_less(self) -> None:
        """A connection has ended."""
        if self._empty is not None and not self.wires:
            self._empty.set()
