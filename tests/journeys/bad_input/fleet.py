"""`igw run` with a real Envoy and emulated model servers, and readers of its outputs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from tests.processes import Process, Processes
from tests.waiting import found

IGW = [sys.executable, "-m", "agent"]
MODES = (PickMode.BUFFERED, PickMode.FULL_DUPLEX)
CHAT = "/v1/chat/completions"
MODEL = "emulated"
WITHIN = 20.0  # seconds; limits a failing test only


def chat(words: str = "hello", **more: Any) -> dict[str, Any]:
    """A chat request with an answer of one token."""
    return {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": words}], **more}


class Counts:
    """The samples of one response of the agent's /metrics."""

    def __init__(self, page: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]

    def of(self, name: str, **labels: str) -> float:
        """The sum over all series with these labels; 0 if there is none."""
        return sum(one.value for one in self._matching(name, labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The series with these labels by the value of another label, without those at 0."""
        return {one.labels[label]: one.value for one in self._matching(name, labels) if one.value}

    def series(self, *names: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every series of these names: name and labels -> value."""
        return {(one.name, frozenset(one.labels.items())): one.value for one in self._samples if one.name in names}

    def _matching(self, name: str, labels: Mapping[str, str]) -> list[Any]:
        return [one for one in self._samples if one.name == name and labels.items() <= one.labels.items()]


class GatewayFleet:
    """A running agent and its file, its Envoy, and the healthy emulated servers."""

    def __init__(self, agent: Process, file: Path, healthy: Sequence[str], client: aiohttp.ClientSession) -> None:
        self.agent = agent
        self.file = file
        self.healthy = healthy
        self.client = client
        self.admin = ""
        self.envoy: process.EnvoyProcess

    def port(self, pool: str, way: PickMode) -> int:
        """Envoy's port for this pool and mode."""
        return self.envoy.ports[f"{pool} {way.value}"]

    def url(self, pool: str, way: PickMode, path: str = CHAT) -> str:
        return f"http://127.0.0.1:{self.port(pool, way)}{path}"

    async def read(self, path: str) -> Any:
        """A document of the admin address: text, or decoded JSON."""
        async with self.client.get(f"{self.admin}{path}") as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json() if answer.content_type == "application/json" else await answer.text()

    async def counts(self) -> Counts:
        return Counts(await self.read("/metrics"))

    async def endpoint(self, pool: str, address: str) -> dict[str, Any]:
        """One endpoint in /v1/state."""
        pools = {each["pool"]: each["endpoints"] for each in (await self.read("/v1/state"))["pools"]}
        return next(endpoint for endpoint in pools[pool] if endpoint["address"] == address)

    async def gauges(self, pool: str, address: str) -> dict[str, dict[str, Any]]:
        """The gauges of one endpoint in /v1/gauges that have no other label, by name."""
        rows = (await self.read("/v1/gauges"))["gauges"]
        return {row["name"]: row for row in rows if row["labels"] == {"pool": pool, "server": address}}

    async def send(self, pool: str, way: PickMode, **request: Any) -> tuple[int, Any]:
        """Status and JSON of the response to one request through Envoy, `chat()` by default."""
        async with self.client.post(self.url(pool, way), **(request or {"json": chat()})) as answer:
            assert answer.content_type == "application/json", await answer.text()
            return answer.status, await answer.json()

    async def idle(self, pool: str) -> None:
        """Wait until no request is in flight."""

        async def in_flight() -> float:
            return (await self.counts()).of("igw_pool_in_flight_requests", pool=pool)

        await found(in_flight, lambda requests: requests == 0)


def document(pools: Mapping[str, Sequence[str]], engine: str = "vllm", more: str = "") -> str:
    """A configuration with these pools (name -> endpoints) of one engine, free ports, and `more` sections; only SIGHUP
    reloads it."""
    listed = "".join(
        f"- {{name: {name}, extProcAddress: '127.0.0.1:0', engine: {engine}, "
        f"endpoints: [{', '.join(map(repr, addresses))}]}}\n"
        for name, addresses in pools.items()
    )
    return (
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nadmin: {address: '127.0.0.1:0'}\n"
        f"scrape: {{interval: 100ms, timeout: 500ms}}\nstate: {{staleAfter: 2s}}\n"
        f"reload: {{interval: 1h}}\n{more}pools:\n{listed}"
    )


@contextlib.asynccontextmanager
async def a_fleet(
    directory: Path,
    servers: int,
    pools: Callable[[Sequence[str]], Mapping[str, Sequence[str]]],
    engine: str = "vllm",
    more: str = "",
    envoy: Mapping[str, Any] | None = None,
) -> AsyncIterator[GatewayFleet]:
    """Start the fleet, and stop it afterwards. `pools` makes the pools from the healthy addresses. Without emulated
    `servers` the pools have servers of the test. `more` are sections of the agent's file, `envoy` fields of
    `EnvoyConfig`."""
    started = Processes(directory)
    try:
        async with contextlib.AsyncExitStack() as stack:
            healthy: list[str] = []
            if servers:
                emulator = started.start([*IGW, "emulate", *["--listen", "127.0.0.1:0"] * servers])
                emulator.wait_for(r"(?s)" + ".*".join(["on http://"] * servers) + r".*\n")
                healthy = re.findall(r"on http://(\S+): ", emulator.output())
            path = directory / "the configuration.yaml"
            path.write_text(document(pools(healthy), engine, more))
            agent = started.start([*IGW, "run", "--config", path])
            client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WITHIN)))
            fleet = GatewayFleet(agent, path, healthy, client)
            # In a thread: the targets of a test may run on this event loop, and are scraped from now on.
            fleet.admin = (await asyncio.to_thread(agent.wait_for, r"admin: (http://\S+)"))[1]
            pickers = dict(re.findall(r"pool (\S+): ext_proc on (\S+),", agent.output()))
            settings = EnvoyConfig(
                tuple(EnvoyPool(name, tuple(listed), pickers[name]) for name, listed in pools(healthy).items()),
                tuple(
                    EnvoyListener(f"{name} {way.value}", "127.0.0.1:0", name, way) for name in pickers for way in MODES
                ),
                **(envoy or {}),
            )
            # One thread, so one connection to each picker: no request of a test waits for another connection.
            fleet.envoy = await process.start(bootstrap(settings), directory / "envoy", concurrency=1)
            stack.push_async_callback(fleet.envoy.stop)
            yield fleet
    finally:
        started.stop_all()
