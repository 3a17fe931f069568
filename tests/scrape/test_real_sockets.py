"""The scrape loop on real sockets: names, IPv6, and uvloop, on which the agent runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvloop

from agent.clock import SystemClock
from agent.signals import RUNNING
from tests.fakes.model_server import ModelServer, raw
from tests.scrape.test_loop import BAD, PAGE_IN_PIECES, LoopRig


@pytest.fixture
async def rig() -> AsyncIterator[LoopRig]:
    made = LoopRig(SystemClock())
    yield made
    await made.stop()


async def test_a_target_whose_name_cannot_be_resolved_is_unreachable(rig: LoopRig) -> None:
    rig.scrape("no-such-host.invalid:8000", timeout=15)
    await rig.sink.until(lambda: bool(rig.sink.failures))
    ((reason, _),) = rig.sink.failures["no-such-host.invalid:8000"][:1]
    assert reason in ("unreachable", "timeout")


async def test_an_ipv6_address_is_scraped_like_any_other(rig: LoopRig) -> None:
    server = ModelServer()
    await server.start(host="::1")
    rig.servers.append(server)
    address = f"[::1]:{server.port}"
    rig.scrape(address)
    await rig.sink.until(lambda: rig.sink.count(address) >= 2)
    assert rig.sink.pages[address][0][0].readings[RUNNING] == 4
    assert server.connections == 1
    assert not rig.sink.failures


def test_good_and_bad_servers_have_the_same_results_on_uvloop() -> None:
    async def main() -> None:
        made = LoopRig(SystemClock())
        try:
            bad = {case: await made.server(behave) for case, (behave, _, _) in BAD.items()}
            fine, slow = await made.server(), await made.server(raw(*(PAGE_IN_PIECES)))
            made.scrape(fine.address, slow.address, *(server.address for server in bad.values()), timeout=2)
            await made.sink.until(lambda: all(made.sink.failures.get(server.address) for server in bad.values()))
            await made.sink.until(lambda: made.sink.count(fine.address) > 2 and made.sink.count(slow.address) > 2)
            for case, server in bad.items():
                assert made.sink.failures[server.address][0][0] == BAD[case][1], case
            assert fine.address not in made.sink.failures
            assert slow.address not in made.sink.failures
        finally:
            await made.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
