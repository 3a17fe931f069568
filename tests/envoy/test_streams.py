"""A streamed response passes event by event, and the picker learns its end, whichever side ends it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import openai
import pytest

from agent.envoy.render import PickMode
from agent.events.requests import Abandoned
from tests.envoy.gateway import MODES, Gateway, chat, connect, run_gateway
from tests.fakes.ext_proc import CHAT
from tests.fakes.model_server import ModelServer, chunk, chunked_head
from tests.waiting import eventually

both = pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])


def event(content: str) -> bytes:
    chunk = (
        '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
        f'"choices":[{{"index":0,"delta":{{"content":"{content}"}}}}]}}'
    )
    return f"data: {chunk}\n\n".encode()


class HeldStream:
    """A response whose first event the server sends at once, and the rest when `go_on` is set."""

    def __init__(self, gateway: Gateway) -> None:
        self.go_on = asyncio.Event()
        self.disconnected = asyncio.Event()
        self.cut = False
        gateway.servers[0].behave = self._behave

    async def _behave(self, server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked_head() + chunk(event("first")))
        waiting = asyncio.ensure_future(self.go_on.wait())
        try:
            while not waiting.done():
                if server.disconnected(writer):
                    self.disconnected.set()
                    return
                await asyncio.wait([waiting], timeout=0.02)
        finally:
            waiting.cancel()
        if self.cut:
            writer.transport.abort()
        else:
            writer.write(chunk(event("last")) + chunk(b"data: [DONE]\n\n") + chunk())


@both
async def test_the_first_event_arrives_before_the_server_sends_the_last(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        held = HeldStream(gateway)
        async with gateway.client.post(gateway.url(mode), json=chat(stream=True)) as response:
            assert await asyncio.wait_for(response.content.readuntil(b"\n\n"), 10) == event("first")
            assert gateway.pool.in_flight == 1
            held.go_on.set()
            assert await asyncio.wait_for(response.content.read(), 10) == event("last") + b"data: [DONE]\n\n"
        await eventually(lambda: gateway.pool.ended_as == ["closed"])
        assert gateway.events == []


@both
async def test_the_openai_client_reads_a_stream(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        HeldStream(gateway).go_on.set()
        async with openai.AsyncOpenAI(base_url=gateway.url(mode, "/v1"), api_key="none", max_retries=0) as client:
            messages: Any = [{"role": "user", "content": "hello"}]
            stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
            assert [chunk.choices[0].delta.content async for chunk in stream] == ["first", "last"]


@both
async def test_a_client_that_disconnects_during_the_response_ends_its_request(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        held = HeldStream(gateway)
        async with gateway.client.post(gateway.url(mode), json=chat(stream=True)) as response:
            await asyncio.wait_for(response.content.readuntil(b"\n\n"), 10)
            assert gateway.pool.in_flight == 1
            response.close()
        await eventually(lambda: gateway.pool.ended_as == ["closed"])
        await asyncio.wait_for(held.disconnected.wait(), 10)
        assert gateway.events == []


@both
async def test_a_client_that_disconnects_during_its_upload_has_no_pick(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        _, writer = await connect(gateway.port(mode))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1000\r\n\r\n".encode() + b'{"model":')
        await writer.drain()
        await eventually(lambda: gateway.picker.open_streams == 1)
        writer.transport.abort()
        await eventually(lambda: gateway.picker.open_streams == 0)
        assert (gateway.pool.requests, gateway.events) == ([], [Abandoned("pool", "body")])
        async with gateway.client.post(gateway.url(mode), json=chat()) as response:
            assert response.status == 200


@both
async def test_a_server_that_cuts_its_response_ends_the_request(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        held = HeldStream(gateway)
        held.cut = True
        async with gateway.client.post(gateway.url(mode), json=chat(stream=True)) as response:
            await asyncio.wait_for(response.content.readuntil(b"\n\n"), 10)
            held.go_on.set()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(response.content.read(), 10)
        await eventually(lambda: gateway.pool.ended_as == ["closed"])
        assert gateway.pool.ended_twice == 0


@both
async def test_responses_continue_when_the_picker_stops(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        held = HeldStream(gateway)
        async with gateway.client.post(gateway.url(mode), json=chat(stream=True)) as response:
            await asyncio.wait_for(response.content.readuntil(b"\n\n"), 10)
            await asyncio.wait_for(gateway.picker.stop(5.0), 10)
            assert gateway.pool.ended_as == ["lost"]
            held.go_on.set()
            assert await asyncio.wait_for(response.content.read(), 10) == event("last") + b"data: [DONE]\n\n"
        assert gateway.pool.ended_twice == 0


@both
async def test_an_envoy_that_is_killed_ends_its_requests(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        HeldStream(gateway)
        with contextlib.suppress(Exception):
            async with gateway.client.post(gateway.url(mode), json=chat(stream=True)) as response:
                await asyncio.wait_for(response.content.readuntil(b"\n\n"), 10)
                assert gateway.pool.in_flight == 1
                gateway.envoy.kill()
                await response.content.read()
        await eventually(lambda: gateway.pool.in_flight == 0)
        assert (gateway.pool.ended_as, gateway.pool.ended_twice) == (["closed"], 0)
