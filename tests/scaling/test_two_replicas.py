"""Two replicas of the agent before the same servers publish one demand, as far as the age of their readings allows.

Each scrapes at its own times and has its own monotonic clock. Once a second it gets what the other one reports.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.scaling.demand import Demand, DemandSettings
from agent.scaling.demand_history import ArrivalSpan, DemandHistory, LevelSample
from agent.scaling.envelope import Envelope
from agent.scaling.pool_demand import DemandInputs, PoolDemand
from agent.signals import FINISHED, KV_USAGE, RUNNING, START_TIME, WAITING
from agent.state.health import Health
from tests.fakes.views import snapshot, view

STEP = 0.25
SCRAPE, OBSERVE, EXCHANGE = 1.0, 0.5, 1.0
# A number is made from pages of the last second, at most half a second ago, and reports of the last second.
AGE = SCRAPE + OBSERVE + EXCHANGE
BATCH, PER_SECOND = 8.0, 4.0  # of a server
NAMES = ("a:1", "b:1", "c:1")
SETTINGS = DemandSettings(target=0.8, startup_seconds=60.0, drain_seconds=60.0)


class Servers:
    """Servers that share the arrivals: a fluid, as whole pages of it are what a replica reads."""

    def __init__(self) -> None:
        self.finished = dict.fromkeys(NAMES, 0.0)
        self.load = dict.fromkeys(NAMES, 0.0)  # running and waiting requests

    def pass_time(self, rate: float) -> None:
        """One step in which `rate` requests per second arrive at the pool."""
        for name in NAMES:
            self.load[name] += rate / len(NAMES) * STEP
            served = min(PER_SECOND * STEP, self.load[name] / BATCH * PER_SECOND * STEP)
            self.load[name] -= served
            self.finished[name] += served

    def page(self, name: str) -> dict[str, float]:
        running = min(BATCH, self.load[name])
        return {
            FINISHED: self.finished[name],
            RUNNING: running,
            WAITING: max(0.0, self.load[name] - running),
            KV_USAGE: running / BATCH * 0.7,
            START_TIME: 1.7e9,
        }


class Side:
    """One replica: when it scrapes and computes, in steps, and how far its clock is ahead."""

    def __init__(self, ahead: float, phase: int, wall: float) -> None:
        self.ahead, self.phase = ahead, phase
        self.demand = PoolDemand("pool", SETTINGS, None, wall - ahead)
        self.held = self.held_by_peer = 0
        self.values: list[tuple[float, float]] = []
        self._pages: dict[str, tuple[float, dict[str, float]]] = {}

    def step(self, number: int, servers: Servers) -> None:
        """What is due at this step."""
        now = number * STEP
        for place, name in enumerate(NAMES):
            if (number + self.phase + place) % int(SCRAPE / STEP) == 0:
                self._pages[name] = (now + self.ahead, servers.page(name))
        if (number + self.phase) % int(OBSERVE / STEP) == 0:
            views = [
                view(name, self._pages[name][1], at=self._pages[name][0])
                if name in self._pages
                else view(name, health=Health.UNKNOWN)
                for name in NAMES
            ]
            inputs = DemandInputs(self.held + self.held_by_peer)
            found = self.demand.observe(snapshot(*views), inputs, now + self.ahead)
            assert isinstance(found, Demand)
            self.values.append((now, found.replicas))

    def receive(self, other: Side) -> None:
        """The report of the other replica."""
        apart = self.ahead - other.ahead
        self.held_by_peer = other.held
        own = other.demand.capacity.own
        self.demand.capacity.set_peers({} if own is None else {"other": Envelope(own.value, own.at + apart)})

    def adopt(self, other: Side) -> bool:
        """The other one's history, as this one starts."""
        apart = self.ahead - other.ahead
        history = other.demand.history
        return self.demand.adopt(
            history._replace(
                arrivals=[each._replace(begin=each.begin + apart, end=each.end + apart) for each in history.arrivals],
                slots=[each._replace(at=each.at + apart) for each in history.slots],
                kv=[each._replace(at=each.at + apart) for each in history.kv],
                loading=[at + apart for at in history.loading],
            )
        )


def differ(first: Side, second: Side, since: float) -> list[tuple[float, float, float, float]]:
    """The numbers of the first that are no number of the second at a time within `AGE`, with the range of those."""
    found = []
    for at, value in first.values:
        near = [each for when, each in second.values if abs(when - at) <= AGE]
        if at < since or not any(when >= at + AGE for when, _ in second.values):
            continue
        low, high = min(near), max(near)
        if not low * 0.98 - 0.05 <= value <= high * 1.02 + 0.05:
            found.append((at, value, low, high))
    return found


PHASES = st.lists(
    st.tuples(st.floats(0, 20), st.integers(10, 60), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=4
)


@settings(max_examples=20)
@given(PHASES, st.floats(-1e5, 1e5), st.integers(0, 3), st.integers(20, 60))
def test_two_replicas_answer_with_one_number_also_after_one_has_started_again(phases, ahead, phase, restarts):
    """Of each phase: requests per second, seconds, and the requests that each of the two holds. The second replica is
    another one from `restarts` seconds on."""
    servers, wall = Servers(), 1.7e9
    first, second = Side(0.0, 0, wall), Side(ahead, phase, wall)
    number, since, adopted = 0, 5.0, True
    for rate, seconds, held, held_by_second in phases:
        first.held, second.held = held, held_by_second
        for _ in range(int(seconds / STEP)):
            number += 1
            servers.pass_time(rate)
            if number == int(restarts / STEP):
                values, second = second.values, Side(ahead / 2, phase + 1, wall)
                second.held, adopted = held_by_second, False
                second.values = [each for each in values if each[0] < restarts]
            first.step(number, servers)
            second.step(number, servers)
            if number % int(EXCHANGE / STEP) == 0:
                first.receive(second)
                second.receive(first)
            if not adopted:
                second.values = [each for each in second.values if each[0] < restarts]  # it is not ready yet
                adopted = second.adopt(first)
    assert adopted == (number >= int((restarts + 3) / STEP)) or number < int((restarts + 3) / STEP)
    assert differ(first, second, since) == []
    assert differ(second, first, since) == []


def test_a_replica_that_has_just_started_has_the_trend_and_the_batches_of_the_other_one():
    servers, first = Servers(), Side(0.0, 0, 1.7e9)
    for number in range(int(1200 / STEP)):
        servers.pass_time(max(2.0, 20.0 - abs(number * STEP - 500.0) / 50.0) if number * STEP < 1000 else 10.0)
        first.step(number, servers)
    second = Side(777.0, 1, 1.7e9)
    number = int(1200 / STEP)
    while not second.adopt(first):
        servers.pass_time(10.0)
        first.step(number, servers)
        second.step(number, servers)
        number += 1
    for _ in range(8):
        servers.pass_time(10.0)
        first.step(number, servers)
        second.step(number, servers)
        number += 1
    a, b = first.demand.latest, second.demand.latest
    assert a is not None
    assert b is not None
    assert isinstance(a.decision, Demand)
    assert isinstance(b.decision, Demand)
    assert [each.replicas for each in b.decision.needs][1:3] == pytest.approx(
        [each.replicas for each in a.decision.needs][1:3], rel=0.05
    )
    assert a.decision.use.expected is not None
    assert b.decision.use.expected is not None
    assert b.decision.use.expected.noise == pytest.approx(a.decision.use.expected.noise, rel=0.02)


def test_levels_are_adopted_at_the_first_page_of_servers_that_count_no_finished_requests():
    kept = [LevelSample(at, 0.5) for at in (1.0, 2.0)]
    demand = PoolDemand("pool", SETTINGS, None)
    assert not demand.adopt(DemandHistory(kv=kept))
    demand.observe(snapshot(view("a:1", health=Health.UNKNOWN)), DemandInputs(), 3.0)
    assert not demand.adopt(DemandHistory(kv=kept))
    demand.observe(snapshot(view("a:1", {KV_USAGE: 0.9}, at=4.0)), DemandInputs(), 4.0)
    assert demand.adopt(DemandHistory(kv=kept))
    assert demand.history.kv == tuple(kept)


def test_the_arrivals_of_a_pool_without_servers_are_adopted_once_the_own_ones_are_counted():
    kept = DemandHistory([ArrivalSpan(0.0, 60.0, 120.0, 0.0, 0.0)])
    demand = PoolDemand("pool", SETTINGS, 1.0)
    demand.observe(snapshot(), DemandInputs(unknown_peers=("replica b",)), 60.0)
    demand.observe(snapshot(), DemandInputs(), 60.5)
    assert not demand.adopt(kept)
    demand.observe(snapshot(), DemandInputs(), 61.0)
    assert demand.adopt(kept)
    found = demand.observe(snapshot(), DemandInputs(), 61.0)
    assert found.use.expected is not None
    assert found.use.expected.short == pytest.approx(2.0, rel=0.05)
