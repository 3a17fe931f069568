"""A gateway that reads only `/v1/state/watch` makes the picker's own load-only choice."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from agent.engines.mapping import Extraction
from agent.events import Event
from agent.events.process import WatcherDropped
from agent.instruments.hook import Instruments
from agent.pick.decision import NoPick, Pick
from agent.pick.picker import pick
from agent.pick.profile import build
from agent.pick.request import PickRequest
from agent.profiles import PRESETS
from agent.serve.admin.server import AdminServer
from agent.serve.state.watch import WatchLimits
from agent.signals import KV_USAGE, LORA_MAX, LORA_RUNNING, LORA_WAITING, RUNNING, WAITING, Value
from agent.state.prefill_rate import RateLimits
from agent.state.snapshot import Snapshot
from agent.state.store import RoutingStore
from tests.fakes.clock import ManualClock
from tests.fakes.views import FixedIndex
from tests.fakes.watch_client import WatchClient

STALE_AFTER = 3.0
# Seconds between the gateway's clock and the agent's: a power of two, so that conversion does not round.
CLOCKS_APART = 4096.0
PROFILES = [build(spec) for spec in PRESETS.values()]
MODELS = ("base", "adapter-1", "adapter-2")
EIGHTH = 0.125


class RandomFleet:
    """The store and the admin address of an agent, with random changes from one seed."""

    def __init__(self, seed: int, size: int, limits: WatchLimits) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock(64.0)
        self.limits = limits
        self.addresses = [f"10.0.0.{number}:8000" for number in range(size)]
        self.events: list[Event] = []
        self.port = 0
        self.begin()

    def begin(self) -> None:
        """A new agent without the state of the previous one."""
        self.store = RoutingStore(
            "pool", stale_after=STALE_AFTER, rate=RateLimits(default=1024.0), hook=self.events.append
        )
        self.tickets: list[int] = []
        self.server = AdminServer(
            f"127.0.0.1:{self.port}",
            clock=self.clock,
            instruments=Instruments(self.clock),
            hook=self.events.append,
            limits=self.limits,
        )
        self.server.set_pools([self.store])
        self.store.set_endpoints(dict.fromkeys(self.addresses, "vllm"), self.clock.now())

    async def start(self) -> None:
        self.port = await self.server.start()

    async def restart(self) -> None:
        await self.server.stop()
        self.begin()
        await self.start()

    def page(self, address: str) -> None:
        """A scrape of the endpoint; some pages lack the queue."""
        draw = self.random
        readings: dict[str, Value] = {
            RUNNING: float(draw.randrange(8)),
            KV_USAGE: draw.randrange(9) / 8,
            LORA_RUNNING: frozenset(draw.sample(MODELS[1:], draw.randrange(3))),
            LORA_WAITING: frozenset(draw.sample(MODELS[1:], draw.randrange(2))),
            LORA_MAX: float(draw.randrange(1, 4)),
        }
        if draw.randrange(4):
            readings[WAITING] = float(draw.randrange(6))
        self.store.observed(address, Extraction(readings, (), ()), self.clock.now(), 0.0, 1000)

    def step(self) -> None:
        """A random change of a random endpoint."""
        draw, now = self.random, self.clock.now()
        address = draw.choice(self.addresses)
        match draw.randrange(8):
            case 0 | 1 | 2:
                self.page(address)
            case 3:
                self.store.failed(address, draw.choice(["refused", "timeout"]), "set by the test", now, 0.0)
            case 4 | 5:
                self.tickets.append(self.store.started(address, draw.randrange(1, 4096), draw.randrange(512), now))
            case 6 if self.tickets:
                self.store.ended(self.tickets.pop(draw.randrange(len(self.tickets))), now)
            case _:
                self.store.served_models(address, frozenset(draw.sample(MODELS, 2)), now)

    def up_to_date(self, client: WatchClient) -> bool:
        feed = self.server.state.feed
        return (client.rebuilt.epoch, client.rebuilt.version) == (feed.epoch, feed.version)

    async def agrees(self, client: WatchClient) -> None:
        """Once the client has the newest version, it chooses as the picker does."""
        self.store.snapshot(self.clock.now())
        await client.wait(lambda _: self.up_to_date(client))
        self.agrees_now(client)

    def agrees_now(self, client: WatchClient) -> None:
        """The client chooses as the picker does from the state that it has."""
        now = self.clock.now()
        ours, theirs = self.store.snapshot(now), client.rebuilt.snapshot("pool")
        assert choices(theirs, now + CLOCKS_APART) == choices(ours, now)


def choices(snapshot: Snapshot, now: float) -> list[str]:
    """The choices of each profile for some requests without a known prefix."""
    chosen = []
    for profile in PROFILES:
        for number, model in enumerate(MODELS * 3):
            request = PickRequest(f"request-{number}", model, 100 * (number + 1))
            found = pick(snapshot, request, profile, FixedIndex(), now)
            chosen.append(found.endpoint if isinstance(found, Pick) else found.reason)
            assert isinstance(found, Pick | NoPick)
    return chosen


@pytest.fixture
async def follow() -> AsyncIterator:
    fleets: list[tuple[RandomFleet, WatchClient]] = []

    async def follow(seed: int, size: int, limits: WatchLimits) -> tuple[RandomFleet, WatchClient]:
        fleet = RandomFleet(seed, size, limits)
        await fleet.start()
        client = WatchClient(f"http://127.0.0.1:{fleet.port}", lambda: fleet.clock.now() + CLOCKS_APART)
        fleets.append((fleet, client))
        return fleet, client

    yield follow
    for fleet, client in fleets:
        await client.stop()
        await fleet.server.stop()


QUICK = WatchLimits(gather_seconds=0.001)


@pytest.mark.parametrize("seed", range(4))
async def test_a_gateway_that_reads_only_the_stream_chooses_as_the_picker_does(follow, seed):
    fleet, client = await follow(seed, 5, QUICK)
    for _ in range(40):
        for _ in range(fleet.random.randrange(6)):
            fleet.step()
        fleet.clock.advance(EIGHTH * fleet.random.randrange(4))
        await fleet.agrees(client)
    assert client.connections == 1


@pytest.mark.parametrize("seed", range(4))
async def test_between_two_events_it_accounts_for_the_time_that_passes(follow, seed):
    fleet, client = await follow(seed, 5, QUICK)
    for _ in range(10):
        for _ in range(20):
            fleet.step()
        await fleet.agrees(client)
        events = len(client.rebuilt.kinds)
        for _ in range(int(STALE_AFTER / EIGHTH) + 2):
            fleet.clock.advance(EIGHTH)
            fleet.agrees_now(client)
        assert len(client.rebuilt.kinds) == events


async def test_it_recovers_from_a_restart_of_the_agent(follow):
    fleet, client = await follow(1, 5, QUICK)
    for _ in range(50):
        fleet.step()
    await fleet.agrees(client)
    first = client.rebuilt.epoch
    await fleet.restart()
    await fleet.agrees(client)
    assert client.rebuilt.epoch != first
    assert choices(client.rebuilt.snapshot("pool"), fleet.clock.now() + CLOCKS_APART) == ["none_healthy"] * 27
    for _ in range(50):
        fleet.step()
    await fleet.agrees(client)
    assert client.rebuilt.kinds.count("state") == 2


async def test_it_recovers_after_it_was_dropped_for_slow_reading(follow):
    fleet, client = await follow(2, 100, WatchLimits(gather_seconds=0.001, drain_seconds=1.0, history_events=4))
    await fleet.agrees(client)
    client.pause()
    witness = WatchClient(f"http://127.0.0.1:{fleet.port}", fleet.clock.now)
    while WatcherDropped("slow") not in fleet.events:
        for address in fleet.addresses:
            fleet.page(address)
        await witness.wait(lambda _: fleet.up_to_date(witness))
    await witness.stop()
    client.resume()
    await fleet.agrees(client)
    assert client.connections > 1
    for _ in range(50):
        fleet.step()
    await fleet.agrees(client)
