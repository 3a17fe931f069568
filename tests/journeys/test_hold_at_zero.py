"""A pool that scales from zero holds its requests until its first server is there, behind a real Envoy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from agent.events.flow import HeldAtZero
from agent.requests.control_headers import OBJECTIVE
from tests.app.live import Live, running
from tests.journeys.bad_input.fleet import CHAT, IGW, MODES, chat
from tests.processes import Processes
from tests.waiting import eventually

PRIORITIES = {"batch": -1, "standard": 0, "interactive": 10}


class EmptyPool:
    """The agent of a pool without servers, and an Envoy that knows the one that will come."""

    def __init__(self, live: Live, url: str, file: Path, server: str, client: aiohttp.ClientSession) -> None:
        self.live = live
        self._url = url
        self._file = file
        self._server = server
        self._client = client
        self.answered: list[str] = []

    async def request(self, objective: str) -> tuple[int, Any, Any]:
        async with self._client.post(self._url, json=chat(objective), headers={OBJECTIVE: objective}) as response:
            body = await response.json()
        self.answered.append(objective)
        return response.status, response.headers, body

    def _holds(self, number: int) -> bool:
        return bool(self.live.pool.flow_report(self.live.clock.now()).requests == number)

    async def held(self, number: int) -> None:
        await eventually(partial(self._holds, number))

    async def gauge(self, name: str) -> list[float]:
        async with self._client.get(f"http://{self.live.admin}/v1/gauges") as response:
            document = await response.json()
        return [each["value"] for each in document["gauges"] if each["name"] == name]

    def add_server(self) -> None:
        document = json.loads(self._file.read_text())
        document["pools"][0]["endpoints"] = [self._server]
        self._file.write_text(json.dumps(document))


@asynccontextmanager
async def empty_pool(
    directory: Path, processes: Processes, mode: PickMode, *, ttl: str = "60s"
) -> AsyncIterator[EmptyPool]:
    emulator = processes.start([*IGW, "emulate", "--listen", "127.0.0.1:0", "--max-num-seqs", "1"])
    server = (await asyncio.to_thread(emulator.wait_for, r"on http://(\S+): "))[1]
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "admin": {"address": "127.0.0.1:0"},
        "reload": {"interval": "100ms"},
        "scrape": {"interval": "50ms"},
        "flowControl": {
            "trustHeaders": "all",
            "noEndpointRequestTTL": ttl,
            "saturationDetector": {"slots": 1, "queued": 0},
        },
        "objectives": [{"name": name, "priority": priority} for name, priority in PRIORITIES.items()],
        "pools": [{"extProcAddress": "127.0.0.1:0", "endpoints": [], "scaleFromZero": True}],
    }
    file = directory / "igw.yaml"
    file.write_text(json.dumps(document))
    async with running(file, 0) as live:
        config = EnvoyConfig(
            (EnvoyPool("default", (server,), live.picker),),
            (EnvoyListener("in", "127.0.0.1:0", "default", mode),),
            untrusted_headers=(),
        )
        envoy = await process.start(bootstrap(config), directory / "envoy")
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
                url = f"http://127.0.0.1:{envoy.ports['in']}{CHAT}"
                yield EmptyPool(live, url, file, server, client)
        finally:
            await envoy.stop()


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
async def test_requests_wait_for_the_first_server_and_leave_in_the_order_of_their_priority(
    tmp_path: Path, processes: Processes, mode: PickMode
) -> None:
    async with empty_pool(tmp_path, processes, mode) as pool:
        assert await pool.gauge("igw_flow_held_at_zero_requests") == [0]
        tasks = []
        for number, objective in enumerate(PRIORITIES, 1):
            tasks.append(asyncio.create_task(pool.request(objective)))
            await pool.held(number)
            # The event comes with the first of them, and only then; the gauge counts all.
            assert [event.requests for event in pool.live.recorder.of(HeldAtZero)] == [1]
            assert await pool.gauge("igw_flow_held_at_zero_requests") == [number]
        pool.add_server()
        responses = await asyncio.gather(*tasks)
        assert [status for status, _, _ in responses] == [200, 200, 200]
        assert pool.answered == ["interactive", "standard", "batch"]
        assert all(int(headers["x-llm-d-flow-queue-duration-ms"]) > 0 for _, headers, _ in responses)
        assert await pool.gauge("igw_flow_held_at_zero_requests") == [0]


async def test_a_pool_that_stays_empty_refuses_at_the_end_of_the_ttl_with_a_time_to_come_back(
    tmp_path: Path, processes: Processes
) -> None:
    async with empty_pool(tmp_path, processes, PickMode.BUFFERED, ttl="300ms") as pool:
        status, headers, body = await pool.request("standard")
        assert (status, body["error"]["code"]) == (503, "no_endpoint")
        assert headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
        assert headers["x-gateway-request-dropped-reason"] == "rejected-no-endpoints"
        assert 1 <= int(headers["retry-after"]) <= 120
        assert int(headers["x-llm-d-flow-queue-duration-ms"]) >= 300
