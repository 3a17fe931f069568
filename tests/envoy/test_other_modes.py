"""Envoys with other configurations: the picker supports every body mode of Envoy."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import orjson
import pytest

from agent.envoy.render import PickMode
from tests.envoy.gateway import Gateway, chat, run_gateway
from tests.fakes.model_server import ModelServer, chunk, chunked_head
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
async def test_a_request_with_a_streamed_body_is_picked_at_its_headers(tmp_path: Path, size: int) -> None:
    async with run_gateway(tmp_path, processing_mode=STREAMED) as gateway:
        gateway.pool.choose = lambda _, __: gateway.servers[1].address
        body = orjson.dumps(chat("x" * size))
        async with gateway.client.post(gateway.url(PickMode.BUFFERED), data=io.BytesIO(body)) as response:
            assert (await response.json())["server"] == gateway.servers[1].address
        assert gateway.servers[1].requests[0].body == body
        assert [prompt.text for _, prompt, _ in gateway.pool.requests] == [b""]
        await eventually(lambda: gateway.pool.in_flight == 0)


async def was_parsed(gateway: Gateway, size: int) -> list[bool]:
    """Send a body of this size, which must arrive unchanged; for each pick whether the picker has parsed it."""
    gateway.pool.choose = lambda _, __: gateway.servers[1].address
    body = orjson.dumps(chat("x" * size))
    async with gateway.client.post(gateway.url(PickMode.BUFFERED), data=io.BytesIO(body)) as response:
        assert response.status == 200, await response.text()
    assert gateway.servers[1].requests[0].body == body
    assert gateway.events == []
    return [bool(prompt.text) for _, prompt, _ in gateway.pool.requests]


@pytest.mark.parametrize(("size", "parsed"), [(100, True), (300_000, True), (3_000_000, False)])
async def test_a_streamed_body_without_waiting_is_parsed_up_to_a_limit(tmp_path: Path, size: int, parsed: bool) -> None:
    async with run_gateway(tmp_path, processing_mode=STREAMED, filter_options=WITHOUT_WAITING) as gateway:
        assert await was_parsed(gateway, size) == [parsed]


@pytest.mark.parametrize(("size", "parsed"), [(100, True), (3_000_000, False)])
async def test_a_partially_buffered_body_arrives_whole(tmp_path: Path, size: int, parsed: bool) -> None:
    partly = {"request_body_mode": "BUFFERED_PARTIAL"}
    async with run_gateway(tmp_path, processing_mode=partly, envoy_buffer=1 << 20) as gateway:
        assert await was_parsed(gateway, size) == [parsed]


async def test_a_response_streamed_through_the_picker_is_unchanged(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def stream(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked_head() + chunk(b"data: first\n\n"))
        await go_on.wait()
        writer.write(chunk(b"data: last\n\n" + b"x" * 200_000) + chunk())

    async with run_gateway(tmp_path, processing_mode=BOTH_WAYS) as gateway:
        gateway.servers[0].behave = stream
        async with gateway.client.post(gateway.url(PickMode.FULL_DUPLEX), json=chat()) as response:
            assert await asyncio.wait_for(response.content.readuntil(b"\n\n"), 10) == b"data: first\n\n"
            go_on.set()
            assert await asyncio.wait_for(response.content.read(), 10) == b"data: last\n\n" + b"x" * 200_000
        await eventually(lambda: gateway.pool.ended_as == ["closed"])
        assert gateway.events == []


async def test_a_request_whose_body_is_not_sent_is_picked_at_its_headers(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, processing_mode={"request_body_mode": "NONE"}) as gateway:
        response = await gateway.client.post(gateway.url(PickMode.BUFFERED), json=chat())
        assert (await response.json())["server"] == gateway.servers[0].address


async def test_skipped_headers_are_an_error_that_names_the_setting(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, processing_mode={"request_header_mode": "SKIP"}) as gateway:
        response = await gateway.client.post(gateway.url(PickMode.BUFFERED), json=chat())
        assert response.status == 500
        assert "request_header_mode" in (await response.json())["error"]["message"]
