"""Every rejection, of the picker or of Envoy, is an OpenAI error with a useful message."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from agent.envoy import process
from agent.envoy.render import PickMode, bootstrap
from agent.events.requests import Refused, StreamBroken
from agent.pick.decision import NoPick
from tests.envoy.gateway import MODES, Gateway, chat, connect, envoy_config, run_gateway
from tests.fakes.ext_proc import CHAT
from tests.fakes.model_server import ModelServer, answer, raw
from tests.waiting import eventually

both = pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    error = (await response.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def openai_client(gateway: Gateway, mode: PickMode) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=gateway.url(mode, "/v1"), api_key="none", max_retries=0)


@both
async def test_without_a_healthy_endpoint_the_answer_is_503_with_reason_and_retry_after(
    tmp_path: Path, mode: PickMode
) -> None:
    async with run_gateway(tmp_path) as gateway:
        gateway.pool.choose = lambda _, __: NoPick("", "none_healthy", "3 of 3 are down")
        async with gateway.client.post(gateway.url(mode), json=chat()) as response:
            error = await error_of(response)
            assert (response.status, error["type"], error["code"]) == (503, "server_error", "no_endpoint")
            assert "3 of 3 are down" in error["message"]
            assert response.headers["retry-after"] == "1"
            assert response.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
            assert response.headers["x-request-id"]
        async with gateway.client.get(gateway.url(mode, "/v1/models")) as response:
            assert response.status == 503
        assert gateway.events == [Refused("pool", "m", 503, "none_healthy"), Refused("pool", "", 503, "none_healthy")]
        assert not any(server.requests for server in gateway.servers)


@both
@pytest.mark.parametrize("body", [b"{", b"", b"[]", b'{"messages":[]}', b"\xff\xfe", b"--form\r\n"])
async def test_an_unreadable_body_is_400(tmp_path: Path, mode: PickMode, body: bytes) -> None:
    async with run_gateway(tmp_path) as gateway:
        async with gateway.client.post(gateway.url(mode), data=body) as response:
            error = await error_of(response)
            assert (response.status, error["type"]) == (400, "invalid_request_error")
        assert gateway.pool.requests == []
        (refused,) = gateway.events
        assert isinstance(refused, Refused)
        assert refused.status == 400


@both
async def test_a_body_that_announces_20_mb_is_413(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        reader, writer = await connect(gateway.port(mode))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 20000000\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"content-type: application/json" in head
        assert b"request_too_large" in await asyncio.wait_for(reader.readuntil(b"}}"), 10)
        writer.close()
        assert gateway.events == [Refused("pool", "", 413, "too_large")]


@both
async def test_20_mb_without_a_content_length_are_413_too(tmp_path: Path, mode: PickMode) -> None:
    async def megabytes() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 1_000_000

    async with run_gateway(tmp_path) as gateway:
        async with gateway.client.post(gateway.url(mode), data=megabytes()) as response:
            error = await error_of(response)
            assert (response.status, error["type"], error["code"]) == (
                413,
                "invalid_request_error",
                "request_too_large",
            )
            assert str(16 << 20) in error["message"]
        assert gateway.pool.requests == []


@both
async def test_a_body_just_over_the_limit_is_refused_and_one_at_the_limit_is_not(
    tmp_path: Path, mode: PickMode
) -> None:
    async with run_gateway(tmp_path, max_body=1_000_000) as gateway:
        head, tail = b'{"model":"m","messages":[{"role":"user","content":"', b'"}]}'
        for size, status in ((1_000_000, 200), (1_000_001, 413)):
            body = head + b"x" * (size - len(head) - len(tail)) + tail
            async with gateway.client.post(gateway.url(mode), data=io.BytesIO(body)) as response:
                assert response.status == status, await response.text()


@both
async def test_a_connect_is_rejected_at_once(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        reader, writer = await connect(gateway.port(mode))
        writer.write(b"CONNECT elsewhere:443 HTTP/1.1\r\nhost: elsewhere:443\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).startswith(b"HTTP/1.1 405 ")
        assert b"method_not_allowed" in await asyncio.wait_for(reader.readuntil(b"}}"), 10)
        writer.close()


async def test_buffered_bodies_are_limited_and_a_rejected_request_can_be_retried(
    tmp_path: Path,
) -> None:
    mode = PickMode.FULL_DUPLEX
    async with run_gateway(tmp_path, max_buffered=100_000) as gateway:
        _, writer = await connect(gateway.port(mode))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 90000\r\n\r\n".encode() + b" " * 80_000)
        await eventually(lambda: gateway.picker.buffered_bytes == 80_000)
        async with gateway.client.post(gateway.url(mode), json=chat("x" * 30_000)) as response:
            assert (response.status, (await error_of(response))["code"]) == (429, "overloaded")
            assert response.headers["retry-after"] == "1"
        async with gateway.client.post(gateway.url(mode), json=chat()) as response:
            assert response.status == 200
        writer.close()
        await eventually(lambda: gateway.picker.buffered_bytes == 0)
        async with gateway.client.post(gateway.url(mode), json=chat("x" * 30_000)) as response:
            assert response.status == 200
        assert Refused("pool", "", 429, "body_budget") in gateway.events


@both
async def test_a_request_id_of_any_bytes_is_returned_unchanged(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        reader, writer = await connect(gateway.port(mode))
        head = f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 2\r\n".encode()
        writer.write(head + b"x-request-id: \xe9\xff\r\n\r\n{}")
        response = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert response.startswith(b"HTTP/1.1 400 ")
        assert b"x-request-id: \xe9\xff\r\n" in response
        writer.close()


@both
async def test_while_the_picker_is_down_failure_mode_close_answers_503_in_json(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path, settings={"picker_retries": 2}) as gateway:
        await gateway.stop_picker()
        for body in (None, chat()):
            async with gateway.client.request("POST" if body else "GET", gateway.url(mode), json=body) as response:
                error = await error_of(response)
                assert (response.status, error["type"], error["code"]) == (503, "server_error", "picker_unavailable")
                assert response.headers["retry-after"] == "1"


@both
async def test_a_pool_that_drops_every_connection_is_an_openai_error(tmp_path: Path, mode: PickMode) -> None:
    async def drop(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with run_gateway(tmp_path) as gateway:
        for server in gateway.servers:
            server.behave = drop
        async with gateway.client.post(gateway.url(mode), json=chat()) as response:
            error = await error_of(response)
            assert (response.status, error["code"]) == (503, "upstream_unavailable")
        await eventually(lambda: gateway.pool.in_flight == 0)


@both
async def test_an_unreachable_endpoint_is_an_openai_error(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path, servers=1) as gateway:
        await gateway.servers[0].stop()
        async with gateway.client.post(gateway.url(mode), json=chat()) as response:
            error = await error_of(response)
            assert (response.status, error["code"]) == (503, "upstream_unavailable")


@both
async def test_errors_of_a_model_server_are_passed_on_unchanged(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        gateway.servers[0].behave = raw(answer(b"its own message", "400 Bad Request", "Content-Type: text/plain\r\n"))
        async with gateway.client.post(gateway.url(mode), json=chat()) as response:
            assert (response.status, await response.text()) == (400, "its own message")


@both
async def test_an_exception_in_the_agent_fails_one_request_and_is_counted(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        choose, gateway.pool.choose = gateway.pool.choose, lambda _, __: ValueError("broken scorer")
        async with gateway.client.post(gateway.url(mode), json=chat()) as response:
            error = await error_of(response)
            assert (response.status, error["code"]) == (500, "internal_error")
            assert "broken scorer" not in error["message"]
        broken, refused = gateway.events
        assert isinstance(broken, StreamBroken)
        assert "broken scorer" in broken.detail
        assert refused == Refused("pool", "m", 500, "error")
        gateway.pool.choose = choose
        async with gateway.client.post(gateway.url(mode), json=chat()) as response:
            assert response.status == 200


@both
async def test_the_openai_client_raises_the_matching_error(tmp_path: Path, mode: PickMode) -> None:
    settings = {"picker_retries": 0}
    async with (
        run_gateway(tmp_path, max_body=10_000, settings=settings) as gateway,
        openai_client(gateway, mode) as client,
    ):

        async def send(words: str = "hello", model: str = "m") -> Any:
            return await client.chat.completions.create(model=model, messages=[{"role": "user", "content": words}])

        with pytest.raises(openai.BadRequestError) as bad:
            await send(model="")
        assert (bad.value.code, bad.value.param, bad.value.type) == ("model_required", "model", "invalid_request_error")
        with pytest.raises(openai.APIStatusError) as large:
            await send("x" * 20_000)
        assert (large.value.status_code, large.value.code) == (413, "request_too_large")
        gateway.pool.choose = lambda _, __: NoPick("", "no_endpoints", "the pool is empty")
        with pytest.raises(openai.InternalServerError) as none:
            await send()
        assert (none.value.status_code, none.value.code, none.value.type) == (503, "no_endpoint", "server_error")
        await gateway.picker.stop(0.0)
        with pytest.raises(openai.InternalServerError) as down:
            await send()
        assert (down.value.status_code, down.value.code) == (503, "picker_unavailable")


@both
async def test_an_unresponsive_picker_is_an_openai_error_after_the_message_timeout(
    tmp_path: Path, mode: PickMode
) -> None:
    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()

    silent = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    host, port = silent.sockets[0].getsockname()
    config = envoy_config(["127.0.0.1:1"], f"{host}:{port}", message_timeout=0.2)
    envoy = await process.start(bootstrap(config), tmp_path)
    url = f"http://127.0.0.1:{envoy.ports[mode.value]}{CHAT}"
    async with asyncio.timeout(20), aiohttp.ClientSession() as client, client.post(url, json=chat()) as response:
        error = await error_of(response)
        assert (response.status, error["code"]) == (503, "picker_unavailable")
    await envoy.stop()
    silent.close()
