"""A request that waits in a running agent is in /v1/flow, /v1/state and the metrics, and in the picks after it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from agent.events.flow import HeldAtZero
from tests.app.live import Live, document, running, servers
from tests.fakes.ext_proc import finish, read, request_body, send_headers
from tests.fakes.schema import check
from tests.waiting import eventually

ONE_AT_A_TIME = "flowControl: {saturationDetector: {type: concurrency, maxConcurrency: 1}}\n"


async def get(live: Live, path: str) -> Any:
    async with aiohttp.ClientSession() as http, http.get(f"http://{live.admin}{path}") as response:
        assert response.status == 200
        return await (response.json() if path.startswith("/v1") else response.text())


async def hold(live: Live, request_id: str) -> Any:
    """Send a request that has to wait; its call."""
    call = await send_headers(live.channel, request_id)
    await call.write(request_body())
    assert (await read(call)).HasField("override_message_timeout")
    return call


def one_at_a_time(path: Path, address: str) -> Path:
    """A configuration by which a server gets one request at a time."""
    path.write_text(document([address], ONE_AT_A_TIME))
    return path


@asynccontextmanager
async def a_request_that_waits(path: Path) -> AsyncIterator[tuple[Live, Any, Any]]:
    """An agent, the call of a request in flight, and that of one that waits for it to end."""
    async with servers(1) as (server,), running(one_at_a_time(path, server.address), healthy=1) as live:
        call, _ = await live.send_request("first")
        second = await hold(live, "second")
        await eventually(lambda: live.pool.flow_report(live.clock.now()).requests == 1)
        yield live, call, second


async def test_a_request_that_waits_is_seen_and_so_is_why_it_went_when_it_did(tmp_path: Path) -> None:
    async with a_request_that_waits(tmp_path / "igw.yaml") as (live, call, second):
        flow = await get(live, "/v1/flow")
        check(flow, "Flow")
        (pool,) = flow["pools"]
        assert (pool["requests"], pool["saturated"], pool["at_zero"]) == (1, True, False)
        assert [(each["priority"], each["requests"]) for each in pool["bands"]] == [(0, 1), (-1, 0)]
        (endpoint,) = pool["endpoints"]
        assert (endpoint["room"]["has_room"], endpoint["room"]["limited_by"]) == (False, "requests")
        assert (endpoint["inputs"]["own_requests"], endpoint["planned_requests"]) == (1, 1)
        assert pool["room_limits"]["max_requests"] == 1

        state = await get(live, "/v1/state")
        check(state, "State")
        published = state["pools"][0]["flow"]
        assert (published["waiting_requests"], published["saturated"]) == (1, True)
        assert [room["has_room"] for room in published["rooms"].values()] == [False]

        page = await get(live, "/metrics")
        labels = (
            '{fairness_id="default-flow",inference_pool="default",model_name="m",priority="0",target_model_name="m"}'
        )
        for name in ("llm_d_epp_flow_control_queue_size", "inference_extension_flow_control_queue_size"):
            assert f"{name}{labels} 1.0" in page
        assert 'igw_flow_held_total{pool="default",priority="0"} 1.0' in page

        await finish(call)
        assert (await read(second)).HasField("request_body")
        (pick,) = (await get(live, "/v1/picks?request_id=second"))["picks"]
        assert pick["waited_seconds"] > 0
        assert pick["dispatched"] == "planned"
        page = await get(live, "/metrics")
        assert 'igw_flow_requests_total{outcome="planned",pool="default",priority="0"} 1.0' in page
        assert 'igw_flow_held_requests{pool="default"} 0.0' in page


async def test_declared_callers_are_those_of_the_configuration_and_of_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (server,):
        path.write_text(document([server.address], "flowControl: {callers: [one]}\n"))
        async with running(path, healthy=1) as live:
            declared = live.agent.instruments._callers.declared
            assert "one" in declared
            path.write_text(document([server.address], "flowControl: {callers: [two]}\n"))
            await eventually(lambda: "two" in live.agent.instruments._callers.declared)


async def test_a_request_for_an_empty_pool_that_scales_from_zero_is_a_gauge_and_an_event(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    path.write_text(document([]).replace("extProcAddress", "scaleFromZero: true\n  extProcAddress"))
    async with running(path, healthy=0) as live:
        call = await hold(live, "first")
        await eventually(lambda: live.recorder.of(HeldAtZero))
        assert live.recorder.of(HeldAtZero) == [HeldAtZero("default", 1)]
        page = await get(live, "/metrics")
        assert 'igw_flow_held_at_zero_requests{pool="default"} 1.0' in page
        assert 'igw_flow_held_at_zero_total{pool="default"} 1.0' in page
        (pool,) = (await get(live, "/v1/flow"))["pools"]
        assert (pool["at_zero"], pool["requests"], pool["endpoints"]) == (True, 1, [])
        call.cancel()
