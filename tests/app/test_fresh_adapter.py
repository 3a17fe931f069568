"""An adapter that was just loaded is found within a second of a request for it, whatever else is requested."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from agent.app.endpoint_files import EndpointFiles
from agent.app.pool import Pool, PoolParts
from agent.app.tasks import Tasks
from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.events import Event
from agent.kube.cluster import Cluster
from agent.requests.ticket import Request
from agent.scrape.loop import ScrapeLoop
from agent.scrape.model_refresh import SPACING_SECONDS
from tests.app.live import Live, document, running
from tests.emulator.running_emulator import run_emulator
from tests.fakes.simulated import LoopClock, SimulatedLoop, raise_broken
from tests.scrape.test_model_refresh import AdapterServer
from tests.waiting import eventually


def decided(pool: Any, model: str) -> str:
    """The endpoint that a request for this model is sent to; the request ends at once."""
    decisions: list[Any] = []
    body = orjson.dumps({"model": model, "prompt": "x"})
    ticket = pool.submit(Request("r", "/v1/completions", body), lambda _, decision: decisions.append(decision))
    ticket.end("closed")
    return str(decisions[0].endpoint)


def listed(live: Live, model: str) -> bool:
    """Whether a server lists the model, as far as the agent knows."""
    live.pool.store.snapshot(live.clock.now())
    return bool(live.pool.store.serves(model))


class AdapterPool:
    """A started pool of servers on a simulated loop, whose lists are fetched every 1,000 seconds."""

    def __init__(self, servers: list[AdapterServer], more: str = "") -> None:
        self.servers = servers
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        self.clock = loop
        listed = ", ".join(f"'{server.address}'" for server in servers)
        text = (
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
            f"pools:\n- extProcAddress: '127.0.0.1:0'\n  endpoints: [{listed}]\n{more}"
            "scrape: {modelsInterval: 1000s}\nflowControl: {enabled: false}\n"
        )
        config = parse(text, "test", VOCABULARY)
        events: list[Event] = []
        clock = LoopClock(loop)
        self.parts = PoolParts(
            clock,
            events.append,
            Tasks(clock, events.append),
            ScrapeLoop(clock),
            lambda *_: None,
            lambda: None,
            EndpointFiles(config, clock, events.append),
            Cluster("", clock),
            lambda *_: None,
        )
        self.pool = Pool(config, config.pools[0], self.parts)

    async def stop(self) -> None:
        await self.pool.stop(0.0)
        await self.parts.tasks.stop()
        await self.parts.scrape_loop.stop()
        for server in self.servers:
            await server.stop()
        raise_broken()


async def adapter_pool(more: str = "") -> AdapterPool:
    servers = [AdapterServer() for _ in range(4)]
    for server in servers:
        await server.start()
    made = AdapterPool(servers, more)
    await made.pool.start()
    return made


@pytest.mark.simulated
@pytest.mark.parametrize("junk", [False, True], ids=["alone", "beside wrong names"])
async def test_a_requested_adapter_is_found_within_a_second_at_the_server_that_loaded_it(junk: bool) -> None:
    rig = await adapter_pool()
    clock = rig.clock

    async def wrong_names() -> None:
        number = 0
        while True:
            number += 1
            decided(rig.pool, f"no-such-{number}")
            await clock.after(0.003)

    flood = asyncio.get_running_loop().create_task(wrong_names()) if junk else None
    await clock.after(20.0)
    for server in rig.servers:  # one after the other, at any time within the spacing
        await clock.after(1.234)
        name = f"adapter-at-{server.port}"
        decided(rig.pool, name)  # not loaded yet
        await clock.after(0.01)
        server.names.append(name)
        since = clock.time()
        while decided(rig.pool, name) != server.address or decided(rig.pool, name) != server.address:
            await clock.after(0.01)
        assert clock.time() - since < 1.0
    if flood is not None:
        flood.cancel()
    await rig.stop()


@pytest.mark.simulated
async def test_one_request_is_enough_even_while_a_fetch_was_just_made() -> None:
    rig = await adapter_pool()
    clock = rig.clock
    await clock.after(20.0)
    decided(rig.pool, "no-such")
    await clock.after(0.1)
    rig.servers[2].names.append("adapter")
    decided(rig.pool, "adapter")
    await clock.after(SPACING_SECONDS)
    assert {decided(rig.pool, "adapter") for _ in range(4)} == {rig.servers[2].address}
    await rig.stop()


@pytest.mark.simulated
async def test_a_flood_of_wrong_names_costs_a_server_two_fetches_a_second() -> None:
    rig = await adapter_pool()
    clock = rig.clock
    await clock.after(20.0)
    before = [len(server.fetched) for server in rig.servers]
    for number in range(5000):
        decided(rig.pool, f"no-such-{number}")
        await clock.after(0.002)
    fetched = [len(server.fetched) - count for server, count in zip(rig.servers, before, strict=True)]
    assert [15 <= count <= 10.0 / SPACING_SECONDS + 2 for count in fetched] == [True] * 4, fetched
    await rig.stop()


@pytest.mark.simulated
@pytest.mark.parametrize(("model", "more"), [("base", ""), ("declared", "  models: [declared]\n"), ("", "")])
async def test_a_known_model_and_a_request_without_one_fetch_nothing(model: str, more: str) -> None:
    rig = await adapter_pool(more)
    await rig.clock.after(20.0)
    before = [len(server.fetched) for server in rig.servers]
    request = Request("r") if not model else Request("r", "/v1/completions", orjson.dumps({"model": model}))
    for _ in range(10):
        rig.pool.submit(request, lambda _, __: None).end("closed")
        await rig.clock.after(0.5)
    assert [len(server.fetched) for server in rig.servers] == before
    await rig.stop()


async def test_an_adapter_loaded_into_an_emulated_server_is_used_from_its_first_requests_on(tmp_path: Path) -> None:
    """With an hour between two regular fetches of the lists."""
    async with run_emulator() as one, run_emulator() as other:
        addresses = [f"127.0.0.1:{emulator.port}" for emulator in (one, other)]
        path = tmp_path / "igw.yaml"
        path.write_text(document(addresses, "scrape: {modelsInterval: 1h}\nflowControl: {enabled: false}\n"))
        async with running(path, healthy=2) as live:
            for emulator, name in ((one, "first"), (other, "second")):
                async with emulator.session.post(
                    f"{emulator.url}/v1/load_lora_adapter", json={"lora_name": name, "lora_path": "/x"}
                ) as response:
                    assert response.status == 200, await response.text()
                address = f"127.0.0.1:{emulator.port}"
                decided(live.pool, name)
                await eventually(partial(listed, live, name))
                assert {decided(live.pool, name) for _ in range(6)} == {address}
