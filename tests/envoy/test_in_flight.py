"""What the picker counts as in flight is exactly what is in flight: after a storm of requests it is zero."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import orjson
import pytest

from agent.envoy import process
from agent.envoy.render import Way, bootstrap
from agent.events import Event
from agent.events.requests import Abandoned
from agent.serve.ext_proc.server import ExtProcServer
from tests.envoy.rig import CHAT, WAYS, ToldPool, chat, envoy_settings
from tests.waiting import eventually

REQUESTS = 10_000
LEAVING_CLIENTS = 1_000
DROPPED_BY_SERVERS = 300
CONCURRENT = 100
EVENTS = 4  # of a streamed answer

BODY = orjson.dumps(chat("hello", stream=True))
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(BODY)}\r\n".encode()
REQUEST = HEAD + b"\r\n" + BODY
ANSWER_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"d\r\ndata: token\n\n\r\n"


class Servers:
    """Model servers of the plainest kind: they stream an answer, or drop the connection where the request says so."""

    def __init__(self) -> None:
        self.served = 0
        self.dropped = 0
        self._listening: asyncio.Server | None = None

    async def start(self) -> str:
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._listening.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if b"transfer-encoding: chunked" in head:
                    await reader.readuntil(b"0\r\n\r\n")
                else:
                    await reader.readexactly(len(BODY))
                if await self._answer(head, writer):
                    self.served += 1
                else:
                    self.dropped += 1
                    writer.transport.abort()
                    break
        writer.close()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the answer was sent whole."""
        if b"x-drop: before" in head:
            return False
        writer.write(ANSWER_HEAD)
        for number in range(EVENTS):
            writer.write(CHUNK)
            await writer.drain()
            await asyncio.sleep(0)
            if number == 1 and b"x-drop: within" in head:
                return False
        writer.write(b"0\r\n\r\n")
        return True

    async def stop(self) -> None:
        assert self._listening is not None
        self._listening.close()


class Client:
    """One of many: sends its share of requests over as few connections as they allow, and leaves where it is told."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self._reader, self._writer

    def leave(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def whole(self, more: bytes = b"") -> None:
        """A request read to its end, whatever that is."""
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
            self.leave()

    async def cut_short(self, choose: random.Random) -> None:
        """A request whose client leaves: while it sends, while it waits, or while it reads."""
        reader, writer = await self._connected()
        point = choose.random()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if point < 0.4:
                writer.write(REQUEST[: choose.randrange(len(REQUEST))])
                await writer.drain()
            else:
                writer.write(REQUEST)
                await writer.drain()
                if point > 0.7:
                    await reader.readuntil(b"\r\n\r\n")
                    for _ in range(choose.randrange(EVENTS)):
                        await reader.readuntil(b"\n\n")
            for _ in range(choose.randrange(8)):
                await asyncio.sleep(0)
        self.leave()


@pytest.mark.parametrize("way", WAYS, ids=[way.value for way in WAYS])
async def test_after_10_000_requests_of_which_1_000_were_aborted_nothing_is_in_flight(tmp_path: Path, way: Way) -> None:
    choose = random.Random(20_000)
    servers, events = Servers(), list[Event]()
    address = await servers.start()
    pool = ToldPool(address)
    picker = ExtProcServer(pool, events.append, address="127.0.0.1:0")
    port = await picker.start()
    envoy = await process.start(bootstrap(envoy_settings([address], f"127.0.0.1:{port}")), tmp_path)
    kinds = ["leave"] * LEAVING_CLIENTS + [b"x-drop: before\r\n", b"x-drop: within\r\n"] * (DROPPED_BY_SERVERS // 2)
    work: list[str | bytes] = [*kinds, *([b""] * (REQUESTS - len(kinds)))]
    choose.shuffle(work)

    async def client() -> None:
        one = Client(envoy.ports[way.value])
        while work:
            kind = work.pop()
            if isinstance(kind, bytes):
                await one.whole(kind)
            else:
                await one.cut_short(choose)
        one.leave()

    try:
        async with asyncio.timeout(240), asyncio.TaskGroup() as clients:
            for _ in range(CONCURRENT):
                clients.create_task(client())
        await eventually(lambda: picker.open_streams == 0, what="the last conversation to end")
        assert pool.in_flight == 0
        assert pool.wrongly_ended == 0
        assert len(pool.ended_as) == pool.begun
        assert pool.ended_as.count("closed") == pool.begun
        assert set(events) <= {Abandoned("pool", "body")}
        # The storm was one: whole requests were served, and the servers did drop theirs.
        assert pool.begun >= REQUESTS - LEAVING_CLIENTS
        assert servers.served >= REQUESTS - LEAVING_CLIENTS - DROPPED_BY_SERVERS
        assert servers.dropped == DROPPED_BY_SERVERS
    finally:
        await envoy.stop()
        await picker.stop(0.0)
        await servers.stop()
