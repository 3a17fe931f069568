"""Keeps the learnt capacities of the pools in a ConfigMap beside the Lease. Its holder writes, every replica
reads once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from agent.app.demand import DemandObserver
from agent.app.lease import ReplicaLease
from agent.app.tasks import Task, Tasks
from agent.clock import Clock
from agent.config.config import Config
from agent.events import Hook
from agent.events.kubernetes import KubernetesWriteFailed, KubernetesWritten
from agent.kube.capacity_record import PATCH_TYPE, PATH, RecordedCapacity, read, worth_writing, written
from agent.kube.cluster import Cluster
from agent.kube.errors import ApiFailed, NoCluster, NotHeld, Unreachable

INTERVAL_SECONDS: Final = 60.0
WHAT: Final = "configmap"
_RULE: Final = "the agent needs the verbs get, patch and create on configmaps there"


class CapacityKeeper:
    """A component. Where no Lease is used, nothing is kept."""

    name = "capacity"

    def __init__(
        self,
        config: Config,
        demand: DemandObserver,
        lease: ReplicaLease,
        cluster: Cluster,
        clock: Clock,
        tasks: Tasks,
        hook: Hook,
    ) -> None:
        self._object = f"{config.kubernetes.lease.name}-capacity"
        self._demand = demand
        self._lease = lease
        self._cluster = cluster
        self._clock = clock
        self._tasks = tasks
        self._hook = hook
        self._recorded: Mapping[str, RecordedCapacity] | None = None  # None: not read yet
        self._task: Task | None = None

    async def start(self) -> None:
        """Begin to read and write."""
        self._task = self._tasks.run("capacity", self._follow)

    async def apply(self, config: Config) -> None:
        """Nothing: the names need a restart."""

    def readiness(self) -> list[str]:
        """Always ready."""
        return []

    async def stop(self, grace: float) -> None:
        """Write no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _follow(self) -> None:
        while True:
            if self._lease.namespace:
                await self.step()
            await asyncio.sleep(INTERVAL_SECONDS)

    async def step(self) -> None:
        """Read once; then write where this replica holds the Lease and something has changed."""
        path = PATH.format(namespace=self._lease.namespace)
        try:
            if self._recorded is None:
                self._recorded = await self._read(f"{path}/{self._object}")
                ahead = self._clock.wall() - self._clock.now()
                for pool, each in self._recorded.items():
                    self._demand.restore(pool, each.requests_per_second, each.learnt_at - ahead)
            if self._lease.held():
                await self._write(path)
        except (NotHeld, NoCluster):  # the Lease was lost meanwhile; discovery reports a missing cluster
            return
        except (ApiFailed, Unreachable) as error:
            result = "failed"
            if isinstance(error, ApiFailed) and 400 <= error.status < 500:
                result = "forbidden" if error.status == 403 else "refused"
            detail = f"{error}; {_RULE}" if result == "forbidden" else str(error)
            self._hook(KubernetesWriteFailed(WHAT, result, f"ConfigMap {self._lease.namespace}/{self._object}", detail))

    async def _read(self, path: str) -> Mapping[str, RecordedCapacity]:
        client = await self._cluster.connect()
        try:
            return read(await self._cluster.run(client.get, path, {}))
        except ApiFailed as error:
            if error.status == 404:
                return {}
            raise

    async def _write(self, path: str) -> None:
        ahead = self._clock.wall() - self._clock.now()
        learnt = {pool: RecordedCapacity(rate, at + ahead) for pool, (rate, at) in self._demand.learnt().items()}
        recorded = self._recorded or {}
        if not worth_writing(recorded, learnt):
            return
        kept = {**recorded, **learnt}
        body = written(self._object, kept)
        try:
            await self._lease.send("PATCH", f"{path}/{self._object}", body, PATCH_TYPE)
        except ApiFailed as error:
            if error.status != 404:
                raise
            await self._lease.send("POST", path, body)
        self._recorded = kept
        self._hook(KubernetesWritten(WHAT))
