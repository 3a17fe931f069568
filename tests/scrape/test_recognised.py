"""Endpoints of which nobody said what runs there, scraped from servers of several kinds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.engine_specs import AUTO
from agent.engines import ENGINES, engine
from agent.scrape.loop import ScrapeLoop, Target
from agent.signals import RUNNING, WAITING
from tests.scrape.model_server import ModelServer, answer
from tests.scrape.test_loop import Sink
from tests.waiting import eventually

PAGES = Path(__file__).resolve().parents[1] / "recordings" / "pages"
UNKNOWN = b"my_own_queue 1\n"


def page_of(name: str) -> bytes:
    return max((PAGES / name).glob("*.prom")).read_bytes()


class Told(Sink):
    """Takes down which engine each address was said to be."""

    def __init__(self) -> None:
        super().__init__()
        self.engines: dict[str, list[str]] = {}

    def recognised(self, address: str, engine: str) -> None:
        self.engines.setdefault(address, []).append(engine)


async def either(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """The page at `/metrics`, a word everywhere else."""
    writer.write(answer(server.page if path == "/metrics" else b"{}"))


@pytest.fixture
async def loop() -> AsyncIterator[ScrapeLoop]:
    made = ScrapeLoop(SystemClock())
    yield made
    await made.stop()


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    made = ModelServer(either)
    await made.start()
    yield made
    await made.stop()


def target(server: ModelServer) -> Target:
    return Target(server.address, AUTO, interval=0.02, models_interval=0.02)


@pytest.mark.parametrize("name", sorted(ENGINES))
async def test_an_engine_is_recognised_read_and_asked_what_it_can_be_asked(
    name: str, loop: ScrapeLoop, server: ModelServer
) -> None:
    server.page = page_of(name)
    sink = Told()
    loop.set_targets("pool", [target(server)], sink)
    await sink.until(lambda: sink.count(server.address) >= 3)
    assert sink.engines == {server.address: [name]}
    table = engine(name)
    # At this port nobody knows where a Triton has its health path (`test_ports.py`).
    beside = {path for path in (table.models_path, None if table.ports else table.health_path) if path}
    await eventually(lambda: beside <= set(server.asked))
    assert set(server.asked) <= {"/metrics", *beside}


async def test_an_unknown_page_fails_until_a_known_one_comes(loop: ScrapeLoop, server: ModelServer) -> None:
    server.page = UNKNOWN
    sink = Told()
    loop.set_targets("pool", [target(server)], sink)
    await sink.until(lambda: bool(sink.failures))
    reason, detail = sink.failures[server.address][0]
    assert reason == "wrong_engine"
    assert "write its `engine`" in detail
    assert not sink.engines
    server.page = page_of("tgi")
    await sink.until(lambda: sink.count(server.address) >= 1)
    assert sink.engines == {server.address: ["tgi"]}


async def test_another_engine_at_the_same_address_is_recognised_anew(loop: ScrapeLoop, server: ModelServer) -> None:
    server.page = page_of("tgi")
    sink = Told()
    loop.set_targets("pool", [target(server)], sink)
    await sink.until(lambda: sink.count(server.address) >= 2)
    server.page = b"sglang:num_running_reqs 3\nsglang:num_queue_reqs 1\n"
    await sink.until(lambda: sink.engines[server.address] == ["tgi", "sglang"])
    await sink.until(lambda: WAITING in sink.pages[server.address][-1][0].readings)
    assert sink.pages[server.address][-1][0].readings[RUNNING] == 3
    assert not sink.failures


async def test_settings_that_change_leave_what_was_recognised(loop: ScrapeLoop, server: ModelServer) -> None:
    server.page = page_of("sglang")
    sink = Told()
    loop.set_targets("pool", [target(server)], sink)
    await sink.until(lambda: sink.count(server.address) >= 2)
    loop.set_targets("pool", [target(server)._replace(interval=0.03)], sink)
    seen = sink.count(server.address)
    await sink.until(lambda: sink.count(server.address) >= seen + 3)
    assert sink.engines == {server.address: ["sglang"]}
    asked = server.asked.count("/v1/models")
    await eventually(lambda: server.asked.count("/v1/models") > asked)
