"""The demand of a pool follows its endpoints second by second."""

from __future__ import annotations

import pytest

from agent.scaling.demand import COVERAGE, Demand, DemandSettings, NoDemand
from agent.scaling.learnt_capacity import DECLARED, LEARNT
from agent.scaling.needs import BACKLOG, RATE, SLOTS
from agent.scaling.pool_demand import HISTORY_SECONDS, DemandInputs, PoolDemand
from agent.signals import FINISHED, KV_USAGE, RUNNING, SLOTS_USAGE, START_TIME, WAITING
from agent.state.health import Health
from agent.state.identity import Identity
from tests.fakes.views import snapshot, view

SETTINGS = DemandSettings(target=0.8)
STARTED = 1.7e9


class Fleet:
    """Servers whose requests are set by a test; `second` observes the pool once."""

    def __init__(self, *names: str, declared: float | None = 10.0) -> None:
        self.demand = PoolDemand("pool", SETTINGS, declared)
        self.finished = dict.fromkeys(names, 0.0)
        self.running = dict.fromkeys(names, 0.0)
        self.waiting = dict.fromkeys(names, 0.0)
        self.slots: dict[str, float] = {}
        self.started = dict.fromkeys(names, STARTED)
        self.pods: dict[str, str] = {}
        self.unseen: set[str] = set()
        self.now = 0.0
        self.inputs = DemandInputs()

    def second(self) -> Demand | NoDemand:
        """One second passes, and all servers are scraped."""
        self.now += 1.0
        views = []
        for name in self.finished:
            values = {
                FINISHED: self.finished[name],
                RUNNING: self.running[name],
                WAITING: self.waiting[name],
                KV_USAGE: 0.1,
                START_TIME: self.started[name],
            }
            if name in self.slots:
                values[SLOTS_USAGE] = self.slots[name]
            health = Health.BLIND if name in self.unseen else Health.HEALTHY
            identity = Identity(self.pods.get(name, ""), "")
            views.append(view(name, values, at=self.now, health=health, identity=identity))
        return self.demand.observe(snapshot(*views), self.inputs, self.now)

    def seconds(self, count: int, *, served: float = 0.0) -> Demand:
        """So many seconds, in each of which each server ends `served` requests."""
        for _ in range(count):
            for name in self.finished:
                self.finished[name] += served
            found = self.second()
        assert isinstance(found, Demand)
        return found


def need(found: Demand, name: str) -> float | None:
    return next(each.replicas for each in found.needs if each.name == name)


def test_requests_that_end_and_requests_that_wait_have_arrived():
    fleet = Fleet("a:1", "b:1")
    found = fleet.seconds(90, served=4.0)
    assert found.use.expected is not None
    assert found.use.expected.short == pytest.approx(8.0, rel=0.02)
    assert need(found, RATE) == pytest.approx(1.0, rel=0.02)  # 8 of 10 requests/s at a target of 0.8
    fleet.running["a:1"] += 60.0
    assert fleet.seconds(60, served=4.0).use.expected.short == pytest.approx(9.0, rel=0.03)  # type: ignore[union-attr]


def test_a_held_request_arrives_once_at_the_agent_and_not_again_at_a_server():
    fleet = Fleet("a:1")
    fleet.seconds(60)
    fleet.inputs = DemandInputs(held=60)
    fleet.seconds(1)
    fleet.inputs = DemandInputs()
    fleet.running["a:1"] = 60.0
    found = fleet.seconds(1)
    assert found.use.expected is not None
    assert found.use.expected.short == pytest.approx(1.0, rel=0.05)


def test_the_held_requests_of_a_silent_replica_are_no_arrivals_when_it_is_known_again():
    fleet = Fleet("a:1")
    fleet.seconds(60)
    fleet.inputs = DemandInputs(held=60)
    assert fleet.seconds(20).use.expected.short == pytest.approx(1.0, rel=0.05)  # type: ignore[union-attr]
    fleet.inputs = DemandInputs(held=0, unknown_peers=("replica b",))
    assert fleet.seconds(20).use.expected.short == pytest.approx(1.0, rel=0.05)  # type: ignore[union-attr]
    fleet.inputs = DemandInputs(held=60)
    assert fleet.seconds(60).use.expected.short == pytest.approx(0.0, abs=0.05)  # type: ignore[union-attr]


def test_a_restarted_server_and_a_new_one_bring_no_arrivals():
    fleet = Fleet("a:1")
    fleet.finished["a:1"] = 1e6
    fleet.seconds(30)
    fleet.finished["a:1"], fleet.started["a:1"] = 5e5, STARTED + 1
    found = fleet.seconds(30)
    assert found.use.expected is not None
    assert found.use.expected.short == 0.0


def test_arrivals_at_an_endpoint_that_was_not_seen_count_when_it_is_seen_again():
    fleet = Fleet(*(f"{name}:1" for name in "abcde"))
    fleet.seconds(120, served=2.0)
    fleet.unseen = {"a:1"}
    assert fleet.seconds(50, served=2.0).use.expected.short == pytest.approx(10.0, rel=0.03)  # type: ignore[union-attr]
    fleet.unseen = set()
    assert fleet.seconds(1, served=2.0).use.expected.short == pytest.approx(10.0, rel=0.03)  # type: ignore[union-attr]


def test_half_of_the_pool_unseen_keeps_the_current_replicas():
    fleet = Fleet("a:1", "b:1", "c:1", "d:1")
    fleet.seconds(90, served=1.0)
    fleet.unseen = {"a:1", "b:1"}
    found = fleet.seconds(1, served=1.0)
    assert (found.replicas, found.driver, found.partial) == (4.0, COVERAGE, True)


def test_the_capacity_is_learnt_only_while_a_replica_is_saturated():
    fleet = Fleet("a:1", declared=10.0)
    assert fleet.seconds(120, served=3.0).use.capacity.source == DECLARED
    fleet.waiting["a:1"] = 20.0
    found = fleet.seconds(31, served=7.0)
    assert found.use.capacity.source == LEARNT
    assert found.use.capacity.requests_per_second == pytest.approx(7.0)
    fleet.waiting["a:1"] = 0.0
    assert fleet.seconds(900, served=1.0).use.capacity.requests_per_second == pytest.approx(7.0)


def test_what_waits_at_the_servers_and_in_the_agents_is_the_backlog():
    fleet = Fleet("a:1")
    fleet.waiting["a:1"] = 2000.0
    fleet.inputs = DemandInputs(held=1000)
    found = fleet.seconds(1)
    assert need(found, BACKLOG) == pytest.approx(3000 / (10 * 300))
    fleet.inputs = DemandInputs(held=1000, loading=1)
    fleet.seconds(1)
    found = fleet.seconds(100)
    assert found.use.replicas == 2.0
    assert need(found, BACKLOG) == pytest.approx((3000 - 10 * 100) / (10 * 300))


def test_slots_are_the_mean_of_the_last_minute():
    fleet = Fleet("a:1", "b:1")
    fleet.slots = {"a:1": 0.4, "b:1": 0.8}
    assert need(fleet.seconds(60), SLOTS) == pytest.approx(1.2 / 0.8)
    fleet.slots = {"a:1": 0.8, "b:1": 0.8}
    assert need(fleet.seconds(30), SLOTS) == pytest.approx(1.4 / 0.8)


def test_the_endpoints_of_one_pod_are_one_replica():
    fleet = Fleet("a:1", "a:2", "b:1", "b:2")
    fleet.pods = {"a:1": "llm/a", "a:2": "llm/a", "b:1": "llm/b", "b:2": "llm/b"}
    fleet.slots = dict.fromkeys(fleet.finished, 0.8)
    found = fleet.seconds(60)
    assert (found.use.replicas, found.use.seen) == (2.0, 2.0)
    assert need(found, SLOTS) == pytest.approx(2.0)


def test_a_pool_whose_endpoints_were_never_known_has_no_number():
    fleet = Fleet()
    fleet.inputs = DemandInputs(known=False)
    assert isinstance(fleet.second(), NoDemand)


def test_an_empty_pool_has_a_number():
    found = Fleet().seconds(2)
    assert found.replicas == 0.0


def test_the_decisions_of_the_last_hour_are_kept_every_fifteen_seconds():
    fleet = Fleet("a:1")
    fleet.seconds(4000)
    ages = [fleet.now - each.at for each in fleet.demand.past]
    assert max(ages) <= HISTORY_SECONDS
    assert len(ages) == pytest.approx(240, abs=20)
