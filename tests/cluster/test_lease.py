"""A Lease of the real API server: who holds it when a replica stops, is paused, or loses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from agent.clock import SuspendClock
from agent.events import Event
from agent.events.leases import LeaseFailed
from agent.kube.cluster import Cluster
from agent.kube.errors import NotHeld
from agent.kube.lease_holder import LeaseHolder, LeaseName
from tests.cluster.access import create_service_account, grant, kubeconfig_of
from tests.cluster.control_plane import ControlPlane
from tests.cluster.leases import NAME, RULES, create_released, lease_path
from tests.waiting import eventually

SECONDS = 3  # the shortest: 2 s for a holder to renew, renewed every 0.4 s


class LeaseReplica:
    """A candidate with a connection of its own."""

    def __init__(self, kubeconfig: str, namespace: str, number: int) -> None:
        clock = SuspendClock()
        self.events: list[Event] = []
        self.cluster = Cluster(kubeconfig, clock)
        name = LeaseName(namespace, NAME, SECONDS)
        self.holder = LeaseHolder(name, self.cluster, clock, self.events.append, Random(number))
        self.task = asyncio.get_running_loop().create_task(self.holder.run())

    async def end(self, *, release: bool = True) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        if release:
            await self.holder.release()
        self.cluster.close()


class LeaseReplicas:
    """Candidates with the rights of one ServiceAccount."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self._control_plane = control_plane
        self._namespace = namespace
        account = create_service_account(control_plane.api, namespace, "agent")
        grant(control_plane.api, account, RULES, namespace)
        self._kubeconfig = str(kubeconfig_of(control_plane, account))
        self.running: list[LeaseReplica] = []

    def start(self) -> LeaseReplica:
        one = LeaseReplica(self._kubeconfig, self._namespace, len(self.running))
        self.running.append(one)
        return one

    async def read(self) -> dict[str, Any]:
        """The spec of the Lease."""
        lease: dict[str, Any] = await asyncio.to_thread(self._control_plane.api.get, lease_path(self._namespace))
        spec: dict[str, Any] = lease["spec"]
        return spec


@pytest.fixture
async def replicas(control_plane: ControlPlane, namespace: str) -> AsyncIterator[LeaseReplicas]:
    made = LeaseReplicas(control_plane, namespace)
    yield made
    for each in made.running:
        if not each.task.done():
            await each.end()


async def test_a_replica_that_stops_hands_the_lease_over_at_once(
    control_plane: ControlPlane, namespace: str, replicas: LeaseReplicas
) -> None:
    create_released(control_plane.api, namespace)
    first = replicas.start()
    await eventually(first.holder.held)
    spec = await replicas.read()
    assert spec["holderIdentity"] == first.holder.identity
    assert spec["leaseDurationSeconds"] == SECONDS
    assert spec["leaseTransitions"] == 8
    second = replicas.start()
    await eventually(lambda: second.holder.election.holder == first.holder.identity)
    assert not second.holder.held()
    await first.end()
    await eventually(second.holder.held, within=2 * SECONDS)
    assert not first.holder.held()
    taken = await replicas.read()
    assert taken["holderIdentity"] == second.holder.identity
    assert taken["leaseTransitions"] == 9
    assert taken["acquireTime"] > spec["acquireTime"]


async def test_a_replica_that_ends_without_a_word_is_replaced_when_its_right_is_over(
    control_plane: ControlPlane, namespace: str, replicas: LeaseReplicas
) -> None:
    create_released(control_plane.api, namespace)
    first = replicas.start()
    await eventually(first.holder.held)
    second = replicas.start()
    await eventually(lambda: second.holder.election.holder == first.holder.identity)
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    with pytest.raises(NotHeld):
        await second.holder.send("POST", path, b"{}")
    await first.end(release=False)
    await eventually(second.holder.held)
    assert not first.holder.held()


async def test_a_lease_that_is_deleted_is_made_again_and_held_by_one(
    control_plane: ControlPlane, namespace: str, replicas: LeaseReplicas
) -> None:
    """Nobody takes it while the last holder may still write."""
    create_released(control_plane.api, namespace)
    first = replicas.start()
    await eventually(first.holder.held)
    second = replicas.start()
    await eventually(lambda: second.holder.election.holder == first.holder.identity)
    await asyncio.to_thread(control_plane.api.delete, lease_path(namespace))
    both = [first.holder, second.holder]
    await eventually(lambda: not first.holder.held())
    assert not second.holder.held()
    await eventually(lambda: any(holder.held() for holder in both))
    assert sum(holder.held() for holder in both) == 1
    holder = next(holder for holder in both if holder.held())
    assert (await replicas.read())["holderIdentity"] == holder.identity


async def test_a_lease_that_another_program_takes_is_lost_at_once(
    control_plane: ControlPlane, namespace: str, replicas: LeaseReplicas
) -> None:
    create_released(control_plane.api, namespace)
    first = replicas.start()
    await eventually(first.holder.held)
    patch = {"spec": {"holderIdentity": "a person"}}
    await asyncio.to_thread(control_plane.api.patch, lease_path(namespace), patch)
    await eventually(lambda: not first.holder.held())
    assert first.holder.election.holder == "a person"


async def test_without_the_role_the_remedy_is_reported(control_plane: ControlPlane, namespace: str) -> None:
    account = create_service_account(control_plane.api, namespace, "stranger")
    one = LeaseReplica(str(kubeconfig_of(control_plane, account)), namespace, 1)
    failed = await eventually(lambda: [event for event in one.events if isinstance(event, LeaseFailed)])
    await one.end()
    assert failed[0].reason == "forbidden"
    assert f"get, create and update leases in namespace {namespace}" in failed[0].detail
