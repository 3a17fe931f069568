"""Requests that the picker holds, at a real Envoy: for how long it waits for them, and what the client receives."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from agent.envoy.render import PickMode, ResponseSource
from agent.serve.ext_proc.holding import ProxyTimeouts
from agent.serve.ext_proc.server import ExtProcServer
from tests.envoy.gateway import MODES, Gateway, chat, run_gateway
from tests.waiting import eventually

WAITED = "x-llm-d-flow-queue-duration-ms"
SHORT = {"message_timeout": 0.5, "max_message_timeout": 60.0}
BOTH_WAYS = {
    "request_body_mode": "FULL_DUPLEX_STREAMED",
    "request_trailer_mode": "SEND",
    "response_header_mode": "SEND",
    "response_body_mode": "FULL_DUPLEX_STREAMED",
    "response_trailer_mode": "SEND",
}
both = pytest.mark.parametrize("mode", MODES)


class Answer(NamedTuple):
    """What a client received."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])


async def send(gateway: Gateway, mode: PickMode, *, method: str = "POST", size: int = 100) -> Answer:
    # A stream has no content-length: Envoy sends it on in the chunks in which it arrives.
    body = None if method == "GET" else io.BytesIO(orjson.dumps(chat("x" * size)))
    async with gateway.client.request(method, gateway.url(mode), data=body) as response:
        return Answer(response.status, response.headers, await response.json(content_type=None))


async def hold(gateway: Gateway, mode: PickMode, *, method: str = "POST", size: int = 100) -> asyncio.Task[Answer]:
    """Send a request that is held from now on."""
    gateway.pool.holds = 30.0
    before = len(gateway.pool.held)
    answer = asyncio.create_task(send(gateway, mode, method=method, size=size))
    await eventually(lambda: len(gateway.pool.held) > before)
    return answer


async def until_the_message_timeout(gateway: Gateway) -> None:
    """Until Envoy has given up a later request, to which the picker never answers."""
    gateway.pool.holds = None
    gateway.pool.never = True
    answer = await send(gateway, PickMode.BUFFERED)
    gateway.pool.never = False
    assert (answer.status, answer.code) == (503, "picker_unavailable")


@both
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_request_is_held_for_longer_than_the_message_timeout(
    tmp_path: Path, mode: PickMode, method: str
) -> None:
    async with run_gateway(tmp_path, settings=SHORT) as gateway:
        answer = await hold(gateway, mode, method=method)
        await until_the_message_timeout(gateway)
        gateway.pool.release(1.2345)
        assert (await answer).status == 200
        assert (await answer).headers.getall(WAITED) == ["1235"]  # type: ignore[attr-defined]
        await eventually(lambda: gateway.pool.in_flight == 0)
        assert gateway.picker.buffered_bytes == 0


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ("STREAMED", {}),
        ("STREAMED", {"send_body_without_waiting_for_header_response": True}),
        ("BUFFERED_PARTIAL", {}),
        ("NONE", {}),
    ],
)
async def test_a_request_of_another_mode_is_held_as_long(tmp_path: Path, body: str, options: dict[str, bool]) -> None:
    mode = {"request_body_mode": body}
    async with run_gateway(tmp_path, settings=SHORT, processing_mode=mode, filter_options=options) as gateway:
        answer = await hold(gateway, PickMode.BUFFERED)
        await until_the_message_timeout(gateway)
        gateway.pool.release()
        assert (await answer).status == 200


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"message_timeout": 2.0, "max_message_timeout": 0.0}, PickMode.BUFFERED),
        ({"message_timeout": 1.0, "max_message_timeout": 2.0}, PickMode.BUFFERED),
        ({"stream_idle_timeout": 2.0}, PickMode.BUFFERED),
        ({"stream_idle_timeout": 2.0}, PickMode.FULL_DUPLEX),
    ],
)
async def test_a_held_request_is_rejected_before_envoy_gives_up(
    tmp_path: Path, settings: dict[str, float], mode: PickMode
) -> None:
    async with run_gateway(tmp_path, settings=settings) as gateway:
        gateway.pool.holds = 30.0
        answer = await send(gateway, mode)
        assert (answer.status, answer.code) == (429, "queue_timeout")
        assert "retry-after" in answer.headers
        assert answer.headers[WAITED] == "1000"
        assert gateway.pool.cancels == 0


async def test_a_request_whose_body_still_arrives_is_rejected_before_envoy_gives_up(tmp_path: Path) -> None:
    """Each chunk of it starts Envoy's timer again, and ends an extension."""
    settings = {"message_timeout": 2.0, "max_message_timeout": 60.0}
    without_waiting = {"send_body_without_waiting_for_header_response": True}
    mode = {"request_body_mode": "STREAMED"}
    async with run_gateway(
        tmp_path, settings=settings, processing_mode=mode, filter_options=without_waiting
    ) as gateway:
        gateway.pool.holds = 30.0
        answer = await send(gateway, PickMode.BUFFERED, size=900_000)
        assert (answer.status, answer.code) == (429, "queue_timeout")


@both
async def test_without_bytes_envoy_ends_a_request_that_the_picker_would_hold_for_longer(
    tmp_path: Path, mode: PickMode
) -> None:
    async with run_gateway(tmp_path, settings={"stream_idle_timeout": 0.5}) as gateway:
        await gateway.stop_picker()
        gateway.picker = ExtProcServer(
            gateway.pool,
            gateway.events.append,
            address=f"127.0.0.1:{gateway.picker_port}",
            timeouts=ProxyTimeouts(stream_idle=0.0),
        )
        await gateway.picker.start()
        answer = await (await hold(gateway, mode))
        assert (answer.status, answer.code) == (504, "timeout")
        await eventually(lambda: gateway.pool.cancels == 1)


@both
@pytest.mark.parametrize("responses", list(ResponseSource))
async def test_only_a_response_that_waited_has_the_time_and_has_it_once(
    tmp_path: Path, mode: PickMode, responses: ResponseSource
) -> None:
    async with run_gateway(tmp_path, responses=responses) as gateway:
        assert WAITED not in (await send(gateway, mode)).headers
        answer = await hold(gateway, mode)
        gateway.pool.release(0.0001)
        assert (await answer).headers.getall(WAITED) == ["1"]  # type: ignore[attr-defined]
        assert all(WAITED not in request.headers for request in gateway.servers[0].requests)


async def test_a_gateway_that_sends_responses_through_the_picker_gets_the_time_there(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, processing_mode=BOTH_WAYS) as gateway:
        answer = await hold(gateway, PickMode.FULL_DUPLEX)
        gateway.pool.release(2.0)
        assert (await answer).headers.getall(WAITED) == ["2000"]  # type: ignore[attr-defined]


@both
async def test_a_client_that_leaves_while_its_request_is_held_is_removed_at_once(
    tmp_path: Path, mode: PickMode
) -> None:
    async with run_gateway(tmp_path) as gateway:
        answer, other = await hold(gateway, mode), await hold(gateway, mode)
        answer.cancel()
        await eventually(lambda: gateway.pool.cancels == 1)
        assert len(gateway.pool.held) == 1
        gateway.pool.release()
        assert (await other).status == 200
        await eventually(lambda: gateway.pool.in_flight == 0)
        assert gateway.picker.buffered_bytes == 0


@both
async def test_the_bodies_of_held_requests_count_against_the_budget_wherever_they_are(
    tmp_path: Path, mode: PickMode
) -> None:
    async with run_gateway(tmp_path, max_buffered=10_000) as gateway:
        answers = [await hold(gateway, mode, size=4000) for _ in range(2)]
        assert 8000 < gateway.picker.buffered_bytes < 10_000
        rejected = await send(gateway, mode, size=4000)
        assert (rejected.status, rejected.code) == (429, "overloaded")
        gateway.pool.release()
        assert [(await answer).status for answer in answers] == [200, 200]
        await eventually(lambda: gateway.picker.buffered_bytes == 0)
        gateway.pool.holds = None
        assert (await send(gateway, mode, size=4000)).status == 200


@both
async def test_a_stop_dispatches_held_requests_while_it_waits_and_refuses_the_rest(
    tmp_path: Path, mode: PickMode
) -> None:
    async with run_gateway(tmp_path) as gateway:
        dispatched = await hold(gateway, mode)
        refused = await hold(gateway, mode)
        stopping = asyncio.create_task(gateway.picker.stop(30.0))
        await asyncio.sleep(0)
        (first, *_) = gateway.pool.held
        gateway.pool.release_one(first)
        assert (await dispatched).status == 200
        assert not stopping.done()
        stopping.cancel()  # as a second signal does
        answer = await refused
        assert (answer.status, answer.code) == (503, "shutting_down")
        assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-shutting-down"
        assert answer.headers["retry-after"] == "1"
