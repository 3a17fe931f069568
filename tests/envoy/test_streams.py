"""A streamed answer passes event by event, and its end is known whoever ends it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from agent.envoy.render import Way
from agent.events.requests import Abandoned
from tests.envoy.rig import CHAT, WAYS, Rig, a_rig, chat, raw
from tests.waiting import eventually

both = pytest.mark.parametrize("way", WAYS, ids=[way.value for way in WAYS])


def event(words: str) -> bytes:
    chunk = (
        '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
        f'"choices":[{{"index":0,"delta":{{"content":"{words}"}}}}]}}'
    )
    return f"data: {chunk}\n\n".encode()


class HeldStream:
    """An answer of which the server sends the first event, and the rest only when it is told to go on."""

    def __init__(self, rig: Rig) -> None:
        self.go_on = asyncio.Event()
        self.left = asyncio.Event()
        self.cut = False
        rig.servers[0].respond = self._respond

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(event("first"))
        waiting = asyncio.ensure_future(self.go_on.wait())
        try:
            while not waiting.done():
                if request.transport is None or request.transport.is_closing():
                    self.left.set()
                    return answer
                await asyncio.wait([waiting], timeout=0.02)
        finally:
            waiting.cancel()
        if self.cut and request.transport is not None:
            request.transport.abort()
            return answer
        await answer.write(event("last"))
        await answer.write(b"data: [DONE]\n\n")
        return answer


@both
async def test_the_first_event_arrives_before_the_server_sends_the_last(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        held = HeldStream(rig)
        async with rig.client.post(rig.url(way), json=chat(stream=True)) as answer:
            assert await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 10) == event("first")
            assert rig.pool.in_flight == 1
            held.go_on.set()
            assert await asyncio.wait_for(answer.content.read(), 10) == event("last") + b"data: [DONE]\n\n"
        await eventually(lambda: rig.pool.ended_as == ["closed"])
        assert rig.events == []


@both
async def test_the_openai_client_reads_a_stream(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        HeldStream(rig).go_on.set()
        async with openai.AsyncOpenAI(base_url=rig.url(way, "/v1"), api_key="none", max_retries=0) as client:
            messages: Any = [{"role": "user", "content": "hello"}]
            stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
            assert [chunk.choices[0].delta.content async for chunk in stream] == ["first", "last"]


@both
async def test_a_client_that_leaves_during_the_answer_ends_its_request(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        held = HeldStream(rig)
        async with rig.client.post(rig.url(way), json=chat(stream=True)) as answer:
            await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 10)
            assert rig.pool.in_flight == 1
            answer.close()
        await eventually(lambda: rig.pool.ended_as == ["closed"])
        await asyncio.wait_for(held.left.wait(), 10)
        assert rig.events == []


@both
async def test_a_client_that_leaves_during_its_upload_leaves_nothing_behind(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        _, writer = await raw(rig.port(way))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1000\r\n\r\n".encode() + b'{"model":')
        await writer.drain()
        await eventually(lambda: rig.picker.open_streams == 1)
        writer.transport.abort()
        await eventually(lambda: rig.picker.open_streams == 0)
        assert (rig.pool.asked, rig.events) == ([], [Abandoned("pool", "body")])
        async with rig.client.post(rig.url(way), json=chat()) as answer:
            assert answer.status == 200


@both
async def test_a_server_that_cuts_its_answer_ends_the_request(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        held = HeldStream(rig)
        held.cut = True
        async with rig.client.post(rig.url(way), json=chat(stream=True)) as answer:
            await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 10)
            held.go_on.set()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(answer.content.read(), 10)
        await eventually(lambda: rig.pool.ended_as == ["closed"])
        assert rig.pool.wrongly_ended == 0


@both
async def test_stopping_the_picker_harms_no_answer_under_way(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        held = HeldStream(rig)
        async with rig.client.post(rig.url(way), json=chat(stream=True)) as answer:
            await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 10)
            await asyncio.wait_for(rig.picker.stop(5.0), 10)
            assert rig.pool.ended_as == ["lost"]
            held.go_on.set()
            assert await asyncio.wait_for(answer.content.read(), 10) == event("last") + b"data: [DONE]\n\n"
        assert rig.pool.wrongly_ended == 0


@both
async def test_an_envoy_that_is_killed_ends_its_requests(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        HeldStream(rig)
        with contextlib.suppress(Exception):
            async with rig.client.post(rig.url(way), json=chat(stream=True)) as answer:
                await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 10)
                assert rig.pool.in_flight == 1
                rig.envoy.kill()
                await answer.content.read()
        await eventually(lambda: rig.pool.in_flight == 0)
        assert (rig.pool.ended_as, rig.pool.wrongly_ended) == (["closed"], 0)
