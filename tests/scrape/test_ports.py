"""The ports of the page and the health path, where these are not the port in the address."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from agent.clock import Clock
from agent.engines import engine
from agent.engines.table import Engine, EnginePorts
from agent.scrape.loop import ScrapeLoop
from agent.scrape.target import Target
from agent.state.store import RoutingStore
from tests.fakes.model_server import ModelServer, answer, raw
from tests.fakes.simulated import LoopClock, raise_broken
from tests.waiting import eventually

PAGE = (
    Path(__file__).resolve().parents[1] / "recordings" / "pages" / "triton" / "written_two_models.prom"
).read_bytes()
TRITON = ("triton", "triton-tensorrt-llm")


@pytest.mark.parametrize("name", TRITON)
@pytest.mark.parametrize(
    ("address", "settings", "page", "health"),
    [
        ("10.0.0.1:8000", {}, "10.0.0.1:8002", "10.0.0.1:8000"),
        ("10.0.0.1:8001", {}, "10.0.0.1:8002", "10.0.0.1:8000"),
        ("10.0.0.1:8002", {}, "10.0.0.1:8002", "10.0.0.1:8000"),
        ("[fd00::1]:8000", {}, "[fd00::1]:8002", "[fd00::1]:8000"),
        # The kind of another port is unknown.
        ("10.0.0.1:9000", {}, "10.0.0.1:9000", ""),
        ("10.0.0.1:9000", {"health_path": "/v2/health/live"}, "10.0.0.1:9000", "10.0.0.1:9000"),
        ("10.0.0.1:9000", {"health_port": 9001}, "10.0.0.1:9000", "10.0.0.1:9001"),
        # With metricsPort the address has the port of requests.
        ("10.0.0.1:9000", {"metrics_port": 9002}, "10.0.0.1:9002", "10.0.0.1:9000"),
        ("10.0.0.1:8000", {"metrics_port": 9002}, "10.0.0.1:9002", "10.0.0.1:8000"),
        ("10.0.0.1:8000", {"metrics_port": 8000}, "10.0.0.1:8000", "10.0.0.1:8000"),
        ("10.0.0.1:8000", {"health_port": 9001}, "10.0.0.1:8002", "10.0.0.1:9001"),
        ("10.0.0.1:8000", {"health_path": ""}, "10.0.0.1:8002", ""),
    ],
)
def test_triton_has_its_default_ports_unless_the_configuration_overrides_them(
    name: str, address: str, settings: dict[str, Any], page: str, health: str
) -> None:
    target = Target(address, name, **settings)
    assert (target.page_address(), target.health_address(target.engine_table())) == (page, health)


@pytest.mark.parametrize("name", ["vllm", "jetstream", "auto", ""])
def test_other_engines_have_page_and_health_at_the_address(name: str) -> None:
    target = Target("10.0.0.1:8000", name)
    assert target.page_address() == "10.0.0.1:8000"
    assert target.health_address(target.engine_table()) == ("10.0.0.1:8000" if name == "vllm" else "")


def test_the_health_of_a_recognised_triton_is_probed_if_its_port_is_known() -> None:
    for address, health in (("10.0.0.1:8002", "10.0.0.1:8000"), ("10.0.0.1:9002", "")):
        target = Target(address, "auto")
        assert (target.page_address(), target.health_address(engine("triton"))) == (address, health)


class PortsRig:
    """A server with its page at one port and its health at another, and a scrape loop."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.loop = ScrapeLoop(clock)
        self.store = RoutingStore("pool", stale_after=60)
        self.page = ModelServer(raw(answer(PAGE)))
        self.front = ModelServer(raw(answer(b"")))

    async def start(self) -> Engine:
        for server in (self.page, self.front):
            await server.start()
        ports = EnginePorts(serving=(self.front.port,), page=self.page.port, health=self.front.port)
        return dataclasses.replace(engine("triton"), ports=ports)

    def scrape(self, address: str, table: Engine) -> None:
        self.store.set_endpoints({address: "triton"}, 0.0)
        target = Target(address, "triton", interval=0.05, health_interval=0.05, table=table)
        self.loop.set_targets("pool", [target], self.store)

    def verdict(self) -> tuple[str, str]:
        (view,) = self.store.snapshot(self.clock.now()).endpoints
        return view.health.value, view.reason

    async def close(self) -> None:
        await self.loop.stop()
        for server in (self.page, self.front):
            await server.stop()


@pytest.mark.simulated
@pytest.mark.parametrize("listed", ["front", "page"])
async def test_a_server_is_healthy_by_its_page_at_one_port_and_its_health_at_another(listed: str) -> None:
    rig = PortsRig(LoopClock(asyncio.get_running_loop()))
    try:
        table = await rig.start()
        address = getattr(rig, listed).address
        rig.scrape(address, table)
        await eventually(lambda: rig.verdict() == ("healthy", "") and len(rig.front.paths) > 2)
        assert set(rig.page.paths) == {"/metrics"}
        assert set(rig.front.paths) == {"/v2/health/ready"}
        assert f"Host: {rig.front.address}\r\n" in rig.front.requests[-1].head
        rig.front.behave = raw(answer(b"", "400 Bad Request"))
        await eventually(lambda: rig.verdict() == ("down", "health_status"))
        await rig.front.stop()
        await eventually(lambda: rig.verdict() == ("down", "health_refused"))
        await rig.page.stop()
        rig.front.behave = raw(answer(b""))
        await rig.front.start()
        await eventually(lambda: rig.verdict() == ("blind", "page_refused"))
    finally:
        await rig.close()
        raise_broken()
