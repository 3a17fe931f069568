"""Listening sockets of the agent's servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

_LISTEN_BACKLOG: Final = 1024


class ListeningSocket:
    """Accepts connections at one address, each with a protocol of the factory."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server

    @property
    def port(self) -> int:
        """The port that it listens on."""
        server: Any = self._server  # `sockets` is a tuple in asyncio and its types, a list in uvloop
        return int(server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Accept no more connections; the open ones stay. The port is free in the next turn of the event loop.

        A connection may have been accepted in this turn that has no transport yet. asyncio of Python 3.11 would lose
        it, open, if the server were closed before it has one.
        """
        close_in_turn(self._server)


def close_in_turn(server: asyncio.Server) -> None:
    """Accept nothing from now on, and close the server in the next turn of the event loop."""
    loop = asyncio.get_running_loop()
    for each in server.sockets:
        loop.remove_reader(each.fileno())
    loop.call_soon(server.close)


async def listen(protocol: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> ListeningSocket:
    """Accept connections. Raises OSError when the address is in use or not local."""
    loop = asyncio.get_running_loop()
    if host == "::":  # all addresses, IPv4 included
        dual = socket.create_server((host, port), family=socket.AF_INET6, backlog=_LISTEN_BACKLOG, dualstack_ipv6=True)
        return ListeningSocket(await loop.create_server(protocol, sock=dual, backlog=_LISTEN_BACKLOG))
    # Without reuse_port a second process on this port fails, where it would silently take half of the connections.
    return ListeningSocket(
        await loop.create_server(protocol, host or None, port, backlog=_LISTEN_BACKLOG, reuse_port=False)
    )
