"""A client's objective decides the order of service: a server with one slot, an agent, and an Envoy before it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from agent.events.requests import Picked
from agent.requests.control_headers import OBJECTIVE, TERMS
from tests.app.live import Live, running
from tests.envoy.gateway import MODES
from tests.fakes.ext_proc import CHAT
from tests.processes import Processes
from tests.waiting import eventually

NAMES = {"batch": -1, "standard": 0, "interactive": 10}
IGW = [sys.executable, "-m", "agent"]
LONG = 4_000  # tokens of an answer that a test does not wait for


class OneSlot:
    """The agent of a server that runs one request at a time, an Envoy, and its client."""

    def __init__(self, live: Live, url: str, client: aiohttp.ClientSession) -> None:
        self.live = live
        self._url = url
        self._client = client
        self.ended: list[str] = []  # objectives of the requests that were answered, in their order

    async def request(self, objective: str, tokens: int = 20) -> Any:
        """Send a request, and read its whole answer."""
        body = {"model": "emulated", "messages": [{"role": "user", "content": objective}], "max_tokens": tokens}
        body |= {"ignore_eos": True}
        headers = {OBJECTIVE: objective} if objective else {}
        async with self._client.post(self._url, json=body, headers=headers) as response:
            answer = await response.json()
            assert response.status == 200, answer
        self.ended.append(objective)
        return response.headers

    def waiting(self) -> dict[int, int]:
        """The number of waiting requests by priority."""
        report = self.live.pool.flow_report(self.live.clock.now())
        return {band.priority: band.requests for band in report.bands if band.requests}

    def _holds(self, number: int) -> bool:
        return sum(self.waiting().values()) == number

    async def served(self, objectives: Sequence[str]) -> list[str]:
        """The order in which these requests are answered that all wait, sent in this order."""
        first = asyncio.create_task(self.request("", LONG))
        await eventually(lambda: len(self.live.recorder.of(Picked)) == 1)
        tasks = []
        for number, objective in enumerate(objectives, 1):
            tasks.append(asyncio.create_task(self.request(objective)))
            await eventually(partial(self._holds, number))
        self.bands = self.waiting()
        first.cancel()  # its client leaves, and the slot is free
        headers = await asyncio.gather(*tasks)
        assert all(int(each["x-llm-d-flow-queue-duration-ms"]) > 0 for each in headers)
        return self.ended


@asynccontextmanager
async def one_slot(
    directory: Path, processes: Processes, mode: PickMode, untrusted: tuple[str, ...]
) -> AsyncIterator[OneSlot]:
    emulator = processes.start([*IGW, "emulate", "--listen", "127.0.0.1:0", "--max-num-seqs", "1"])
    address = (await asyncio.to_thread(emulator.wait_for, r"on http://(\S+): "))[1]
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "admin": {"address": "127.0.0.1:0"},
        "scrape": {"interval": "50ms"},
        "flowControl": {"trustHeaders": "all", "saturationDetector": {"slots": 1, "queued": 0}},
        "objectives": [{"name": name, "priority": priority} for name, priority in NAMES.items()],
        "pools": [{"extProcAddress": "127.0.0.1:0", "endpoints": [address]}],
    }
    file = directory / "igw.yaml"
    file.write_text(json.dumps(document))
    async with running(file, 1) as live:
        config = EnvoyConfig(
            (EnvoyPool("default", (address,), live.picker),),
            (EnvoyListener("in", "127.0.0.1:0", "default", mode),),
            untrusted_headers=untrusted,
        )
        envoy = await process.start(bootstrap(config), directory / "envoy")
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
                yield OneSlot(live, f"http://127.0.0.1:{envoy.ports['in']}{CHAT}", client)
        finally:
            await envoy.stop()


@pytest.mark.parametrize("mode", MODES)
async def test_held_requests_leave_in_the_order_of_their_priority(
    tmp_path: Path, processes: Processes, mode: PickMode
) -> None:
    async with one_slot(tmp_path, processes, mode, ()) as server:
        order = await server.served(["batch", "standard", "interactive", "batch", "interactive"])
        assert order == ["interactive", "interactive", "standard", "batch", "batch"]
        assert server.bands == {10: 2, 0: 1, -1: 2}


async def test_where_only_the_gateway_is_trusted_a_client_s_objective_changes_nothing(
    tmp_path: Path, processes: Processes
) -> None:
    async with one_slot(tmp_path, processes, PickMode.BUFFERED, TERMS) as server:
        order = await server.served(["batch", "standard", "interactive"])
        assert order == ["batch", "standard", "interactive"]
        assert server.bands == {0: 3}
