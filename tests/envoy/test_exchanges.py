"""What a real Envoy measures of requests and responses, and the token usage that it reads from them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.envoy.render import PickMode
from agent.events.exchange import NO_USAGE, Exchange, TokenUsage
from agent.requests.response import Response
from agent.requests.usage_text import HEAD_BYTES, TAIL_BYTES
from tests.envoy.gateway import Gateway, chat, run_gateway
from tests.fakes.model_server import ModelServer, chunk, chunked_head
from tests.waiting import eventually

MODE = PickMode.BUFFERED
USAGE = {"prompt_tokens": 19, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 16}}
READ = TokenUsage(19, 20, 16)
Behaviour = Callable[[ModelServer, str, asyncio.StreamWriter], Awaitable[None]]


def event(data: Any, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"


def stream(*events: bytes, content_type: str = "text/event-stream; charset=utf-8") -> Behaviour:
    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked_head(f"Content-Type: {content_type}\r\n") + b"".join(map(chunk, events)) + chunk(b""))

    return behave


def whole(document: Any, content_type: str = "application/json") -> Behaviour:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    return behave


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with run_gateway(tmp_path, servers=1) as running:
        yield running


async def logged(gateway: Gateway) -> Response:
    await eventually(lambda: bool(gateway.pool.log))
    ((_, response),) = gateway.pool.log
    return response


async def measured(
    gateway: Gateway, behave: Behaviour, path: str = "/v1/chat/completions", *, status: int = 200
) -> Exchange:
    gateway.servers[0].behave = behave
    async with gateway.client.post(gateway.url(MODE, path), json=chat()) as response:
        await response.read()
        assert response.status == status
    exchange = (await logged(gateway)).exchange
    assert exchange is not None
    return exchange


CHUNK = {"choices": [{"delta": {"content": "a"}}], "usage": None}


@pytest.mark.parametrize(
    ("behave", "path"),
    [
        (
            stream(event(CHUNK), event(CHUNK), event({"choices": [], "usage": USAGE}), b"data: [DONE]\n\n"),
            "/v1/chat/completions",
        ),
        (whole({"choices": [], "usage": USAGE}), "/v1/chat/completions"),
        (whole({"choices": [], "usage": USAGE}, "application/json; charset=utf-8"), "/prefix/v1/completions?a=b"),
        (
            whole({"usage": {"input_tokens": 19, "output_tokens": 20, "input_tokens_details": {"cached_tokens": 16}}}),
            "/v1/responses",
        ),
        (
            stream(
                event({"response": {"usage": None}}, "response.created"),
                event(
                    {
                        "response": {
                            "usage": {
                                "input_tokens": 19,
                                "output_tokens": 20,
                                "input_tokens_details": {"cached_tokens": 16},
                            }
                        }
                    },
                    "response.completed",
                ),
            ),
            "/v1/responses",
        ),
        (
            stream(
                event({"message": {"usage": {"input_tokens": 19, "cache_read_input_tokens": 16}}}, "message_start"),
                event({"usage": {"output_tokens": 20}}, "message_delta"),
            ),
            "/v1/messages",
        ),
    ],
    ids=["chat-stream", "chat", "charset", "responses", "responses-stream", "messages-stream"],
)
async def test_the_token_usage_of_each_api_is_read(gateway: Gateway, behave: Behaviour, path: str) -> None:
    exchange = await measured(gateway, behave, path)
    assert exchange.usage == READ
    assert exchange.request_bytes == len(json.dumps(chat()))
    assert exchange.response_bytes > 0


@pytest.mark.parametrize(
    "behave",
    [
        stream(event(CHUNK), b"data: [DONE]\n\n"),
        stream(b"data: not json\n\n", b": comment\n\n", b"data: {\n\n"),
        whole(b'{"usage": '),
        whole({"usage": {"prompt_tokens": "many", "completion_tokens": -1, "prompt_tokens_details": []}}),
        whole({"usage": {"prompt_tokens": 19}}, "text/plain"),
    ],
    ids=["none", "no-json", "cut", "no-numbers", "other-type"],
)
async def test_a_response_without_a_usage_that_can_be_read_passes_and_has_none(
    gateway: Gateway, behave: Behaviour
) -> None:
    assert (await measured(gateway, behave)).usage == NO_USAGE


async def test_the_first_token_is_that_of_the_body_and_not_the_headers(gateway: Gateway) -> None:
    released, times = asyncio.Event(), []

    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        writer.write(chunked_head())
        await released.wait()
        times.append(time.monotonic())
        writer.write(chunk(event(CHUNK)) + chunk(b""))

    gateway.servers[0].behave = behave
    begin = time.monotonic()
    async with gateway.client.post(gateway.url(MODE), json=chat()) as response:
        assert response.status == 200  # the headers have arrived, the body has not
        released.set()
        await response.read()
    exchange = (await logged(gateway)).exchange
    assert exchange is not None
    assert exchange.first_token is not None
    assert exchange.streamed
    received, written = times
    assert written - received <= exchange.first_token <= exchange.last_token <= exchange.duration
    assert exchange.duration <= time.monotonic() - begin


async def test_a_stream_that_is_cut_before_its_usage_has_none_and_is_a_reset(gateway: Gateway) -> None:
    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked_head() + chunk(event(CHUNK)))
        await writer.drain()
        await cut.wait()
        writer.transport.abort()

    cut = asyncio.Event()
    gateway.servers[0].behave = behave
    async with gateway.client.post(gateway.url(MODE), json=chat()) as response:
        await response.content.readany()
        cut.set()
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    found = await logged(gateway)
    assert (found.status, found.broken, found.client_left) == (200, "reset", False)
    assert found.exchange is not None
    assert found.exchange.first_token is not None
    assert found.exchange.usage == NO_USAGE


async def test_a_client_that_leaves_a_stream_is_told_apart_from_a_server_that_breaks_it(gateway: Gateway) -> None:
    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked_head() + chunk(event(CHUNK)))
        await asyncio.Event().wait()

    gateway.servers[0].behave = behave
    async with gateway.client.post(gateway.url(MODE), json=chat()) as response:
        await response.content.readany()
    found = await logged(gateway)
    assert (found.client_left, found.broken) == (True, "")


async def test_a_large_response_passes_and_its_usage_is_read(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, servers=1, max_body=1 << 20) as gateway:
        exchange = await measured(gateway, whole({"padding": "x" * (20 << 20), "usage": USAGE}))
        assert exchange.response_bytes > 20 << 20
        assert exchange.usage == READ


async def test_each_chunk_of_a_stream_passes_at_once(gateway: Gateway) -> None:
    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked_head())
        for _ in range(3):
            writer.write(chunk(event(CHUNK)))
            await writer.drain()
            await seen.get()  # the client has it: nothing waits for the next one
        writer.write(chunk(event({"usage": USAGE})) + chunk(b""))

    seen: asyncio.Queue[None] = asyncio.Queue()
    gateway.servers[0].behave = behave
    async with gateway.client.post(gateway.url(MODE), json=chat()) as response:
        for _ in range(3):
            await response.content.readany()
            seen.put_nowait(None)
        await response.read()
    exchange = (await logged(gateway)).exchange
    assert exchange is not None
    assert exchange.usage == READ


@pytest.mark.parametrize("data", ["0", '"a"', "null", "true", "1.5", "[1]", '{"usage": 5}', "[" * 5000, ""])
@pytest.mark.parametrize("streamed", [True, False])
async def test_no_body_of_a_model_server_stops_envoy(gateway: Gateway, data: str, streamed: bool) -> None:
    behave = stream(b"data: " + data.encode() + b"\n\n") if streamed else whole(data.encode())
    assert (await measured(gateway, behave)).usage == NO_USAGE
    assert gateway.envoy.running()


async def test_text_of_an_answer_is_no_usage(gateway: Gateway) -> None:
    text = 'the JSON {"prompt_tokens": 1, "completion_tokens": 2} has "cached_tokens": 3, and \\"prompt_tokens\\": 4}'
    answer = {"choices": [{"message": {"content": text}}], "metadata": {"prompt_tokens": "7"}}
    assert (await measured(gateway, whole(answer))).usage == NO_USAGE


async def test_a_number_that_is_cut_at_the_kept_part_is_not_read(gateway: Gateway) -> None:
    key = '{"prompt_tokens":'
    padding = "x" * (HEAD_BYTES - len('{"a":"",') - len(key) + 1 - 2)
    body = '{"a":"' + padding + '",' + key[1:] + "12345" + ',"b":"' + "y" * 2 * TAIL_BYTES + '"}'
    assert body[:HEAD_BYTES].endswith(":12")
    assert (await measured(gateway, whole(body.encode()))).usage == NO_USAGE


async def test_without_usage_in_the_configuration_the_times_are_there(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, servers=1, settings={"usage": False}) as gateway:
        exchange = await measured(gateway, whole({"usage": USAGE}))
        assert exchange.usage == NO_USAGE
        assert exchange.first_token is not None
