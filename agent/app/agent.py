"""The whole agent: its components in their order, and the changes that reach all of them.

Everything runs on one event loop. A new server or a new source of data is a component: one file, and one line in the
list below. A new periodic job is one line in the list of jobs.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from agent.app.accelerators import AcceleratorScraping
from agent.app.admin import AdminPort
from agent.app.admin_access import AdminAccess
from agent.app.autoscalers import Autoscalers
from agent.app.capacity_keeper import CapacityKeeper
from agent.app.certificates import Certificates
from agent.app.cluster_objects import ClusterObjects
from agent.app.demand import DemandObserver, PeerDemand
from agent.app.endpoint_files import EndpointFiles
from agent.app.exporting import Exporting
from agent.app.jobs import Job, Jobs
from agent.app.keda import KedaScaler, PoolActivities
from agent.app.lease import ReplicaLease
from agent.app.metrics_api import MetricsApi
from agent.app.pool import Pool, PoolParts
from agent.app.pools import Pools
from agent.app.reload import Reload
from agent.app.replicas import Replicas
from agent.app.scraping import Scraping
from agent.app.supervisor import Supervisor
from agent.app.tasks import Tasks
from agent.clock import Clock
from agent.config.config import Config
from agent.config.difference import differences
from agent.events import Event
from agent.instruments.hook import Instruments
from agent.kube.cluster import Cluster
from agent.kube.recorder import EventRecorder
from agent.scaling.served_metrics import ServedValue, WithheldMetric
from agent.serve.admin.server import AdminServer
from agent.serve.state.watch import WatchLimits
from agent.state.snapshot import Snapshot


class ListenAddresses(NamedTuple):
    """Where a running agent listens: the admin address, the picker address of each pool, and that of the metrics APIs,
    empty where they are not served."""

    admin: str
    pickers: dict[str, str]
    metrics_api: str = ""


class Agent:
    """One agent for one configuration. `path` is the file that it came from and is read again from, if any."""

    def __init__(
        self, config: Config, clock: Clock, *, path: Path | None = None, instruments: Instruments | None = None
    ) -> None:
        self.config = config
        self.instruments = hook = instruments or Instruments(clock)
        tasks = Tasks(clock, hook)
        self._reload = Reload(path, self.change, hook)
        self.cluster = Cluster(config.kubernetes.kubeconfig, clock)
        access = AdminAccess(config, self.cluster, clock, hook)
        self._certificates = certificates = Certificates(config, clock, hook)
        self._admin_server = AdminServer(
            config.admin.address,
            clock=clock,
            instruments=hook,
            limits=WatchLimits(watchers=config.admin.max_watchers, message_bytes=config.admin.max_state_bytes),
            not_ready=self.readiness,
            authorize=access.authorize,
            tls=certificates.admin,
        )
        scraping = Scraping(config, clock, self._snapshots, hook)
        self._replicas = Replicas(config, clock, tasks, hook)
        self.lease = ReplicaLease(config, self.cluster, clock, tasks, hook)
        self.recorder = EventRecorder(self.lease.send, self.lease.held, clock, hook, socket.gethostname())
        self._objects = ClusterObjects(config, self.cluster, tasks, hook, self.recorder, self._pool_map)
        accelerators = self._accelerators = AcceleratorScraping(
            config, scraping.loop, clock, tasks, hook, self._pool_map, self.cluster, self._objects.exporters_changed
        )
        files = EndpointFiles(config, clock, hook)
        parts = PoolParts(
            clock,
            self._pool_event if config.keda.enabled else hook,
            tasks,
            scraping.loop,
            self._admin_server.picks.add,
            self._endpoints_changed,
            files,
            self.cluster,
            self._objects.source_changed,
            certificates.pickers,
            self._replicas.sharing,
        )
        self._pools = Pools(config, parts, self._publish_pools)
        of_peers = PeerDemand(
            self._replicas.waiting, self._replicas.capacities, self._replicas.take_histories, self._replicas.unknown
        )
        self.demand = demand = DemandObserver(config, clock, tasks, self._pool_map, of_peers)
        self._replicas.report_demand(demand.own_capacity, demand.history)
        self._admin_server.state.demands = demand.reports
        autoscalers = Autoscalers(config, self.cluster, tasks, hook, self.recorder, self._pool_map)
        self._admin_server.state.scalers = autoscalers.reports
        self._replicas.on_share = self._set_share
        hook.set_names(self._pools)
        hook.declare_callers(config.flow_control.callers)
        self._admin = AdminPort(config, self._admin_server, access, certificates.admin)
        self._admin_server.state.exporters = accelerators.exporters
        self._admin_server.state.set_flows(self._pools.flow_reports)
        self._admin_server.state.set_replicas(self._replicas.view)
        self.metrics_api = MetricsApi(
            config, self._pool_map, self.cluster, clock, tasks, hook, certificates.metrics_api, self.lease
        )
        self.metrics_api.demand = demand.value
        self.metrics_api.held = self._held
        self.capacity = CapacityKeeper(config, demand, self.lease, self.cluster, clock, tasks, hook)
        self._keda = KedaScaler(
            config,
            PoolActivities(self._pool_map, self._replicas.waiting, self._replicas.unknown),
            self.metrics_api.held_of,
            self.metrics_api.demand_of,
            clock,
            hook,
            certificates.keda,
        )
        self._replicas.on_waiting(self._keda.wake)
        jobs = [
            Job(
                "configuration-file",
                self._reload.check,
                lambda config: None if path is None else config.reload.interval,
            ),
            Job(
                "certificates", certificates.check, lambda config: config.reload.interval if certificates.any else None
            ),
        ]
        self._supervisor = Supervisor(
            [
                self._admin,
                Exporting(self._admin_server.exporters, tasks),
                scraping,
                self._objects,
                autoscalers,
                accelerators,
                files,
                self.lease,
                self.metrics_api,
                self._pools,
                self._replicas,
                self._keda,
                demand,
                self.capacity,
                Jobs(config, jobs, tasks, clock, hook),
            ],
            tasks,
            clock,
            hook,
        )

    @property
    def pools(self) -> Mapping[str, Pool]:
        """The pools by name."""
        return self._pools.pools

    @property
    def in_flight(self) -> int:
        """Requests that were picked and have not ended."""
        return self._pools.in_flight

    async def start(self) -> ListenAddresses:
        """Start every component; returns the addresses. Raises CannotStart, with nothing left running."""
        await self._supervisor.start()
        pickers = {name: pool.address for name, pool in self.pools.items()}
        return ListenAddresses(self._admin.address, pickers, self.metrics_api.address)

    def readiness(self) -> list[str]:
        """Why the agent is not ready, one sentence each; empty when it is."""
        return self._supervisor.readiness()

    async def reload(self) -> bool:
        """Read the configuration file and the certificates again; True when the agent runs that configuration."""
        await self._certificates.check()
        return await self._reload.reload()

    async def change(self, new: Config) -> list[str]:
        """Change to another configuration, as a whole; returns what changed, in words.

        Raises NeedsRestart or CannotStart and keeps the present one. Open streams continue: a profile decides the next
        pick, and an endpoint that was removed finishes the requests that it has.
        """
        changed = differences(self.config, new)
        if changed and not self._supervisor.stopping:
            await self._supervisor.apply(self.config, new)
            self.config = new
            self.instruments.declare_callers(new.flow_control.callers)
        return changed

    async def stop(self, grace: float | None = None) -> None:
        """Accept no more requests, decide those that have arrived, and close everything."""
        await self._supervisor.stop(self.config.ext_proc.drain_timeout if grace is None else grace)
        self.cluster.close()

    @property
    def keda_address(self) -> str:
        """Where KEDA finds the agent, once it is started; empty where the configuration has no address for it."""
        return self._keda.address

    def _pool_event(self, event: Event) -> None:
        """An event of a pool, whose held requests wake KEDA."""
        self.instruments(event)
        self._keda.observe(event)

    def _held(self, pool: str, now: float) -> ServedValue | WithheldMetric:
        """The requests that all replicas hold for a pool."""
        return self._replicas.held(pool, self._pools.pools[pool].held, now)

    def _pool_map(self) -> Mapping[str, Pool]:
        return self._pools.pools

    def _endpoints_changed(self) -> None:
        self._accelerators.refresh()
        self._objects.endpoints_changed()

    def _snapshots(self, now: float) -> list[Snapshot]:
        return [pool.store.snapshot(now) for pool in self.pools.values()]

    def _publish_pools(self) -> None:
        self.instruments.declare_models(name for pool in self.pools.values() for name in pool.declared_models)
        self._admin_server.set_pools([pool.store for pool in self.pools.values()])
        self._replicas.set_pools({name: pool.shared for name, pool in self.pools.items()})
        self._set_share(self._replicas.share)

    def _set_share(self, share: float) -> None:
        for pool in self.pools.values():
            pool.set_share(share)
