"""Envoys that were configured by others: every way of handing over a body that Envoy has is served."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from agent.envoy.render import Way
from tests.envoy.rig import Rig, a_rig, chat
from tests.waiting import eventually

STREAMED = {"request_body_mode": "STREAMED"}
WITHOUT_WAITING = {"send_body_without_waiting_for_header_response": True}
BOTH_WAYS = {
    "request_body_mode": "FULL_DUPLEX_STREAMED",
    "request_trailer_mode": "SEND",
    "response_header_mode": "SEND",
    "response_body_mode": "FULL_DUPLEX_STREAMED",
    "response_trailer_mode": "SEND",
}


@pytest.mark.parametrize("size", [100, 300_000, 3_000_000])
async def test_a_streamed_body_is_picked_for_at_its_headers(tmp_path: Path, size: int) -> None:
    async with a_rig(tmp_path, processing_mode=STREAMED) as rig:
        rig.pool.choose = lambda _, __: rig.servers[1].address
        body = orjson.dumps(chat("x" * size))
        async with rig.client.post(rig.url(Way.BUFFERED), data=io.BytesIO(body)) as answer:
            assert (await answer.json())["server"] == rig.servers[1].address
        assert rig.servers[1].seen[0][1] == body
        assert [prompt.text for _, prompt, _ in rig.pool.asked] == [b""]
        await eventually(lambda: rig.pool.in_flight == 0)


async def read_of_one_that_arrives(rig: Rig, size: int) -> list[bool]:
    """Of each pick for a body of this size, which reaches its server as it was: whether the picker has read it."""
    rig.pool.choose = lambda _, __: rig.servers[1].address
    body = orjson.dumps(chat("x" * size))
    async with rig.client.post(rig.url(Way.BUFFERED), data=io.BytesIO(body)) as answer:
        assert answer.status == 200, await answer.text()
    assert rig.servers[1].seen[0][1] == body
    assert rig.events == []
    return [bool(prompt.text) for _, prompt, _ in rig.pool.asked]


@pytest.mark.parametrize(("size", "read"), [(100, True), (300_000, True), (3_000_000, False)])
async def test_a_streamed_body_that_does_not_wait_is_read_up_to_a_limit(tmp_path: Path, size: int, read: bool) -> None:
    async with a_rig(tmp_path, processing_mode=STREAMED, filter_options=WITHOUT_WAITING) as rig:
        assert await read_of_one_that_arrives(rig, size) == [read]


@pytest.mark.parametrize(("size", "read"), [(100, True), (3_000_000, False)])
async def test_of_a_body_that_is_partly_buffered_the_whole_arrives(tmp_path: Path, size: int, read: bool) -> None:
    partly = {"request_body_mode": "BUFFERED_PARTIAL"}
    async with a_rig(tmp_path, processing_mode=partly, envoy_buffer=1 << 20) as rig:
        assert await read_of_one_that_arrives(rig, size) == [read]


async def test_an_answer_that_is_streamed_through_us_comes_out_as_it_was(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b"data: first\n\n")
        await go_on.wait()
        await answer.write(b"data: last\n\n" + b"x" * 200_000)
        return answer

    async with a_rig(tmp_path, processing_mode=BOTH_WAYS) as rig:
        rig.servers[0].respond = stream
        async with rig.client.post(rig.url(Way.FULL_DUPLEX), json=chat()) as answer:
            assert await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 10) == b"data: first\n\n"
            go_on.set()
            assert await asyncio.wait_for(answer.content.read(), 10) == b"data: last\n\n" + b"x" * 200_000
        await eventually(lambda: rig.pool.ended_as == ["closed"])
        assert rig.events == []


async def test_a_body_that_is_not_sent_is_picked_for_at_its_headers(tmp_path: Path) -> None:
    async with a_rig(tmp_path, processing_mode={"request_body_mode": "NONE"}) as rig:
        answer = await rig.client.post(rig.url(Way.BUFFERED), json=chat())
        assert (await answer.json())["server"] == rig.servers[0].address


async def test_headers_that_are_not_sent_are_an_error_that_says_so(tmp_path: Path) -> None:
    async with a_rig(tmp_path, processing_mode={"request_header_mode": "SKIP"}) as rig:
        answer = await rig.client.post(rig.url(Way.BUFFERED), json=chat())
        assert answer.status == 500
        assert "request_header_mode" in (await answer.json())["error"]["message"]
