"""The demand of every pool, computed twice a second, as a component."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from agent.app.pool import Pool
from agent.app.tasks import Task, Tasks
from agent.clock import Clock
from agent.config.config import Config
from agent.config.demand import DemandConfig
from agent.scaling.demand import NEVER_KNOWN, DemandSettings
from agent.scaling.demand_gauges import DemandReport, served
from agent.scaling.envelope import Envelope
from agent.scaling.pool_demand import DemandInputs, PoolDemand
from agent.scaling.served_metrics import ServedValue, WithheldMetric

# With pages of each second, the oldest reading in a demand is about a second old when it is read.
INTERVAL_SECONDS: Final = 0.5


class DemandObserver:
    """Follows the pools. `pools` returns those that exist; of the other replicas of the agent, `held_by_peers` returns
    the requests that they hold for a pool, `capacities` what they have learnt of its capacity, and `unknown_peers`
    those whose part is unknown."""

    name = "demand"

    def __init__(
        self,
        config: Config,
        clock: Clock,
        tasks: Tasks,
        pools: Callable[[], Mapping[str, Pool]],
        held_by_peers: Callable[[str], int],
        unknown_peers: Callable[[], Sequence[str]],
        capacities: Callable[[str], Mapping[str, Envelope]],
    ) -> None:
        self._config = config
        self._capacities = capacities
        self._clock = clock
        self._tasks = tasks
        self._pools = pools
        self._held_by_peers = held_by_peers
        self._unknown_peers = unknown_peers
        self._demands: dict[str, PoolDemand] = {}
        self._restored: dict[str, tuple[float, float]] = {}
        self._task: Task | None = None

    def reports(self) -> list[DemandReport]:
        """The demand of each pool."""
        return [
            DemandReport(each.pool, each.settings, each.latest, tuple(each.past)) for each in self._demands.values()
        ]

    async def start(self) -> None:
        """Begin to follow the pools."""
        self._task = self._tasks.run("demand", self._follow)

    async def apply(self, config: Config) -> None:
        """Other settings of the pools; what was learnt stays."""
        self._config = config
        for settings in config.pools:
            found = self._demands.get(settings.name)
            if found is not None:
                found.apply(settings_of(settings.demand), settings.demand.capacity)

    def readiness(self) -> list[str]:
        """Always ready: a demand that is not known yet is withheld."""
        return []

    async def stop(self, grace: float) -> None:
        """Follow the pools no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def own_capacity(self, pool: str) -> Envelope | None:
        """What this replica has learnt of a pool's capacity; None of nothing."""
        found = self._demands.get(pool)
        return None if found is None else found.capacity.own

    def learnt(self) -> dict[str, tuple[float, float]]:
        """What was learnt of each pool: requests per second of a replica, and when (monotonic seconds)."""
        found = {}
        for name, each in self._demands.items():
            capacity = each.capacity.capacity()
            if capacity.requests_per_second is not None and capacity.learnt_at is not None:
                found[name] = (capacity.requests_per_second, capacity.learnt_at)
        return found

    def restore(self, pool: str, requests_per_second: float, learnt_at: float) -> None:
        """Continue with what was learnt of a pool before a restart, also where the pool is added later."""
        self._restored[pool] = (requests_per_second, learnt_at)
        if pool in self._demands:
            self._demands[pool].capacity.restore(requests_per_second, learnt_at)

    def value(self, pool: str, now: float) -> ServedValue | WithheldMetric:
        """The demand of a pool as autoscalers read it."""
        found = self._demands.get(pool)
        if found is None:
            return WithheldMetric(NEVER_KNOWN, "no demand was computed yet")
        return served(DemandReport(found.pool, found.settings, found.latest), now)

    def observe(self, now: float) -> None:
        """Compute the demand of every pool at `now`."""
        pools, unknown = self._pools(), tuple(self._unknown_peers())
        for gone in self._demands.keys() - pools.keys():
            del self._demands[gone]
        configured = {settings.name: settings.demand for settings in self._config.pools}
        for name, pool in pools.items():
            own = configured.get(name)
            if own is None:
                continue  # it is being removed
            demand = self._demands.get(name)
            if demand is None:
                demand = self._demands[name] = PoolDemand(name, settings_of(own), own.capacity)
                if name in self._restored:
                    demand.capacity.restore(*self._restored[name])
            source = pool.source
            known = source is None or source.current or source.known_at is not None
            loading = 0 if source is None else source.loading
            demand.capacity.set_peers(self._capacities(name))
            inputs = DemandInputs(pool.held + self._held_by_peers(name), loading, known, unknown)
            demand.observe(pool.store.snapshot(now), inputs, now)

    async def _follow(self) -> None:
        while True:
            self.observe(self._clock.now())
            await asyncio.sleep(INTERVAL_SECONDS)


def settings_of(config: DemandConfig) -> DemandSettings:
    """The settings of the configuration."""
    return DemandSettings(
        config.target,
        config.kv_target,
        config.startup_time,
        config.drain_horizon,
        config.coverage_floor,
        config.look_ahead,
    )
