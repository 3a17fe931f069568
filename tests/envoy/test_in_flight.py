"""The number of requests in flight is exact: after 10,000 requests, many of them aborted, it is zero."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import orjson
import pytest

from agent.envoy import process
from agent.envoy.render import PickMode, bootstrap
from agent.events import Event
from agent.events.requests import Abandoned
from agent.serve.ext_proc.server import ExtProcServer
from tests.envoy.gateway import MODES, chat, envoy_config
from tests.fakes.ext_proc import CHAT
from tests.fakes.model_server import ModelServer, chunk, chunked_head
from tests.fakes.scripted_pool import ScriptedPool
from tests.waiting import eventually

REQUESTS = 10_000
DISCONNECTS = 1_000
DROPPED_BY_SERVERS = 300
CONCURRENT = 100
EVENTS = 4  # of a streamed answer

BODY = orjson.dumps(chat("hello", stream=True))
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(BODY)}\r\n".encode()
REQUEST = HEAD + b"\r\n" + BODY


class StreamOrDrop:
    """A behaviour: it streams an answer, or drops the connection before or within the answer if the request says so."""

    def __init__(self) -> None:
        self.served = 0
        self.dropped = 0

    async def __call__(self, server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        drop = server.requests.pop().headers.get("x-drop", "")
        if drop != "before":
            writer.write(chunked_head())
            for number in range(EVENTS):
                writer.write(chunk(b"data: token\n\n"))
                await writer.drain()
                await asyncio.sleep(0)
                if number == 1 and drop == "within":
                    break
        if drop:
            self.dropped += 1
            writer.transport.abort()
            return
        self.served += 1
        writer.write(chunk())


class Client:
    """A client that reuses its connection for its requests, and can disconnect within one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self._reader, self._writer

    def disconnect(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def whole(self, more: bytes = b"") -> None:
        """A request whose response is read to its end."""
        reader, writer = await self._connected()
        writer.write(HEAD + more + b"\r\n" + BODY)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"transfer-encoding: chunked" in head:
                await reader.readuntil(b"\r\n0\r\n\r\n")
            else:
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
            keep = b"connection: close" not in head
        except (asyncio.IncompleteReadError, ConnectionError):
            keep = False
        if not keep:
            self.disconnect()

    async def cut_short(self, rng: random.Random) -> None:
        """A request whose client disconnects while it sends, while it waits, or while it reads."""
        reader, writer = await self._connected()
        point = rng.random()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if point < 0.4:
                writer.write(REQUEST[: rng.randrange(len(REQUEST))])
                await writer.drain()
            else:
                writer.write(REQUEST)
                await writer.drain()
                if point > 0.7:
                    await reader.readuntil(b"\r\n\r\n")
                    for _ in range(rng.randrange(EVENTS)):
                        await reader.readuntil(b"\n\n")
            for _ in range(rng.randrange(8)):
                await asyncio.sleep(0)
        self.disconnect()


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
async def test_after_10_000_requests_of_which_1_000_were_aborted_nothing_is_in_flight(
    tmp_path: Path, mode: PickMode
) -> None:
    rng = random.Random(20_000)
    behaviour, events = StreamOrDrop(), list[Event]()
    server = ModelServer(behaviour)
    await server.start()
    pool = ScriptedPool(server.address)
    picker = ExtProcServer(pool, events.append, address="127.0.0.1:0")
    port = await picker.start()
    envoy = await process.start(bootstrap(envoy_config([server.address], f"127.0.0.1:{port}")), tmp_path)
    kinds = ["disconnect"] * DISCONNECTS + [b"x-drop: before\r\n", b"x-drop: within\r\n"] * (DROPPED_BY_SERVERS // 2)
    work: list[str | bytes] = [*kinds, *([b""] * (REQUESTS - len(kinds)))]
    rng.shuffle(work)

    async def client() -> None:
        connection = Client(envoy.ports[mode.value])
        while work:
            kind = work.pop()
            if isinstance(kind, bytes):
                await connection.whole(kind)
            else:
                await connection.cut_short(rng)
        connection.disconnect()

    try:
        async with asyncio.timeout(240), asyncio.TaskGroup() as clients:
            for _ in range(CONCURRENT):
                clients.create_task(client())
        await eventually(lambda: picker.open_streams == 0, what="the last conversation to end")
        assert pool.in_flight == 0
        assert pool.ended_twice == 0
        assert len(pool.ended_as) == pool.picks
        assert pool.ended_as.count("closed") == pool.picks
        assert set(events) <= {Abandoned("pool", "body")}
        # Most requests were answered, and the server dropped the requested number and Envoy's retries of them.
        assert pool.picks >= REQUESTS - DISCONNECTS
        assert behaviour.served >= REQUESTS - DISCONNECTS - DROPPED_BY_SERVERS
        retried = DROPPED_BY_SERVERS // 2  # those dropped before the response, once each
        assert behaviour.dropped == DROPPED_BY_SERVERS + retried
    finally:
        await envoy.stop()
        await picker.stop(0.0)
        await server.stop()
