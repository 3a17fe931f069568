"""Real Envoy, real picker port: requests go where the picker says, whatever their bodies look like on the wire."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from pathlib import Path

import orjson
import pytest

from agent.envoy.render import FailureMode, Way
from tests.envoy.rig import CHAT, WAYS, a_rig, chat, raw
from tests.waiting import eventually

both = pytest.mark.parametrize("way", WAYS, ids=[way.value for way in WAYS])


@both
async def test_a_request_goes_to_the_endpoint_that_was_picked(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        for server in rig.servers * 2:
            rig.pool.choose = lambda _, __, address=server.address: address  # type: ignore[misc]
            async with rig.client.post(rig.url(way), json=chat("hi")) as answer:
                assert (await answer.json())["server"] == server.address
            request, body = server.seen[-1]
            assert json.loads(body) == chat("hi")
            assert request.headers["x-gateway-destination-endpoint"] == server.address
        assert [(prompt.model, b"hi" in prompt.text) for _, prompt, _ in rig.pool.asked] == [("m", True)] * 6
        await eventually(lambda: rig.pool.ended_as == ["closed"] * 6)
        assert rig.pool.wrongly_ended == 0


@both
async def test_a_request_without_a_body_is_picked_for_too(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        rig.pool.choose = lambda _, __: rig.servers[2].address
        async with rig.client.get(rig.url(way, "/v1/models")) as answer:
            assert (await answer.json())["server"] == rig.servers[2].address
        await eventually(lambda: rig.pool.in_flight == 0)


@both
async def test_the_endpoint_that_a_client_names_itself_is_ignored(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        picked, wanted = rig.servers[0], rig.servers[1]
        names = {"x-gateway-destination-endpoint": wanted.address, "x-prefiller-host-port": wanted.address}
        async with rig.client.post(rig.url(way), json=chat(), headers=names) as answer:
            assert (await answer.json())["server"] == picked.address
        request, _ = picked.seen[-1]
        assert request.headers.getall("x-gateway-destination-endpoint") == [picked.address]
        assert "x-prefiller-host-port" not in request.headers


async def test_without_a_picker_the_endpoint_that_a_client_names_is_ignored_too(tmp_path: Path) -> None:
    async with a_rig(tmp_path) as rig:
        names = {"x-gateway-destination-endpoint": rig.servers[0].address}
        for _ in range(9):
            async with rig.client.post(rig.url(Way.ROUND_ROBIN), json=chat(), headers=names) as answer:
                assert answer.status == 200
        assert all(server.seen for server in rig.servers)
        assert rig.pool.asked == []


@both
async def test_a_request_id_is_kept_or_made(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        for headers in ({"x-request-id": "mine"}, {}):
            async with rig.client.post(rig.url(way), json=chat(), headers=headers) as answer:
                assert answer.status == 200
        mine, made = (request.headers["x-request-id"] for request, _ in rig.servers[0].seen)
        assert mine == "mine"
        assert made
        assert [request_id for request_id, _, _ in rig.pool.asked] == [mine, made]


@both
async def test_a_body_of_20_mb_arrives_as_it_was_sent(tmp_path: Path, way: Way) -> None:
    body = orjson.dumps(chat("x" * 20_000_000))
    async with a_rig(tmp_path, max_body=32 << 20) as rig:
        for server in rig.servers:
            server.respond = None
        async with rig.client.post(rig.url(way), data=io.BytesIO(body)) as answer:
            assert answer.status == 200
        ((_, received),) = rig.servers[0].seen
        assert hashlib.sha256(received).digest() == hashlib.sha256(body).digest()
        assert len(rig.pool.asked[0][1].text) > 20_000_000


@both
async def test_a_body_that_comes_byte_by_byte_is_read_whole(tmp_path: Path, way: Way) -> None:
    body = orjson.dumps(chat("one byte at a time"))
    async with a_rig(tmp_path) as rig:
        reader, writer = await raw(rig.port(way))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for byte in body:
            writer.write(b"1\r\n" + bytes([byte]) + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        assert [received for _, received in rig.servers[0].seen] == [body]
        assert b"one byte at a time" in rig.pool.asked[0][1].text


@both
async def test_an_endpoint_that_refuses_is_tried_once_more_elsewhere(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        await rig.servers[0].stop()
        for _ in range(6):
            async with rig.client.post(rig.url(way), json=chat()) as answer:
                assert answer.status == 200
                assert (await answer.json())["server"] != rig.servers[0].address
        await rig.servers[0].start()


async def test_while_the_picker_is_down_an_open_gateway_goes_on_round_robin(tmp_path: Path) -> None:
    async with a_rig(tmp_path, failure_mode=FailureMode.OPEN) as rig:
        await rig.picker.stop(0.0)
        for _ in range(6):
            async with rig.client.post(rig.url(Way.BUFFERED), json=chat()) as answer:
                assert answer.status == 200


@both
async def test_an_endpoint_that_refuses_gives_way_to_the_first_fallback_of_the_pick(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path, servers=4) as rig:
        rig.pool.fallbacks = (rig.servers[3].address, rig.servers[1].address)
        await rig.servers[0].stop()
        for _ in range(6):
            async with rig.client.post(rig.url(way), json=chat()) as answer:
                assert (await answer.json())["server"] == rig.servers[3].address
        await rig.servers[0].start()
