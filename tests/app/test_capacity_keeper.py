"""Learnt capacities are kept in a ConfigMap: written by the holder of the Lease, read once by every replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.app.capacity_keeper import CapacityKeeper
from agent.config import parse
from agent.events import Event
from agent.events.kubernetes import KubernetesWriteFailed, KubernetesWritten
from agent.kube.capacity_record import RecordedCapacity, read, written
from agent.kube.errors import ApiFailed, NotHeld
from tests.fakes.clock import ManualClock

CONFIG = parse("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n", "igw.yaml")
PATH = "/api/v1/namespaces/llm/configmaps"


class Objects:
    """An API server with one ConfigMap at most, the cluster that leads to it, and a Lease that is held or not."""

    def __init__(self, stored: bytes | None = None, *, held: bool = True, refuses: int = 0) -> None:
        self.stored = stored
        self.namespace = "llm"
        self.refuses = refuses
        self.methods: list[str] = []
        self._held = held

    def held(self) -> bool:
        return self._held

    async def connect(self) -> Objects:
        return self

    async def run(self, call: Callable[..., bytes], *arguments: object) -> bytes:
        return call(*arguments)

    def get(self, path: str, parameters: object) -> bytes:
        assert path == f"{PATH}/inference-gateway-agent-capacity"
        if self.refuses:
            raise ApiFailed(self.refuses, "no")
        if self.stored is None:
            raise ApiFailed(404, "not found")
        return self.stored

    async def send(self, method: str, path: str, body: bytes, content_type: str = "application/json") -> bytes:
        if not self._held:
            raise NotHeld("another one holds it")
        self.methods.append(method)
        if method == "PATCH" and self.stored is None:
            raise ApiFailed(404, "not found")
        self.stored = body
        return body


class Learnt:
    """The demand of pools, of which only capacities are used."""

    def __init__(self, **learnt: tuple[float, float]) -> None:
        self.now = learnt
        self.restored: dict[str, tuple[float, float]] = {}

    def learnt(self) -> dict[str, tuple[float, float]]:
        return self.now

    def restore(self, pool: str, requests_per_second: float, learnt_at: float) -> None:
        self.restored[pool] = (requests_per_second, learnt_at)


def keeper(objects: Any, demand: Any, events: list[Event]) -> CapacityKeeper:
    clock = ManualClock()
    return CapacityKeeper(CONFIG, demand, objects, objects, clock, None, events.append)  # type: ignore[arg-type]


async def test_a_capacity_is_written_once_and_again_after_a_change() -> None:
    objects, demand, events = Objects(), Learnt(chat=(10.0, 5.0)), []  # type: ignore[var-annotated]
    component = keeper(objects, demand, events)
    await component.step()
    await component.step()
    assert objects.methods == ["PATCH", "POST"]
    assert events == [KubernetesWritten("configmap")]
    demand.now = {"chat": (12.0, 9.0)}
    await component.step()
    assert objects.methods == ["PATCH", "POST", "PATCH"]
    assert objects.stored is not None
    assert read(objects.stored)["chat"].requests_per_second == 12.0


async def test_a_restarted_agent_continues_with_what_was_learnt() -> None:
    clock = ManualClock()
    ahead = clock.wall() - clock.now()
    objects = Objects(written("x", {"chat": RecordedCapacity(10.0, ahead - 60.0), "gone": RecordedCapacity(1.0, 0.0)}))
    demand = Learnt()
    await keeper(objects, demand, []).step()
    rate, at = demand.restored["chat"]
    assert rate == 10.0
    assert at == pytest.approx(-60.0)
    assert objects.methods == []


async def test_pools_that_are_not_here_now_stay_in_the_record() -> None:
    objects = Objects(written("x", {"other": RecordedCapacity(3.0, 0.0)}))
    await keeper(objects, Learnt(chat=(10.0, 5.0)), []).step()
    assert objects.stored is not None
    assert read(objects.stored).keys() == {"chat", "other"}


async def test_a_replica_without_the_lease_reads_and_does_not_write() -> None:
    objects, demand = Objects(written("x", {"chat": RecordedCapacity(3.0, 0.0)}), held=False), Learnt(chat=(9.0, 1.0))
    await keeper(objects, demand, []).step()
    assert demand.restored["chat"][0] == 3.0
    assert objects.methods == []


async def test_a_missing_right_is_counted_and_nothing_else_stops() -> None:
    events: list[Event] = []
    await keeper(Objects(refuses=403), Learnt(chat=(9.0, 1.0)), events).step()
    (event,) = events
    assert isinstance(event, KubernetesWriteFailed)
    assert (event.what, event.result) == ("configmap", "forbidden")
