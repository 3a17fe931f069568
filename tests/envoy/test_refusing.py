"""Whoever refuses, the picker or Envoy itself, the client reads an OpenAI error that says what is wrong."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from agent.envoy import process
from agent.envoy.render import Way, bootstrap
from agent.events.requests import Refused, StreamBroken
from agent.pick.decision import NoPick
from tests.envoy.rig import CHAT, WAYS, Rig, a_rig, chat, envoy_settings, raw
from tests.waiting import eventually

both = pytest.mark.parametrize("way", WAYS, ids=[way.value for way in WAYS])


async def error_of(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    error = (await answer.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def an_openai_client(rig: Rig, way: Way) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=rig.url(way, "/v1"), api_key="none", max_retries=0)


@both
async def test_nothing_healthy_is_503_with_the_reason_and_when_to_come_back(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        rig.pool.choose = lambda _, __: NoPick("", "none_healthy", "3 of 3 are down")
        async with rig.client.post(rig.url(way), json=chat()) as answer:
            error = await error_of(answer)
            assert (answer.status, error["type"], error["code"]) == (503, "server_error", "no_endpoint")
            assert "3 of 3 are down" in error["message"]
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
            assert answer.headers["x-request-id"]
        async with rig.client.get(rig.url(way, "/v1/models")) as answer:
            assert answer.status == 503
        assert rig.events == [Refused("pool", "m", 503, "none_healthy"), Refused("pool", "", 503, "none_healthy")]
        assert not any(server.seen for server in rig.servers)


@both
@pytest.mark.parametrize("body", [b"{", b"", b"[]", b'{"messages":[]}', b"\xff\xfe", b"--form\r\n"])
async def test_an_unreadable_body_is_400(tmp_path: Path, way: Way, body: bytes) -> None:
    async with a_rig(tmp_path) as rig:
        async with rig.client.post(rig.url(way), data=body) as answer:
            error = await error_of(answer)
            assert (answer.status, error["type"]) == (400, "invalid_request_error")
        assert rig.pool.asked == []
        (refused,) = rig.events
        assert isinstance(refused, Refused)
        assert refused.status == 400


@both
async def test_a_body_that_announces_20_mb_is_413(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        reader, writer = await raw(rig.port(way))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 20000000\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"content-type: application/json" in head
        assert b"request_too_large" in await asyncio.wait_for(reader.readuntil(b"}}"), 10)
        writer.close()
        assert rig.events == [Refused("pool", "", 413, "too_large")]


@both
async def test_20_mb_that_do_not_announce_themselves_are_413_too(tmp_path: Path, way: Way) -> None:
    async def megabytes() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 1_000_000

    async with a_rig(tmp_path) as rig:
        async with rig.client.post(rig.url(way), data=megabytes()) as answer:
            error = await error_of(answer)
            assert (answer.status, error["type"], error["code"]) == (413, "invalid_request_error", "request_too_large")
            assert str(16 << 20) in error["message"]
        assert rig.pool.asked == []


@both
async def test_a_body_just_over_the_limit_is_refused_and_one_at_the_limit_is_not(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path, max_body=1_000_000) as rig:
        head, tail = b'{"model":"m","messages":[{"role":"user","content":"', b'"}]}'
        for size, status in ((1_000_000, 200), (1_000_001, 413)):
            body = head + b"x" * (size - len(head) - len(tail)) + tail
            async with rig.client.post(rig.url(way), data=io.BytesIO(body)) as answer:
                assert answer.status == status, await answer.text()


@both
async def test_a_connect_is_answered_at_once(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        reader, writer = await raw(rig.port(way))
        writer.write(b"CONNECT elsewhere:443 HTTP/1.1\r\nhost: elsewhere:443\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).startswith(b"HTTP/1.1 405 ")
        assert b"method_not_allowed" in await asyncio.wait_for(reader.readuntil(b"}}"), 10)
        writer.close()


async def test_bodies_that_arrive_slowly_are_held_within_a_bound_and_a_refused_one_can_come_again(
    tmp_path: Path,
) -> None:
    way = Way.FULL_DUPLEX
    async with a_rig(tmp_path, max_buffered=100_000) as rig:
        _, writer = await raw(rig.port(way))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 90000\r\n\r\n".encode() + b" " * 80_000)
        await eventually(lambda: rig.picker.buffered_bytes == 80_000)
        async with rig.client.post(rig.url(way), json=chat("x" * 30_000)) as answer:
            assert (answer.status, (await error_of(answer))["code"]) == (429, "overloaded")
            assert answer.headers["retry-after"] == "1"
        async with rig.client.post(rig.url(way), json=chat()) as answer:
            assert answer.status == 200
        writer.close()
        await eventually(lambda: rig.picker.buffered_bytes == 0)
        async with rig.client.post(rig.url(way), json=chat("x" * 30_000)) as answer:
            assert answer.status == 200
        assert Refused("pool", "", 429, "body_budget") in rig.events


@both
async def test_a_request_id_of_any_bytes_comes_back_as_it_was(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        reader, writer = await raw(rig.port(way))
        head = f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 2\r\n".encode()
        writer.write(head + b"x-request-id: \xe9\xff\r\n\r\n{}")
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"x-request-id: \xe9\xff\r\n" in answer
        writer.close()


@both
async def test_while_the_picker_is_down_a_closed_gateway_answers_503_in_json(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        await rig.picker.stop(0.0)
        for body in (None, chat()):
            async with rig.client.request("POST" if body else "GET", rig.url(way), json=body) as answer:
                error = await error_of(answer)
                assert (answer.status, error["type"], error["code"]) == (503, "server_error", "picker_unavailable")
                assert answer.headers["retry-after"] == "1"


@both
async def test_an_endpoint_that_drops_the_connection_is_an_openai_error(tmp_path: Path, way: Way) -> None:
    async def drop(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with a_rig(tmp_path) as rig:
        rig.servers[0].respond = drop
        async with rig.client.post(rig.url(way), json=chat()) as answer:
            error = await error_of(answer)
            assert (answer.status, error["code"]) == (503, "upstream_unavailable")
        await eventually(lambda: rig.pool.in_flight == 0)


@both
async def test_no_endpoint_alive_is_an_openai_error(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path, servers=1) as rig:
        await rig.servers[0].stop()
        async with rig.client.post(rig.url(way), json=chat()) as answer:
            error = await error_of(answer)
            assert (answer.status, error["code"]) == (503, "upstream_unavailable")
        await rig.servers[0].start()


@both
async def test_the_errors_of_a_model_server_are_passed_on_as_they_are(tmp_path: Path, way: Way) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=400, text="its own words", content_type="text/plain")

    async with a_rig(tmp_path) as rig:
        rig.servers[0].respond = refuse
        async with rig.client.post(rig.url(way), json=chat()) as answer:
            assert (answer.status, await answer.text()) == (400, "its own words")


@both
async def test_an_error_of_ours_costs_one_request_and_is_counted(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path) as rig:
        choose, rig.pool.choose = rig.pool.choose, lambda _, __: ValueError("broken scorer")
        async with rig.client.post(rig.url(way), json=chat()) as answer:
            error = await error_of(answer)
            assert (answer.status, error["code"]) == (500, "internal_error")
            assert "broken scorer" not in error["message"]
        broken, refused = rig.events
        assert isinstance(broken, StreamBroken)
        assert "broken scorer" in broken.detail
        assert refused == Refused("pool", "m", 500, "error")
        rig.pool.choose = choose
        async with rig.client.post(rig.url(way), json=chat()) as answer:
            assert answer.status == 200


@both
async def test_the_openai_client_raises_the_error_that_fits(tmp_path: Path, way: Way) -> None:
    async with a_rig(tmp_path, max_body=10_000) as rig, an_openai_client(rig, way) as client:

        async def ask(words: str = "hello", model: str = "m") -> Any:
            return await client.chat.completions.create(model=model, messages=[{"role": "user", "content": words}])

        with pytest.raises(openai.BadRequestError) as bad:
            await ask(model="")
        assert (bad.value.code, bad.value.param, bad.value.type) == ("model_required", "model", "invalid_request_error")
        with pytest.raises(openai.APIStatusError) as large:
            await ask("x" * 20_000)
        assert (large.value.status_code, large.value.code) == (413, "request_too_large")
        rig.pool.choose = lambda _, __: NoPick("", "no_endpoints", "the pool is empty")
        with pytest.raises(openai.InternalServerError) as none:
            await ask()
        assert (none.value.status_code, none.value.code, none.value.type) == (503, "no_endpoint", "server_error")
        await rig.picker.stop(0.0)
        with pytest.raises(openai.InternalServerError) as down:
            await ask()
        assert (down.value.status_code, down.value.code) == (503, "picker_unavailable")


@both
async def test_a_picker_that_says_nothing_costs_its_time_out_and_is_an_openai_error(tmp_path: Path, way: Way) -> None:
    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()

    silent = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    host, port = silent.sockets[0].getsockname()
    settings = envoy_settings(["127.0.0.1:1"], f"{host}:{port}", message_timeout=0.2)
    envoy = await process.start(bootstrap(settings), tmp_path)
    url = f"http://127.0.0.1:{envoy.ports[way.value]}{CHAT}"
    async with asyncio.timeout(20), aiohttp.ClientSession() as client, client.post(url, json=chat()) as answer:
        error = await error_of(answer)
        assert (answer.status, error["code"]) == (503, "picker_unavailable")
    await envoy.stop()
    silent.close()
