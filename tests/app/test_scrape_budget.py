"""A fleet under a scrape budget, in simulated time: the requests that each server receives within minutes."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from agent.app.scrape_budget import ADJUST_SECONDS, ScrapeBudget
from agent.config import parse
from agent.config.config import Config
from agent.events import Event
from agent.events.scraping import BudgetChanged, BudgetExceeded, ScrapesPaced
from agent.scrape.loop import ScrapeLoop
from agent.scrape.target import Target
from agent.state.store import RoutingStore
from tests.fakes.model_server import answer
from tests.fakes.simulated import LoopClock, SimulatedLoop, SimulatedTransport, simulate

FLEET = 100
# The CPU seconds of a scrape in these tests.
COST = 0.001
# The longest interval with which no reading becomes stale: staleAfter less timeout, and some slack.
LATEST = 2.5 + 0.02


class Steady:
    """A server whose page changes while it is `active`; it records the times of the requests for its page."""

    def __init__(self) -> None:
        self.active = False
        self.pages: list[float] = []
        self.health: list[float] = []

    async def connected(self, loop: SimulatedLoop) -> None:
        """At once."""

    def requested(self, transport: SimulatedTransport, request: bytes) -> None:
        """A request for its page, its health path, or both; or for its models, of which there are none."""
        answers = []
        for get in request.split(b"\r\n\r\n")[:-1]:
            if get.startswith(b"GET /metrics "):
                self.pages.append(transport.loop.time())
                answers.append(self._page())
            elif get.startswith(b"GET /health "):
                self.health.append(transport.loop.time())
                answers.append(answer(b""))
            else:
                answers.append(answer(b"", "404 Not Found"))
        transport.loop.call_later(0.002, transport.deliver, b"".join(answers))

    def _page(self) -> bytes:
        running = len(self.pages) if self.active else 0
        text = f'vllm:num_requests_running{{model_name="m"}} {running}\nvllm:num_requests_waiting{{model_name="m"}} 0\n'
        return answer(text.encode())

    def disconnected(self, transport: SimulatedTransport) -> None:
        """Nothing to do."""

    def between(self, begin: float, end: float) -> int:
        """The number of requests for the page."""
        return sum(begin <= at < end for at in self.pages)


def budgeted(budget: str, stale_after: str = "3s", fleet: int = 1) -> Config:
    """A configuration with a budget; these tests pass their fleet to the loop directly."""
    endpoints = ", ".join(f"10.0.1.{place}:8000" for place in range(fleet))
    return parse(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        f"scrape: {{interval: 1s, timeout: 500ms, budget: {budget}}}\nstate: {{staleAfter: {stale_after}}}\n"
        f"pools:\n- endpoints: [{endpoints}]\n",
        "test",
    )


class World:
    """A fleet, its scrape loop and its budget. Each scrape costs COST; other work uses `other_cores` cores."""

    def __init__(self, loop: SimulatedLoop, fleet: list[Steady]) -> None:
        self.loop = loop
        self.fleet = fleet
        self.other_cores = 0.0
        self.events: list[Event] = []
        self.clock = LoopClock(loop, self._cpu)
        self.scrapes = ScrapeLoop(self.clock)
        self.store = RoutingStore("pool", stale_after=3.0)
        self.budget = ScrapeBudget(self.scrapes, self.clock, lambda now: [self.store.snapshot(now)], self.events.append)

    def _cpu(self) -> float:
        return COST * sum(len(server.pages) for server in self.fleet) + self.other_cores * self.clock.now()

    def begin(self) -> None:
        """Start to scrape all of them."""
        addresses = [f"10.0.0.{place}:8000" for place in range(len(self.fleet))]
        self.store.set_endpoints(dict.fromkeys(addresses, "vllm"), self.clock.now())
        targets = [Target(each, "vllm", timeout=0.5, models_interval=1e9) for each in addresses]
        self.scrapes.set_targets("pool", targets, self.store)

    def times(self, begin: float) -> list[float]:
        """The times of all requests for pages from `begin` on, in order."""
        return sorted(at for server in self.fleet for at in server.pages if at >= begin)

    def paced(self) -> ScrapesPaced:
        """The last report of the intervals."""
        return [event for event in self.events if isinstance(event, ScrapesPaced)][-1]


def run(budget: str, main: Callable[[World], Awaitable[None]], fleet: int = FLEET) -> None:
    """Run a test with a fleet of this size and this budget."""
    servers = [Steady() for _ in range(fleet)]

    async def inside(loop: SimulatedLoop) -> None:
        world = World(loop, servers)
        world.budget.change(budgeted(budget))
        world.begin()
        try:
            await main(world)
        finally:
            world.budget.stop()
            await world.scrapes.stop()

    simulate({(f"10.0.0.{place}", 8000): server for place, server in enumerate(servers)}, inside)


def test_the_budget_is_kept_and_no_reading_becomes_stale() -> None:
    async def main(world: World) -> None:
        for server in world.fleet[:20]:
            server.active = True
        await world.loop.after(120.0)
        times = world.times(0.0)
        for place, at in enumerate(times):
            # Scrapes that are due within 20 ms start together. A second in which many servers become idle may have some
            # more, for readings that would become stale.
            assert bisect_right(times, at + 10.0) - place <= 60 * 10.02 + 1
            assert at < 20.0 or bisect_right(times, at + 1.0) - place <= 60 * 1.02 + 1
        assert len(world.times(20.0)) >= 0.9 * 60 * 100
        for server in world.fleet:
            assert max(later - at for at, later in pairwise(server.pages)) <= LATEST
        assert not [event for event in world.events if isinstance(event, BudgetExceeded)]

    run("{scrapesPerSecond: 60}", main)


def test_an_active_endpoint_is_scraped_at_its_interval_and_idle_ones_less_often() -> None:
    async def main(world: World) -> None:
        for server in world.fleet[:10]:
            server.active = True
        await world.loop.after(100.0)
        busy = [server.between(40, 100) for server in world.fleet[:10]]
        idle = [server.between(40, 100) for server in world.fleet[10:]]
        assert min(busy) >= 50
        assert max(idle) <= 40
        assert min(idle) >= 60 / 2.5 - 1
        paced = world.paced()
        assert (paced.busy, paced.idle) == (10, 90)
        assert paced.busy_interval == 1.0
        assert 1.8 <= paced.idle_interval <= 2.25
        assert 0.8 <= paced.used["scrapes"] <= 1.0

    run("{scrapesPerSecond: 60}", main)


def test_health_is_probed_every_second_with_any_interval_of_the_page() -> None:
    async def main(world: World) -> None:
        await world.loop.after(60.0)
        for server in world.fleet:
            assert len([at for at in server.pages if at >= 30]) < 18
            requested = [at for at in server.health if at >= 10]
            assert max(later - at for at, later in pairwise(requested)) <= 1.6
            assert 45 <= len(requested) <= 56

    run("{scrapesPerSecond: 50}", main)


def test_a_picked_endpoint_is_scraped_more_often_from_the_next_adjustment_on() -> None:
    async def main(world: World) -> None:
        await world.loop.after(60.0)
        server = world.fleet[7]
        before = server.between(30, 60)
        world.store.started("10.0.0.7:8000", 100, 0, world.clock.now())
        await world.loop.after(30.0)
        assert server.between(60, 90) >= 1.4 * before
        assert world.paced().busy == 1

    run("{scrapesPerSecond: 50}", main)


def test_a_budget_that_is_large_enough_changes_nothing() -> None:
    async def main(world: World) -> None:
        await world.loop.after(60.0)
        assert {server.between(10, 60) for server in world.fleet} <= {49, 50, 51}

    run("{scrapesPerSecond: 500, cpu: 1}", main)


@pytest.mark.parametrize(("other_cores", "scrapes"), [(0.0, 60), (0.01, 50)])
def test_a_cpu_budget_is_converted_to_scrapes_and_kept(other_cores: float, scrapes: int) -> None:
    """At 1 ms per scrape, 0.06 cores are 60 scrapes per second, less the other work of the agent."""

    async def main(world: World) -> None:
        world.other_cores = other_cores
        await world.loop.after(120.0)
        assert len(world.times(60.0)) / 60 == pytest.approx(scrapes, rel=0.06)
        assert world.paced().used["cpu"] == pytest.approx(1.0, abs=0.07)
        for server in world.fleet:
            assert max(later - at for at, later in pairwise(server.pages)) <= LATEST

    run("{cpu: 0.06}", main)


@pytest.mark.parametrize(("budget", "resource"), [("{scrapesPerSecond: 20}", "scrapes"), ("{cpu: 0.02}", "cpu")])
def test_a_fleet_that_exceeds_its_budget_stays_fresh_and_is_reported_once(budget: str, resource: str) -> None:
    async def main(world: World) -> None:
        await world.loop.after(120.0)
        for server in world.fleet:
            assert max(later - at for at, later in pairwise(server.pages)) <= LATEST
        assert len(world.times(60.0)) / 60 <= 1.1 * FLEET / 2.25
        reported = [event for event in world.events if isinstance(event, BudgetExceeded)]
        assert [(event.resource, event.endpoints) for event in reported] == [(resource, FLEET)]
        needed = FLEET / 2.25 * (COST if resource == "cpu" else 1)
        assert reported[0].needed == pytest.approx(needed, rel=0.1)
        assert world.paced().used[resource] > 1

    run(budget, main)


def test_without_the_budget_all_are_scraped_at_the_configured_interval_again() -> None:
    async def main(world: World) -> None:
        await world.loop.after(30.0)
        world.budget.change(budgeted("{}"))
        world.events.clear()
        await world.loop.after(30.0)
        assert {server.between(40, 60) for server in world.fleet} <= {19, 20, 21}
        assert world.events == []

    run("{scrapesPerSecond: 50}", main)


def test_a_change_of_the_budget_invalidates_the_last_report() -> None:
    async def main(world: World) -> None:
        await world.loop.after(2 * ADJUST_SECONDS + 0.5)
        world.budget.change(budgeted("{scrapesPerSecond: 50}"))
        world.budget.change(budgeted("{scrapesPerSecond: 60}"))
        assert Counter(type(event) for event in world.events) == {ScrapesPaced: 2, BudgetChanged: 1}

    run("{scrapesPerSecond: 50}", main, fleet=10)
