"""What a real Envoy reports of responses to the picker, by its access log and by response headers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from agent.envoy.render import PickMode, ResponseSource
from agent.pick.decision import NoPick
from agent.requests.response import Response, result_of
from tests.envoy.gateway import MODES, Gateway, chat, run_gateway
from tests.fakes.model_server import ModelServer, chunk, chunked_head
from tests.waiting import eventually

Behaviour = Callable[[ModelServer, str, asyncio.StreamWriter], Awaitable[None]]
SOURCES = (ResponseSource.ACCESS_LOG, ResponseSource.RESPONSE_HEADERS)
sources = pytest.mark.parametrize("source", SOURCES, ids=[source.value for source in SOURCES])
modes = pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])


def status(code: int, headers: str = "") -> Behaviour:
    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {code} Status\r\n{headers}Content-Length: 3\r\n\r\nabc".encode())

    return behave


async def drop(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def begin(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(chunked_head() + chunk(b"data: a\n\n"))
    await writer.drain()


async def nothing(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@pytest.fixture
async def gateway(tmp_path: Path, source: ResponseSource) -> AsyncIterator[Gateway]:
    async with run_gateway(tmp_path, servers=2, responses=source) as running:
        yield running


async def reported(gateway: Gateway, source: ResponseSource) -> Response:
    """The only report on the last request."""
    pool = gateway.pool
    await eventually(lambda: len(pool.ended_as) == pool.picks)
    if source is ResponseSource.ACCESS_LOG:
        await eventually(lambda: bool(pool.log))
        ((request_id, response),) = pool.log
        assert request_id == pool.requests[-1][0]
        assert pool.responses == []
    else:
        (response,) = pool.responses
        assert pool.log == []
    return response


async def send(gateway: Gateway, mode: PickMode) -> int:
    async with gateway.client.post(gateway.url(mode), json=chat()) as response:
        await response.read()
        return response.status


@modes
@sources
@pytest.mark.parametrize(
    ("behave", "sent", "result"),
    [
        (status(200), 200, "ok"),
        (status(404), 404, "client_error"),
        (status(500), 500, "server_error"),
        (status(503, "Retry-After: 1\r\n"), 503, "overloaded"),
        (drop, 503, "reset"),
    ],
    ids=["200", "404", "500", "503-retry-after", "dropped"],
)
async def test_the_result_and_the_endpoint_of_each_response_are_reported(
    gateway: Gateway, source: ResponseSource, mode: PickMode, behave: Behaviour, sent: int, result: str
) -> None:
    for server in gateway.servers:
        server.behave = behave
    assert await send(gateway, mode) == sent
    response = await reported(gateway, source)
    assert result_of(response, queue_full=False) == result
    assert response.served in [server.address for server in gateway.servers]


@modes
@sources
async def test_a_server_that_cannot_be_reached_shows_in_the_number_of_tries(
    gateway: Gateway, source: ResponseSource, mode: PickMode
) -> None:
    dead, alive = gateway.servers
    await dead.stop()
    assert await send(gateway, mode) == 200
    response = await reported(gateway, source)
    assert (response.status, response.served, response.attempts) == (200, alive.address, 2)


@modes
@sources
async def test_an_endpoint_that_envoy_does_not_have_is_served_elsewhere_at_the_first_try(
    gateway: Gateway, source: ResponseSource, mode: PickMode
) -> None:
    gateway.pool.choose = lambda _, __: "127.0.0.9:9"
    assert await send(gateway, mode) == 200
    response = await reported(gateway, source)
    assert response.served in [server.address for server in gateway.servers]
    assert response.attempts == 1


@modes
@pytest.mark.parametrize("source", SOURCES[:1], ids=["access-log"])
async def test_a_stream_that_breaks_off_is_told_from_one_that_the_client_leaves(
    gateway: Gateway, source: ResponseSource, mode: PickMode
) -> None:
    server, received = gateway.servers[0], asyncio.Event()

    async def begin_and_break_off(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        await begin(server, path, writer)
        await received.wait()
        writer.transport.abort()

    server.behave = begin_and_break_off
    async with gateway.client.post(gateway.url(mode), json=chat()) as response:
        await response.content.readany()
        received.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    broken = await reported(gateway, source)
    assert (broken.status, broken.broken, broken.client_left) == (200, "reset", False)
    gateway.pool.log.clear()
    server.behave = begin
    response = await gateway.client.post(gateway.url(mode), json=chat())
    await response.content.readany()
    response.close()
    left = await reported(gateway, source)
    assert (left.status, left.broken, left.client_left) == (200, "", True)
    assert left.body_bytes


@modes
@pytest.mark.parametrize("source", SOURCES[:1], ids=["access-log"])
async def test_a_client_that_leaves_before_the_response_is_reported_without_a_byte(
    gateway: Gateway, source: ResponseSource, mode: PickMode
) -> None:
    gateway.servers[0].behave = nothing
    request = asyncio.create_task(send(gateway, mode))
    await eventually(lambda: bool(gateway.servers[0].requests))
    request.cancel()
    left = await reported(gateway, source)
    assert (left.status, left.client_left, left.body_bytes) == (0, True, 0)


@modes
@sources
async def test_a_rejection_of_the_picker_counts_against_no_endpoint(
    gateway: Gateway, source: ResponseSource, mode: PickMode
) -> None:
    gateway.pool.choose = lambda _, __: NoPick("r", "none_healthy", "")
    assert await send(gateway, mode) == 503
    if source is ResponseSource.ACCESS_LOG:
        await eventually(lambda: bool(gateway.pool.log))
        ((_, response),) = gateway.pool.log
        assert (result_of(response, queue_full=False), response.served) == ("proxy", "")


@pytest.mark.parametrize("source", [ResponseSource.NONE], ids=["none"])
async def test_without_a_source_nothing_is_reported(gateway: Gateway, source: ResponseSource) -> None:
    assert await send(gateway, PickMode.BUFFERED) == 200
    assert (gateway.pool.open_logs, gateway.pool.log, gateway.pool.responses) == (0, [], [])
