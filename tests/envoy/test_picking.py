"""A real Envoy routes each request to the picked endpoint, however its body is sent."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import aiohttp
import orjson
import pytest
import zstandard

from agent.envoy.render import FailureMode, PickMode
from tests.envoy.gateway import MODES, chat, connect, run_gateway
from tests.fakes.ext_proc import CHAT
from tests.waiting import eventually

both = pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])


@both
async def test_a_request_goes_to_the_endpoint_that_was_picked(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        for server in gateway.servers * 2:
            gateway.pool.choose = lambda _, __, address=server.address: address  # type: ignore[misc]
            async with gateway.client.post(gateway.url(mode), json=chat("hi")) as response:
                assert (await response.json())["server"] == server.address
            request = server.requests[-1]
            assert json.loads(request.body) == chat("hi")
            assert request.headers["x-gateway-destination-endpoint"] == server.address
        assert [(prompt.model, b"hi" in prompt.text) for _, prompt, _ in gateway.pool.requests] == [("m", True)] * 6
        await eventually(lambda: gateway.pool.ended_as == ["closed"] * 6)
        assert gateway.pool.ended_twice == 0


@both
async def test_a_request_without_a_body_is_picked_too(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        gateway.pool.choose = lambda _, __: gateway.servers[2].address
        async with gateway.client.get(gateway.url(mode, "/v1/models")) as response:
            assert (await response.json())["server"] == gateway.servers[2].address
        await eventually(lambda: gateway.pool.in_flight == 0)


@both
async def test_an_endpoint_named_by_the_client_is_ignored(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        picked, wanted = gateway.servers[0], gateway.servers[1]
        names = {"x-gateway-destination-endpoint": wanted.address, "x-prefiller-host-port": wanted.address}
        async with gateway.client.post(gateway.url(mode), json=chat(), headers=names) as response:
            assert (await response.json())["server"] == picked.address
        request = picked.requests[-1]
        assert request.headers.getall("x-gateway-destination-endpoint") == [picked.address]
        assert "x-prefiller-host-port" not in request.headers


async def test_without_a_picker_an_endpoint_named_by_the_client_is_ignored_too(tmp_path: Path) -> None:
    async with run_gateway(tmp_path) as gateway:
        names = {"x-gateway-destination-endpoint": gateway.servers[0].address}
        for _ in range(9):
            async with gateway.client.post(gateway.url(PickMode.ROUND_ROBIN), json=chat(), headers=names) as response:
                assert response.status == 200
        assert all(server.requests for server in gateway.servers)
        assert gateway.pool.requests == []


@both
async def test_a_request_id_is_kept_or_generated(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        for headers in ({"x-request-id": "mine"}, {}):
            async with gateway.client.post(gateway.url(mode), json=chat(), headers=headers) as response:
                assert response.status == 200
        given, generated = (request.headers["x-request-id"] for request in gateway.servers[0].requests)
        assert given == "mine"
        assert generated
        assert [request_id for request_id, _, _ in gateway.pool.requests] == [given, generated]


@both
async def test_a_body_of_20_mb_arrives_unchanged(tmp_path: Path, mode: PickMode) -> None:
    body = orjson.dumps(chat("x" * 20_000_000))
    async with run_gateway(tmp_path, max_body=32 << 20) as gateway:
        async with gateway.client.post(gateway.url(mode), data=io.BytesIO(body)) as response:
            assert response.status == 200
        (received,) = gateway.servers[0].requests
        assert hashlib.sha256(received.body).digest() == hashlib.sha256(body).digest()
        assert len(gateway.pool.requests[0][1].text) > 20_000_000


@both
async def test_a_body_that_arrives_byte_by_byte_is_read_whole(tmp_path: Path, mode: PickMode) -> None:
    body = orjson.dumps(chat("one byte at a time"))
    async with run_gateway(tmp_path) as gateway:
        reader, writer = await connect(gateway.port(mode))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for byte in body:
            writer.write(b"1\r\n" + bytes([byte]) + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        assert [request.body for request in gateway.servers[0].requests] == [body]
        assert b"one byte at a time" in gateway.pool.requests[0][1].text


@both
async def test_a_refused_connection_is_retried_at_another_endpoint(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        await gateway.servers[0].stop()
        for _ in range(6):
            async with gateway.client.post(gateway.url(mode), json=chat()) as response:
                assert response.status == 200
                assert (await response.json())["server"] != gateway.servers[0].address


async def test_while_the_picker_is_down_failure_mode_open_routes_round_robin(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, failure_mode=FailureMode.OPEN) as gateway:
        await gateway.picker.stop(0.0)
        for _ in range(6):
            async with gateway.client.post(gateway.url(PickMode.BUFFERED), json=chat()) as response:
                assert response.status == 200


@both
async def test_a_refused_connection_is_retried_at_the_first_fallback_of_the_pick(
    tmp_path: Path, mode: PickMode
) -> None:
    async with run_gateway(tmp_path, servers=4) as gateway:
        gateway.pool.fallbacks = (gateway.servers[3].address, gateway.servers[1].address)
        await gateway.servers[0].stop()
        for _ in range(6):
            async with gateway.client.post(gateway.url(mode), json=chat()) as response:
                assert (await response.json())["server"] == gateway.servers[3].address


@both
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
async def test_an_encoded_body_is_read_for_the_pick_and_reaches_the_server_as_it_came(
    tmp_path: Path, mode: PickMode, pack: Callable[[bytes], bytes]
) -> None:
    async with run_gateway(tmp_path) as gateway:
        body = pack(orjson.dumps(chat("a word " * 500)))
        encoding = "gzip" if pack is gzip.compress else "zstd"
        headers = {"content-type": "application/json", "content-encoding": encoding}
        async with gateway.client.post(gateway.url(mode), data=body, headers=headers) as response:
            assert response.status == 200
        request = gateway.servers[0].requests[-1]
        assert (request.body, request.headers["content-encoding"]) == (body, encoding)
        ((_, prompt, _),) = gateway.pool.requests
        assert (prompt.model, prompt.text.count(b"a word")) == ("m", 500)


@both
async def test_a_form_is_read_for_its_model(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        form = aiohttp.FormData({"model": "whisper"})
        form.add_field("file", b"RIFF" * 5000, filename="a.wav")
        async with gateway.client.post(gateway.url(mode, "/v1/audio/transcriptions"), data=form) as response:
            assert response.status == 200
        ((_, prompt, _),) = gateway.pool.requests
        assert prompt.model == "whisper"
