"""What happens to one agent and its endpoints while one of them is bad: real sockets, and a clock that a test moves.

The agent, its scrape loop, its state and its ports are the real ones. Its clock stands still until a story moves it: a
time-out, a back-off and the age of a reading pass at once and to the microsecond. What a story waits for is that the
agent has done what was due, never an amount of time.
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
from tests.app.live import Live, end
from tests.fakes.clock import ManualClock
from tests.journeys.bad_input.fleet import Counts
from tests.scrape.model_server import PAGE as RECORDED
from tests.scrape.model_server import Target
from tests.spec.scene import PLAIN, STALE_AFTER, WITH_DEVICES, Around, Scene
from tests.waiting import eventually

TURN = 1.1  # longer than the time-out, the interval and the longest back-off: whatever is due comes within one
FLOW = 0.02
PICKS = 12
_FILE = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
admin: {{address: '127.0.0.1:0'}}
scrape: {{interval: 50ms, timeout: {timeout}, modelsInterval: 1s}}
state: {{staleAfter: {stale_after:g}s}}
pools: [{pool}]
"""
START = 1_000.0
# A recorded page, but for the queue: one that stands still for long is a story of its own.
PAGE = RECORDED.replace(
    b'vllm:num_requests_waiting{engine="0",model_name="tiny"} 20.0',
    b'vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0',
)
POOL = "default"


class Seen(NamedTuple):
    """What the exits say at one moment. `picks`: how often each endpoint was picked, or the status of the refusals."""

    state: dict[str, dict[str, Any]]  # by address
    header: dict[str, Any]
    gauges: list[dict[str, Any]]
    page: Counts
    picks: dict[str, int]

    def gauge(self, name: str, *labels: str) -> list[dict[str, Any]]:
        """The rows of a gauge that have these words among their labels."""
        return [row for row in self.gauges if row["name"] == name and set(labels) <= set(row["labels"].values())]


@contextmanager
def no_way_to(port: int) -> Iterator[None]:
    """The kernel says that no way leads to this port."""
    loop: Any = asyncio.get_running_loop()
    usual = loop.sock_connect

    async def connect(sock: socket.socket, address: Any) -> None:
        if address[1] == port:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        await usual(sock, address)

    loop.sock_connect = connect
    try:
        yield
    finally:
        loop.sock_connect = usual


class Story:
    """An agent over some endpoints; `bad` is the one that things happen to, `good` those that they must not harm."""

    def __init__(
        self,
        live: Live,
        clock: ManualClock,
        servers: Sequence[Target],
        session: aiohttp.ClientSession,
        around: Around,
    ) -> None:
        self.live = live
        self.around = around
        self.ending = ExitStack()  # what has to be undone
        self.clock = clock
        self.servers = list(servers)
        self.bad, *self.good = servers
        self._session = session
        self._requests = 0

    # -- time --------------------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Time for one scrape of everybody; over when the good ones are read and the bad one's has ended."""
        before = len(self.of_bad())
        self.clock.advance(TURN)
        now = self.clock.now()
        await eventually(lambda: all(self._read_at(server) >= now for server in self.good), what="pages of the good")
        await self.flow(lambda: len(self.of_bad()) > before)

    async def flow(self, until: Callable[[], object]) -> None:
        """Time flows as it does for people, until something has come: a jump would be taken for a stop of the agent."""

        def look() -> bool:
            if until():
                return True
            self.clock.advance(FLOW)
            return False

        await eventually(look, what="what was due")

    async def failures(self, count: int) -> None:
        """So many failed scrapes of the bad one, one after another, from now on."""
        before = len(self.failed())
        while len(self.failed()) < before + count:
            await self.turn()
        assert len(self.failed()) == before + count

    async def models(self) -> None:
        """Until the lists of models are known."""
        views = lambda: self.live.pool.store.snapshot(self.clock.now()).endpoints
        await self.flow(lambda: all(view.reading(MODELS) for view in views()))

    async def grow_stale(self) -> None:
        """Time until whatever has not come again since is stale."""
        until = self.clock.now() + STALE_AFTER
        while self.clock.now() < until:
            await self.turn()

    def _read_at(self, server: Target) -> float:
        return max((event.at for event in self.of(ScrapeDone) if event.endpoint == server.address), default=-1.0)

    async def unwell(self, count: int) -> None:
        """So many bad words of the bad one's health path, one after another, from now on."""
        before = len(self.unwell_words())
        while len(self.unwell_words()) < before + count:
            wanted = len(self.unwell_words()) + 1
            await self.turn()
            await self.flow(lambda: len(self.unwell_words()) >= wanted)  # noqa: B023 - awaited in this turn

    async def until(self, health: str, reason: str = "") -> None:
        """Until this is what is thought of the bad one."""
        await self.flow(lambda: self.verdict() == (health, reason))

    # -- what happened -----------------------------------------------------------------------------------------------

    def of(self, kind: type) -> list[Any]:
        return self.live.recorder.of(kind)

    def of_bad(self) -> list[Event]:
        return [each for each in (*self.of(ScrapeDone), *self.of(ScrapeFailed)) if each.endpoint == self.bad.address]

    def failed(self) -> list[ScrapeFailed]:
        return [event for event in self.of(ScrapeFailed) if event.endpoint == self.bad.address]

    def silent(self) -> list[DevicesFailed]:
        return self.of(DevicesFailed)

    def unwell_words(self) -> list[HealthPathFailed]:
        return [event for event in self.of(HealthPathFailed) if event.endpoint == self.bad.address]

    def verdict(self) -> tuple[str, str]:
        """What is thought of the bad one, and why."""
        views = self.live.pool.store.snapshot(self.clock.now()).endpoints
        (view,) = (view for view in views if view.address == self.bad.address)
        return view.health.value, view.reason

    def harm(self) -> list[Event]:
        """Whatever befell a good one beyond becoming healthy once."""
        good = {server.address for server in self.good}
        return [
            event
            for event in self.of(ScrapeFailed) + self.of(HealthPathFailed) + self.of(HealthChanged)
            if event.endpoint in good and (not isinstance(event, HealthChanged) or event.new != "healthy")
        ]

    # -- the exits ---------------------------------------------------------------------------------------------------

    async def look(self) -> Seen:
        """Ask every exit."""
        picks = await self._picks()
        document = await self._get("/v1/state")
        gauges = (await self._get("/v1/gauges"))["gauges"]
        (pool,) = document["pools"]
        state = {endpoint["address"]: endpoint for endpoint in pool["endpoints"]}
        return Seen(state, document, gauges, Counts(await self._get("/metrics")), picks)

    async def _get(self, path: str) -> Any:
        async with self._session.get(f"http://{self.live.admin}{path}") as answer:
            assert answer.status == 200
            return await answer.json() if answer.content_type == "application/json" else await answer.text()

    async def _picks(self) -> dict[str, int]:
        """Requests that have nothing in common, all in flight at a time: who was picked, or how each was refused."""
        running, picks = [], dict[str, int]()
        for _ in range(PICKS):
            self._requests += 1
            words = f"{self._requests} is the number of this request. " * 20
            body = orjson.dumps({"model": "tiny", "messages": [{"role": "user", "content": words}]})
            conversation, picked = await self.live.converse(f"request {self._requests}", body)
            running.append((conversation, picked))
            picks[picked] = picks.get(picked, 0) + 1
        for conversation, picked in running:
            if ":" in picked:
                await end(conversation)
        return picks


@asynccontextmanager
async def a_story(folder: Path, endpoints: int = 2, scene: Scene = PLAIN) -> AsyncIterator[Story]:
    """An agent with so many endpoints, all of them read once and well."""
    clock = ManualClock(START)
    around = Around(folder, Target())
    servers = [Target() for _ in range(endpoints)]
    scene.set(around, servers)
    for server in servers:
        server.page = PAGE
    for server in (*servers, around.exporter):
        await server.start(tls=server.tls)
    file = folder / "igw.yaml"
    pool: dict[str, Any] = {"extProcAddress": "127.0.0.1:0"}
    pool["endpoints"] = [{"address": server.address} | scene.endpoint(at) for at, server in enumerate(servers)]
    told = orjson.dumps(pool | scene.pool(around)).decode()
    file.write_text(_FILE.format(stale_after=STALE_AFTER, timeout=scene.timeout, pool=told), encoding="utf-8")
    live = Live(file, clock)
    ports = await live.agent.start()
    live.admin, live.picker = ports.admin, ports.pickers[POOL]
    try:
        async with grpc.aio.insecure_channel(live.picker) as channel, aiohttp.ClientSession() as session:
            live.channel = channel
            story = Story(live, clock, servers, session, around)
            with story.ending:
                await story.turn()
                assert len(live.healthy()) == endpoints
                await story.models()
                if scene is WITH_DEVICES:
                    await story.flow(lambda: live.recorder.of(DevicesRead))
                yield story
    finally:
        await live.agent.stop(grace=0)
        for server in (*servers, around.exporter):
            await server.stop()
