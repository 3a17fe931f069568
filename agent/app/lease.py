"""The Lease of the replicas, as one component: its holder does what must be done once, and the others do not.

It is used where something is written: pools whose servers are pods with `kubernetes.events`, and the serving CA of the
metrics APIs. One replica uses it too,
because during a rolling restart there are two.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from random import SystemRandom

from agent.app.tasks import Task, Tasks
from agent.clock import Clock, SuspendClock, SystemClock
from agent.config.config import Config
from agent.events import Hook
from agent.events.leases import LeaseFailed
from agent.kube.cluster import Cluster, own_namespace
from agent.kube.errors import NoCluster, NotHeld
from agent.kube.lease_holder import LeaseHolder, LeaseName


class ReplicaLease:
    """A component: `held` and `send` are for those who write to objects of the cluster."""

    name = "lease"

    def __init__(self, config: Config, cluster: Cluster, clock: Clock, tasks: Tasks, hook: Hook) -> None:
        self._config = config
        self._cluster = cluster
        self._clock: Clock = SuspendClock() if isinstance(clock, SystemClock) else clock
        self._tasks = tasks
        self._hook = hook
        self._holder: LeaseHolder | None = None
        self._namespace = ""
        self._task: Task | None = None

    @property
    def namespace(self) -> str:
        """The namespace of the Lease, empty where none is used."""
        return "" if self._holder is None else self._namespace

    def held(self) -> bool:
        """Whether this replica may begin a write now; false where no Lease is used."""
        return self._holder is not None and self._holder.held()

    async def send(self, method: str, path: str, body: bytes, content_type: str = "application/json") -> bytes:
        """A write that only the holder does, and the answer. Raises NotHeld where it was not sent, and what the client
        of the API server raises."""
        if self._holder is None:
            raise NotHeld("no Lease is used")
        return await self._holder.send(method, path, body, content_type)

    async def start(self) -> None:
        """Become a candidate, where the configuration has something to write. It waits for no answer."""
        await self._follow(self._config)

    async def apply(self, config: Config) -> None:
        """Become a candidate, or none."""
        await self._follow(config)

    def readiness(self) -> list[str]:
        """Always ready: a replica that does not hold the Lease picks all the same."""
        return []

    async def stop(self, grace: float) -> None:
        """Release the Lease, so that another replica takes it at once."""
        holder, task, self._holder, self._task = self._holder, self._task, None, None
        if task is not None:
            await task.ended()
        if holder is not None:
            await holder.release()

    async def _follow(self, config: Config) -> None:
        self._config = config
        events = config.kubernetes.events and any(pool.source == "kubernetes" for pool in config.pools)
        if not (events or config.metrics_api.own_authority):
            await self.stop(0.0)
        elif self._holder is None:
            lease = config.kubernetes.lease
            namespace = await asyncio.to_thread(lease_namespace, config)
            if not namespace:
                detail = "the agent runs outside a cluster; set kubernetes.lease.namespace"
                self._hook(LeaseFailed(f"/{lease.name}", "no_namespace", detail))
                return
            self._namespace = namespace
            name = LeaseName(namespace, lease.name, math.ceil(lease.duration))
            self._holder = LeaseHolder(name, self._cluster, self._clock, self._hook, SystemRandom())
            self._task = self._tasks.run("lease", self._holder.run)


def lease_namespace(config: Config) -> str:
    """The Lease's namespace: the configured one, that of the agent's pod, that of the pools; empty where none is
    known."""
    kubernetes = config.kubernetes
    if kubernetes.lease.namespace:
        return kubernetes.lease.namespace
    if not kubernetes.kubeconfig:
        with suppress(NoCluster):
            return own_namespace()
    return kubernetes.namespace or next((pool.namespace for pool in config.pools if pool.namespace), "")
