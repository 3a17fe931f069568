"""A scenario: one agent and its endpoints, one of which gets a fault, over real sockets and with a simulated clock.

The agent, its scrape loop, its state and its ports are real. Its clock only advances with the scenario, so a
timeout, a back-off or the age of a reading pass at once and exactly. A scenario waits until the agent has done what is
due, never for an amount of time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import grpc.aio
import orjson

from agent.events import Event
from agent.events.accelerators import DevicesFailed, DevicesRead
from agent.events.scraping import HealthChanged, HealthPathFailed, ScrapeDone, ScrapeFailed
from agent.signals import MODELS
from tests.app.live import Live
from tests.fakes.clock import ManualClock
from tests.fakes.ext_proc import finish
from tests.fakes.model_server import PAGE as RECORDED
from tests.fakes.model_server import SwitchableServer
from tests.journeys.bad_input.fleet import Counts
from tests.spec.environment import PLAIN, STALE_AFTER, WITH_DEVICES, Environment, EnvironmentSetup
from tests.waiting import eventually

ROUND_SECONDS = 1.1  # longer than timeout, interval and maximum back-off: one round has all that is due
STEP_SECONDS = 0.02
PICKS = 12
_FILE = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
admin: {{address: '127.0.0.1:0'}}
scrape: {{interval: 50ms, timeout: {timeout}, modelsInterval: 1s}}
state: {{staleAfter: {stale_after:g}s}}
extProc: {{startTimeout: 200ms}}
flowControl: {{enabled: false}}
pools: [{pool}]
"""
START = 1_000.0
# A recorded page with a shorter queue. Its batch is full: requests would be held, and a pick would not show the fault.
PAGE = RECORDED.replace(
    b'vllm:num_requests_waiting{engine="0",model_name="tiny"} 20.0',
    b'vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0',
)
POOL = "default"


class Outputs(NamedTuple):
    """The outputs of the agent at one time; `picks` counts picks by endpoint, rejections by status."""

    state: dict[str, dict[str, Any]]  # by address
    header: dict[str, Any]
    gauges: list[dict[str, Any]]
    page: Counts
    picks: dict[str, int]

    def gauge(self, name: str, *labels: str) -> list[dict[str, Any]]:
        """The rows of a gauge that have these label values."""
        return [row for row in self.gauges if row["name"] == name and set(labels) <= set(row["labels"].values())]


@contextmanager
def no_route_to(port: int) -> Iterator[None]:
    """Connections to this port fail with EHOSTUNREACH."""
    loop: Any = asyncio.get_running_loop()
    original = loop.sock_connect

    async def connect(sock: socket.socket, address: Any) -> None:
        if address[1] == port:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        await original(sock, address)

    loop.sock_connect = connect
    try:
        yield
    finally:
        loop.sock_connect = original


class Scenario:
    """An agent and its endpoints; `bad` gets the fault, `good` must not be affected."""

    def __init__(
        self,
        live: Live,
        clock: ManualClock,
        servers: Sequence[SwitchableServer],
        session: aiohttp.ClientSession,
        environment: Environment,
    ) -> None:
        self.live = live
        self.environment = environment
        self.ending = ExitStack()  # undone at the end
        self.clock = clock
        self.servers = list(servers)
        self.bad, *self.good = servers
        self._session = session
        self._requests = 0

    # -- time --------------------------------------------------------------------------------------------------------

    async def scrape_round(self) -> None:
        """Advance by one round: returns when the good servers are scraped and the scrape of the bad one has ended."""
        before = len(self.scrapes_of_bad())
        self.clock.advance(ROUND_SECONDS)
        now = self.clock.now()
        await eventually(lambda: all(self._read_at(server) >= now for server in self.good), what="pages of the good")
        await self.advance_until(lambda: len(self.scrapes_of_bad()) > before)

    async def advance_until(self, until: Callable[[], object]) -> None:
        """Advance in small steps until the condition holds: a large step would look like a stop of the agent."""

        def advance() -> bool:
            if until():
                return True
            self.clock.advance(STEP_SECONDS)
            return False

        await eventually(advance, what="what was due")

    async def fail_scrapes(self, count: int) -> None:
        """Advance until `count` more scrapes of the bad server have failed in a row."""
        before = len(self.failed_scrapes())
        while len(self.failed_scrapes()) < before + count:
            await self.scrape_round()
        assert len(self.failed_scrapes()) == before + count

    async def models(self) -> None:
        """Advance until the model lists are known."""
        views = lambda: self.live.pool.store.snapshot(self.clock.now()).endpoints
        await self.advance_until(lambda: all(view.reading(MODELS) for view in views()))

    async def pass_stale_after(self) -> None:
        """Advance by `staleAfter`."""
        until = self.clock.now() + STALE_AFTER
        while self.clock.now() < until:
            await self.scrape_round()

    def _read_at(self, server: SwitchableServer) -> float:
        return max((event.at for event in self.events(ScrapeDone) if event.endpoint == server.address), default=-1.0)

    async def fail_health_probes(self, count: int) -> None:
        """Advance until `count` more health probes of the bad server have failed."""
        before = len(self.health_failures())
        while len(self.health_failures()) < before + count:
            wanted = len(self.health_failures()) + 1
            await self.scrape_round()
            await self.advance_until(lambda: len(self.health_failures()) >= wanted)  # noqa: B023 - awaited in this turn

    async def until(self, health: str, reason: str = "") -> None:
        """Advance until the bad server has this health and reason."""
        await self.advance_until(lambda: self.health() == (health, reason))

    # -- events ------------------------------------------------------------------------------------------------------

    def events(self, kind: type) -> list[Any]:
        return self.live.recorder.of(kind)

    def scrapes_of_bad(self) -> list[Event]:
        return [
            each for each in (*self.events(ScrapeDone), *self.events(ScrapeFailed)) if each.endpoint == self.bad.address
        ]

    def failed_scrapes(self) -> list[ScrapeFailed]:
        return [event for event in self.events(ScrapeFailed) if event.endpoint == self.bad.address]

    def exporter_failures(self) -> list[DevicesFailed]:
        return self.events(DevicesFailed)

    def health_failures(self) -> list[HealthPathFailed]:
        return [event for event in self.events(HealthPathFailed) if event.endpoint == self.bad.address]

    def health(self) -> tuple[str, str]:
        """The health and reason of the bad server."""
        views = self.live.pool.store.snapshot(self.clock.now()).endpoints
        (view,) = (view for view in views if view.address == self.bad.address)
        return view.health.value, view.reason

    def side_effects(self) -> list[Event]:
        """Events of the good servers beyond becoming healthy once."""
        good = {server.address for server in self.good}
        return [
            event
            for event in self.events(ScrapeFailed) + self.events(HealthPathFailed) + self.events(HealthChanged)
            if event.endpoint in good and (not isinstance(event, HealthChanged) or event.new != "healthy")
        ]

    # -- the outputs -------------------------------------------------------------------------------------------------

    async def read_outputs(self) -> Outputs:
        """Read every output."""
        picks = await self._picks()
        document = await self._get("/v1/state")
        gauges = (await self._get("/v1/gauges"))["gauges"]
        (pool,) = document["pools"]
        state = {endpoint["address"]: endpoint for endpoint in pool["endpoints"]}
        return Outputs(state, document, gauges, Counts(await self._get("/metrics")), picks)

    async def _get(self, path: str) -> Any:
        async with self._session.get(f"http://{self.live.admin}{path}") as answer:
            assert answer.status == 200
            return await answer.json() if answer.content_type == "application/json" else await answer.text()

    async def _picks(self) -> dict[str, int]:
        """Send PICKS requests without a common prefix, all in flight at once: the number of picks and rejections."""
        running, picks = [], dict[str, int]()
        for _ in range(PICKS):
            self._requests += 1
            prompt = f"{self._requests} is the number of this request. " * 20
            body = orjson.dumps({"model": "tiny", "messages": [{"role": "user", "content": prompt}]})
            conversation, picked = await self.live.send_request(f"request {self._requests}", body)
            running.append((conversation, picked))
            picks[picked] = picks.get(picked, 0) + 1
        for conversation, picked in running:
            if ":" in picked:
                await finish(conversation)
        return picks


@asynccontextmanager
async def run_scenario(folder: Path, endpoints: int = 2, setup: EnvironmentSetup = PLAIN) -> AsyncIterator[Scenario]:
    """An agent with `endpoints` endpoints, each scraped once and healthy."""
    clock = ManualClock(START)
    environment = Environment(folder, SwitchableServer())
    servers = [SwitchableServer() for _ in range(endpoints)]
    setup.prepare(environment, servers)
    for server in servers:
        server.page = PAGE
    for server in (*servers, environment.exporter):
        await server.start(tls=server.tls)
    file = folder / "igw.yaml"
    pool: dict[str, Any] = {"extProcAddress": "127.0.0.1:0"}
    pool["endpoints"] = [{"address": server.address} | setup.endpoint(at) for at, server in enumerate(servers)]
    pool_text = orjson.dumps(pool | setup.pool(environment)).decode()
    file.write_text(_FILE.format(stale_after=STALE_AFTER, timeout=setup.timeout, pool=pool_text), encoding="utf-8")
    live = Live(file, clock)
    ports = await live.agent.start()
    live.admin, live.picker = ports.admin, ports.pickers[POOL]
    try:
        async with grpc.aio.insecure_channel(live.picker) as channel, aiohttp.ClientSession() as session:
            live.channel = channel
            scenario = Scenario(live, clock, servers, session, environment)
            with scenario.ending:
                await scenario.scrape_round()
                assert len(live.healthy()) == endpoints
                await scenario.models()
                if setup is WITH_DEVICES:
                    await scenario.advance_until(lambda: live.recorder.of(DevicesRead))
                yield scenario
    finally:
        await live.agent.stop(grace=0)
        for server in (*servers, environment.exporter):
            await server.stop()
