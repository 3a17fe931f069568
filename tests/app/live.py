"""A running agent with fake model servers, and a proxy's channel to its picker port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from agent.app.agent import Agent
from agent.app.vocabulary import VOCABULARY
from agent.clock import Clock, SystemClock
from agent.config.file import load
from agent.events import Event
from agent.instruments.hook import Instruments
from tests.fakes.ext_proc import BODY, send_request
from tests.fakes.model_server import ModelServer, vllm_page
from tests.waiting import eventually


class Recorder(Instruments):
    """Instruments that also record all events."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        super().__call__(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def document(endpoints: Sequence[str], more: str = "") -> str:
    """A configuration of one pool on free ports, checked for changes every 100 ms; `more` is appended."""
    listed = "".join(f"\n  - '{address}'" for address in endpoints)
    return (
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        "admin: {address: '127.0.0.1:0'}\nreload: {interval: 100ms}\n"
        f"pools:\n- extProcAddress: 127.0.0.1:0\n  endpoints:{listed or ' []'}\n{more}"
    )


class Live:
    """A running agent, with the system's clock or another; `channel` is connected to its picker port."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.clock = clock = clock or SystemClock()
        self.recorder = Recorder(clock)
        self.agent = Agent(load(path, VOCABULARY), clock, path=path, instruments=self.recorder)
        self.admin = ""
        self.picker = ""
        self.pickers: dict[str, str] = {}
        self.channel: Any = None

    @property
    def pool(self) -> Any:
        return self.agent.pools["default"]

    def healthy(self) -> list[str]:
        views = self.pool.store.snapshot(self.clock.now()).endpoints
        return [view.address for view in views if view.health == "healthy"]

    def readings(self, address: str) -> dict[str, Any]:
        """The current values of an endpoint, by signal."""
        views = self.pool.store.snapshot(self.clock.now()).endpoints
        (view,) = [view for view in views if view.address == address]
        return {signal: reading.value for signal, reading in view.readings.items()}

    async def send_request(self, request_id: str = "r", body: bytes = BODY) -> tuple[Any, str]:
        """Send a request to this agent: `tests.fakes.ext_proc.send_request`."""
        return await send_request(self.channel, request_id, body)


@asynccontextmanager
async def running(path: Path, healthy: int) -> AsyncIterator[Live]:
    """The agent of a file, once `healthy` of its endpoints are healthy."""
    live = Live(path)
    ports = await live.agent.start()
    live.admin, live.picker, live.pickers = ports.admin, ports.pickers["default"], ports.pickers
    try:
        async with grpc.aio.insecure_channel(live.picker) as channel:
            live.channel = channel
            await eventually(lambda: len(live.healthy()) == healthy, what=f"{healthy} healthy endpoints")
            yield live
    finally:
        await live.agent.stop(grace=0)


@asynccontextmanager
async def servers(count: int) -> AsyncIterator[list[ModelServer]]:
    """`count` listening model servers."""
    started = [ModelServer(page=vllm_page()) for _ in range(count)]
    for server in started:
        await server.start()
    try:
        yield started
    finally:
        for server in started:
            await server.stop()
