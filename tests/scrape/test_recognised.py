"""Endpoints of the engine `auto`, scraped from servers of several engines (simulated time)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.engine_specs import AUTO
from agent.engines import ENGINES, engine
from agent.scrape.loop import ScrapeLoop
from agent.scrape.target import Target
from agent.signals import RUNNING, WAITING
from tests.fakes.model_server import ModelServer, answer
from tests.fakes.simulated import LoopClock, raise_broken
from tests.scrape.sinks import RecordingSink
from tests.waiting import eventually

pytestmark = pytest.mark.simulated

PAGES = Path(__file__).resolve().parents[1] / "recordings" / "pages"
UNKNOWN = b"my_own_queue 1\n"


def page_of(name: str) -> bytes:
    return max((PAGES / name).glob("*.prom")).read_bytes()


async def either(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """The page at `/metrics`, an empty object everywhere else."""
    writer.write(answer(server.page if path == "/metrics" else b"{}"))


@pytest.fixture
async def loop() -> AsyncIterator[ScrapeLoop]:
    made = ScrapeLoop(LoopClock(asyncio.get_running_loop()))
    yield made
    await made.stop()
    raise_broken()


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    made = ModelServer(either)
    await made.start()
    yield made
    await made.stop()


def target(server: ModelServer) -> Target:
    return Target(server.address, AUTO, interval=0.02, models_interval=0.02)


@pytest.mark.parametrize("name", sorted(ENGINES))
async def test_an_engine_is_recognised_and_its_page_and_its_probes_are_requested(
    name: str, loop: ScrapeLoop, server: ModelServer
) -> None:
    server.page = page_of(name)
    sink = RecordingSink()
    loop.set_targets("pool", [target(server)], sink)
    await sink.until(lambda: sink.count(server.address) >= 3)
    assert sink.engines == {server.address: [name]}
    table = engine(name)
    # For this port the health path of a Triton is unknown (`test_ports.py`).
    probed = {path for path in (table.models_path, None if table.ports else table.health_path) if path}
    await eventually(lambda: probed <= set(server.paths))
    assert set(server.paths) <= {"/metrics", *probed}


async def test_scrapes_of_an_unknown_page_fail_until_there_is_a_known_one(
    loop: ScrapeLoop, server: ModelServer
) -> None:
    server.page = UNKNOWN
    sink = RecordingSink()
    loop.set_targets("pool", [target(server)], sink)
    await sink.until(lambda: bool(sink.failures))
    reason, detail = sink.failures[server.address][0]
    assert reason == "wrong_engine"
    assert "write its `engine`" in detail
    assert not sink.engines
    server.page = page_of("tgi")
    await sink.until(lambda: sink.count(server.address) >= 1)
    assert sink.engines == {server.address: ["tgi"]}


async def test_another_engine_at_the_same_address_is_recognised_too(loop: ScrapeLoop, server: ModelServer) -> None:
    server.page = page_of("tgi")
    sink = RecordingSink()
    loop.set_targets("pool", [target(server)], sink)
    await sink.until(lambda: sink.count(server.address) >= 2)
    server.page = b"sglang:num_running_reqs 3\nsglang:num_queue_reqs 1\n"
    await sink.until(lambda: sink.engines[server.address] == ["tgi", "sglang"])
    await sink.until(lambda: WAITING in sink.pages[server.address][-1][0].readings)
    assert sink.pages[server.address][-1][0].readings[RUNNING] == 3
    assert not sink.failures


async def test_the_recognised_engine_is_kept_when_settings_change(loop: ScrapeLoop, server: ModelServer) -> None:
    server.page = page_of("sglang")
    sink = RecordingSink()
    loop.set_targets("pool", [target(server)], sink)
    await sink.until(lambda: sink.count(server.address) >= 2)
    loop.set_targets("pool", [target(server)._replace(interval=0.03)], sink)
    before = sink.count(server.address)
    await sink.until(lambda: sink.count(server.address) >= before + 3)
    assert sink.engines == {server.address: ["sglang"]}
    requested = server.paths.count("/v1/models")
    await eventually(lambda: server.paths.count("/v1/models") > requested)
