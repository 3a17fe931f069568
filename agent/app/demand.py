"""The demand of every pool, computed twice a second, as a component."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from agent.app.pool import Pool
from agent.app.tasks import Task, Tasks
from agent.clock import Clock
from agent.config.config import Config
from agent.config.demand import DemandConfig
from agent.scaling.demand import NEVER_KNOWN, DemandSettings
from agent.scaling.demand_gauges import DemandReport, served
from agent.scaling.demand_history import DemandHistory
from agent.scaling.envelope import Envelope
from agent.scaling.pool_demand import DemandInputs, PoolDemand
from agent.scaling.served_metrics import ServedValue, WithheldMetric

# With pages of each second, the oldest reading in a demand is about a second old when it is read.
INTERVAL_SECONDS: Final = 0.5
MAX_PEERS: Final = 64  # whose histories wait until this replica has seen the pool itself


class PeerDemand(NamedTuple):
    """What the other replicas of the agent report of a pool: `held` the requests that they hold for it, `capacities`
    what they have learnt of its capacity, `histories` what they had seen of its load when this replica began to follow
    them, each once. `unknown` are those whose part is unknown."""

    held: Callable[[str], int]
    capacities: Callable[[str], Mapping[str, Envelope]]
    histories: Callable[[str], Sequence[DemandHistory]]
    unknown: Callable[[], Sequence[str]]


class DemandObserver:
    """Follows the pools. `pools` returns those that exist."""

    name = "demand"

    def __init__(
        self,
        config: Config,
        clock: Clock,
        tasks: Tasks,
        pools: Callable[[], Mapping[str, Pool]],
        peers: PeerDemand,
    ) -> None:
        self._config = config
        self._peers = peers
        self._clock = clock
        self._tasks = tasks
        self._pools = pools
        self._demands: dict[str, PoolDemand] = {}
        self._restored: dict[str, tuple[float, float]] = {}
        self._histories: dict[str, list[DemandHistory]] = {}  # of peers, to be adopted
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

    def history(self, pool: str) -> DemandHistory | None:
        """What this replica has seen of a pool's load; None of nothing."""
        found = self._demands.get(pool)
        return None if found is None else found.history

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
        pools, unknown = self._pools(), tuple(self._peers.unknown())
        for gone in self._demands.keys() - pools.keys():
            del self._demands[gone]
            self._histories.pop(gone, None)
        shift = self._clock.wall() - now
        configured = {settings.name: settings.demand for settings in self._config.pools}
        for name, pool in pools.items():
            own = configured.get(name)
            if own is None:
                continue  # it is being removed
            demand = self._demands.get(name)
            if demand is None:
                demand = self._demands[name] = PoolDemand(name, settings_of(own), own.capacity, shift)
                if name in self._restored:
                    demand.capacity.restore(*self._restored[name])
            source = pool.source
            known = source is None or source.current or source.known_at is not None
            loading = 0 if source is None else source.loading
            demand.capacity.set_peers(self._peers.capacities(name))
            inputs = DemandInputs(pool.held + self._peers.held(name), loading, known, unknown)
            demand.observe(pool.store.snapshot(now), inputs, now)
            waiting = [*self._histories.pop(name, ()), *self._peers.histories(name)]
            if left := [history for history in waiting if not demand.adopt(history)]:
                self._histories[name] = left[-MAX_PEERS:]

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
