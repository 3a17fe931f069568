"""A port that is closed loses no connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from agent.serve.listen import listen


class Opened(asyncio.Protocol):
    """Notes the transports of its connections."""

    transports: list[asyncio.Transport]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transports.append(transport)


@pytest.mark.parametrize("turns", range(5))
async def test_a_connection_that_is_accepted_while_the_port_is_closed_is_opened_or_refused(turns: int) -> None:
    loop = asyncio.get_running_loop()
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    Opened.transports = []
    listener = await listen(Opened, "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", listener.port)) as client:
        client.setblocking(False)
        for _ in range(turns):  # the connection is accepted meanwhile, in any of these turns of the event loop
            await asyncio.sleep(0)
        listener.close()
        for _ in range(20):
            await asyncio.sleep(0)
        for transport in Opened.transports:
            transport.abort()
        with contextlib.suppress(ConnectionResetError):  # it was never accepted
            assert await asyncio.wait_for(loop.sock_recv(client, 1), 5) == b""
    assert problems == []
