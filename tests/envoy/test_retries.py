"""What a real Envoy repeats, where, and what it never repeats; which endpoints it ejects, and what that affects."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from agent.envoy.render import FailureMode, PickMode
from tests.envoy.gateway import MODES, Gateway, chat, run_gateway
from tests.fakes.model_server import Behaviour, ModelServer, answer, chunk, chunked_head, raw
from tests.waiting import eventually, found

both = pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
ROUND_ROBIN = PickMode.ROUND_ROBIN


async def drop(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """A reset once the request has arrived."""
    writer.transport.abort()


def status(line: str) -> Behaviour:
    return raw(answer(b"{}", line, "Content-Type: application/json\r\n"))


async def statuses(gateway: Gateway, mode: PickMode, count: int) -> Counter[int]:
    """The statuses of `count` chats, one after the other."""
    seen: Counter[int] = Counter()
    for _ in range(count):
        async with gateway.client.post(gateway.url(mode), json=chat()) as response:
            await response.read()
            seen[response.status] += 1
    return seen


@both
async def test_a_reset_before_the_first_byte_is_retried_at_another_endpoint(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        gateway.servers[0].behave = drop
        assert await statuses(gateway, mode, 6) == {200: 6}
        assert len(gateway.servers[0].requests) == 6
        assert sum(len(server.requests) for server in gateway.servers[1:]) == 6
        await eventually(lambda: gateway.pool.in_flight == 0)


@both
async def test_a_reset_is_retried_at_the_first_fallback_of_the_pick(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path, servers=4) as gateway:
        gateway.pool.fallbacks = (gateway.servers[3].address, gateway.servers[1].address)
        gateway.servers[0].behave = drop
        assert await statuses(gateway, mode, 4) == {200: 4}
        assert [len(server.requests) for server in gateway.servers] == [4, 0, 0, 4]


@both
async def test_a_body_of_10_mb_is_sent_again_as_a_whole(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        gateway.servers[0].behave = drop
        body = b'{"model":"m","prompt":"' + b"x" * 10_000_000 + b'"}'
        async with gateway.client.post(gateway.url(mode, "/v1/completions"), data=io.BytesIO(body)) as response:
            assert response.status == 200
        (received,) = [request for server in gateway.servers[1:] for request in server.requests]
        assert received.body == body


@both
@pytest.mark.parametrize("token", [b"", b"data: {}\n\n"], ids=["the headers", "a token"])
async def test_a_reset_after_the_response_has_begun_is_not_retried(
    tmp_path: Path, mode: PickMode, token: bytes
) -> None:
    unpaused = asyncio.Event()

    async def begin(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked_head() + (chunk(token) if token else b""))
        await writer.drain()
        await unpaused.wait()
        writer.transport.abort()

    async with run_gateway(tmp_path) as gateway:
        gateway.servers[0].behave = begin
        async with gateway.client.post(gateway.url(mode), json=chat()) as response:
            assert response.status == 200
            unpaused.set()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        assert [len(server.requests) for server in gateway.servers] == [1, 0, 0]


@both
@pytest.mark.parametrize("line", ["500 Internal Server Error", "502 Bad Gateway", "504 Gateway Timeout"])
async def test_a_server_error_is_retried_only_where_the_configuration_says_so(
    tmp_path: Path, mode: PickMode, line: str
) -> None:
    for retried in (False, True):
        async with run_gateway(tmp_path, settings={"retry_server_errors": retried}) as gateway:
            gateway.servers[0].behave = status(line)
            assert await statuses(gateway, mode, 3) == ({200: 3} if retried else {int(line[:3]): 3})


@both
@pytest.mark.parametrize("line", ["503 Service Unavailable", "429 Too Many Requests", "400 Bad Request"])
async def test_a_full_queue_and_a_client_s_error_are_never_retried(tmp_path: Path, mode: PickMode, line: str) -> None:
    async with run_gateway(tmp_path, settings={"retry_server_errors": True}) as gateway:
        gateway.servers[0].behave = status(line)
        headers = {"x-envoy-retry-on": "5xx,retriable-4xx", "x-envoy-max-retries": "3"}  # of a client: no effect
        for _ in range(3):
            async with gateway.client.post(gateway.url(mode), json=chat(), headers=headers) as response:
                assert response.status == int(line[:3])
        assert [len(server.requests) for server in gateway.servers] == [3, 0, 0]


async def test_retries_of_server_errors_stay_within_their_budget(tmp_path: Path) -> None:
    settings = {"retry_server_errors": True, "retry_budget": 1}
    async with run_gateway(tmp_path, servers=2, settings=settings) as gateway:
        gateway.servers[0].behave = status("500 Internal Server Error")
        gateway.servers[1].pause()
        chats = [asyncio.create_task(statuses(gateway, PickMode.BUFFERED, 1)) for _ in range(10)]
        await eventually(lambda: sum(task.done() for task in chats) == 7)
        await eventually(lambda: gateway.servers[1].active == 3)  # Envoy's minimum, which is more than 1 % of 10
        gateway.servers[1].resume()
        assert sum([await task for task in chats], Counter()) == {500: 7, 200: 3}


async def test_an_endpoint_that_refuses_connections_is_ejected_and_its_picks_still_go_there(tmp_path: Path) -> None:
    async with run_gateway(tmp_path) as gateway:
        refusing = gateway.servers[0]
        await refusing.stop()
        assert await statuses(gateway, PickMode.BUFFERED, 3) == {200: 3}
        assert await gateway.ejected() == [True, False, False]
        await refusing.start()
        before = len(refusing.requests)
        assert await statuses(gateway, PickMode.BUFFERED, 3) == {200: 3}
        assert len(refusing.requests) == before + 3  # each of them was picked for it
        assert await gateway.ejected() == [True, False, False]
        assert await statuses(gateway, ROUND_ROBIN, 6) == {200: 6}
        assert len(refusing.requests) == before + 3  # no pick: an ejected endpoint is left out


async def test_at_most_half_of_a_pool_is_ejected(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, servers=4) as gateway:
        for server in gateway.servers[:3]:
            await server.stop()
        for server in gateway.servers[:3]:
            gateway.pool.choose = lambda _, __, address=server.address: address  # type: ignore[misc]
            await statuses(gateway, PickMode.BUFFERED, 5)
        assert sum(await gateway.ejected()) == 2


@pytest.mark.parametrize(
    "behave",
    [drop, *map(status, ("500 Internal Server Error", "503 Service Unavailable", "429 Too Many Requests"))],
    ids=["resets", "500", "503", "429"],
)
async def test_no_response_and_no_reset_ejects_an_endpoint(tmp_path: Path, behave: Behaviour) -> None:
    async with run_gateway(tmp_path) as gateway:
        gateway.servers[0].behave = behave
        await statuses(gateway, PickMode.BUFFERED, 12)
        assert await gateway.ejected() == [False, False, False]
        assert await gateway.counter("cluster.pool.outlier_detection.ejections_enforced_total") == 0


@both
async def test_a_restart_of_the_picker_delays_requests_and_fails_none(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        assert await statuses(gateway, mode, 1) == {200: 1}
        await gateway.stop_picker()
        chats = [asyncio.create_task(statuses(gateway, mode, 1)) for _ in range(5)]
        await found(lambda: gateway.counter("cluster.pool-picker.upstream_rq_retry"), lambda retries: retries >= 5)
        assert not any(task.done() for task in chats)
        await gateway.start_picker()
        assert sum([await task for task in chats], Counter()) == {200: 5}
        assert gateway.pool.picks == 6
        await eventually(lambda: gateway.pool.in_flight == 0)


async def test_with_failure_mode_open_a_request_does_not_wait_for_the_picker(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, failure_mode=FailureMode.OPEN) as gateway:
        await gateway.stop_picker()
        assert await statuses(gateway, PickMode.BUFFERED, 3) == {200: 3}
        assert await gateway.counter("cluster.pool-picker.upstream_rq_retry") == 3
