"""Lists of models are fetched again for a model that none has: at once, and never often."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scrape.loop import ScrapeLoop
from agent.scrape.model_refresh import MAX_PER_SECOND, SPACING_SECONDS, ModelRefresh
from agent.scrape.target import Target
from tests.fakes.model_server import ModelServer, answer
from tests.fakes.simulated import LoopClock, SimulatedLoop, raise_broken
from tests.scrape.sinks import RecordingSink


def test_the_first_request_fetches_at_once_and_the_next_one_after_the_spacing() -> None:
    refresh = ModelRefresh()
    assert refresh.due(10.0, 3) == 10.0
    assert refresh.due(10.1, 3) == 10.0 + SPACING_SECONDS
    assert refresh.due(10.2, 3) is None
    assert refresh.due(60.0, 3) == 60.0


@given(gaps=st.lists(st.floats(0, 3), max_size=60), endpoints=st.integers(1, 10_000))
def test_every_request_is_followed_by_a_fetch_soon_and_fetches_stay_within_their_rate(
    gaps: list[float], endpoints: int
) -> None:
    refresh, now = ModelRefresh(), 0.0
    spacing = max(SPACING_SECONDS, endpoints / MAX_PER_SECOND)
    fetches: list[float] = []
    for gap in gaps:
        now += gap
        at = refresh.due(now, endpoints)
        if at is not None:
            fetches.append(at)
        assert now <= fetches[-1] <= now + spacing + 1e-9
    assert all(later - earlier >= spacing - 1e-9 for earlier, later in itertools.pairwise(fetches))


class AdapterServer(ModelServer):
    """A server whose list of models the test changes; it records when it was fetched."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.names = ["base"]
        self.fetched: list[float] = []

    async def _answer(self, server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if path != "/v1/models":
            writer.write(answer(self.page if path == "/metrics" else b""))
            return
        self.fetched.append(asyncio.get_running_loop().time())
        listed = ",".join(f'{{"id":"{name}"}}' for name in self.names)
        writer.write(answer(f'{{"data":[{listed}]}}'.encode()))


@pytest.fixture
async def scraped() -> AsyncIterator[tuple[ScrapeLoop, list[AdapterServer], RecordingSink]]:
    loop = ScrapeLoop(LoopClock(asyncio.get_running_loop()))
    servers = [AdapterServer() for _ in range(3)]
    sink = RecordingSink()
    for server in servers:
        await server.start()
    loop.set_targets("pool", [Target(server.address, "vllm", models_interval=1000.0) for server in servers], sink)
    await sink.until(lambda: len(sink.models) == 3)
    yield loop, servers, sink
    await loop.stop()
    for server in servers:
        await server.stop()
    raise_broken()


def simulated_loop() -> SimulatedLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    return loop


@pytest.mark.simulated
async def test_a_refresh_fetches_every_list_of_the_pool_within_milliseconds(
    scraped: tuple[ScrapeLoop, list[AdapterServer], RecordingSink],
) -> None:
    loop, servers, sink = scraped
    clock = simulated_loop()
    await clock.after(5.0)
    servers[1].names.append("adapter")
    before = clock.time()
    loop.refresh_models("pool", before)
    await sink.until(lambda: "adapter" in sink.models[servers[1].address])
    assert clock.time() - before < 0.01
    await clock.after(0.01)
    assert [len(server.fetched) for server in servers] == [2, 2, 2]


@pytest.mark.simulated
async def test_a_refresh_does_not_reach_other_pools_and_a_later_one_follows_without_delaying_it(
    scraped: tuple[ScrapeLoop, list[AdapterServer], RecordingSink],
) -> None:
    loop, servers, _ = scraped
    clock = simulated_loop()
    await clock.after(5.0)
    loop.refresh_models("other", clock.time())
    loop.refresh_models("pool", clock.time() + 0.3)
    loop.refresh_models("pool", clock.time() + 0.6)
    await clock.after(0.2)
    assert [len(server.fetched) for server in servers] == [1, 1, 1]
    await clock.after(0.2)
    assert [len(server.fetched) for server in servers] == [2, 2, 2]
    await clock.after(100.0)
    assert [len(server.fetched) for server in servers] == [3, 3, 3]


@pytest.mark.simulated
async def test_a_server_that_is_down_is_not_sent_a_refresh(
    scraped: tuple[ScrapeLoop, list[AdapterServer], RecordingSink],
) -> None:
    loop, servers, sink = scraped
    clock = simulated_loop()
    await servers[0].stop()
    await sink.until(lambda: bool(sink.failures.get(servers[0].address)))
    loop.refresh_models("pool", clock.time())
    await clock.after(0.5)
    assert [len(server.fetched) for server in servers] == [1, 2, 2]
