"""All pools of the configuration as one component: a reload adds, changes and removes pools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Final

from agent.app.component import CannotStart
from agent.app.pool import Pool, PoolParts, profile_of
from agent.config.config import Config
from agent.flow.report import FlowReport

# Interval of the check for expired readings in pools without readers: a stale endpoint is reported within this time.
AGING_SECONDS: Final = 0.5


async def at_once(calls: Iterable[Coroutine[None, None, None]]) -> None:
    """Run these at the same time. When one raises, the others are cancelled and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(call)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


class Pools:
    """The pools by name. `on_pools` is called after pools were added or removed.

    A pool that is removed drains in the background, so that a slow request holds up no other change.
    """

    name = "pools"

    def __init__(self, config: Config, parts: PoolParts, on_pools: Callable[[], None]) -> None:
        self.pools: dict[str, Pool] = {}
        self._config = config
        self._parts = parts
        self._on_pools = on_pools
        self._draining: dict[asyncio.Task[None], Pool] = {}
        self._stopping = False

    @property
    def in_flight(self) -> int:
        """Requests that were picked and have not ended, those of removed pools included."""
        return sum(pool.in_flight for pool in (*self.pools.values(), *self._draining.values()))

    def flow_reports(self, now: float, pool: str | None = None, *, inputs: bool = False) -> list[FlowReport]:
        """The reports of flow control of all pools, or of the one of this name."""
        return [
            each.flow_report(now, inputs=inputs) for name, each in self.pools.items() if pool is None or name == pool
        ]

    def serves_model(self, name: str) -> bool:
        """Whether a server of any pool lists this model or names this adapter."""
        return any(pool.store.serves(name) for pool in self.pools.values())

    def lists_models(self, pool: str) -> bool:
        """Whether the models of this pool are known."""
        found = self.pools.get(pool)
        return found is not None and (bool(found.declared_models) or found.store.lists_models)

    def has_server(self, address: str) -> bool:
        """Whether the address is an endpoint of any pool."""
        return any(pool.store.has(address) for pool in self.pools.values())

    async def start(self) -> None:
        """Start every pool."""
        config = self._config
        if not config.pools:
            raise CannotStart(
                f"{config.source}: there is no pool to serve; add pools: with a name, and endpoints or an inferencePool"
            )
        for settings in config.pools:
            self.pools[settings.name] = Pool(config, settings, self._parts)
        self._on_pools()  # the state shows what a start waits for
        await at_once(pool.start() for pool in self.pools.values())
        self._parts.tasks.run("aging", self._age)

    async def apply(self, config: Config) -> None:
        """Add the new pools, change those that stay, remove the others."""
        if not config.pools:
            raise CannotStart("there is no pool in it; the last one is kept")
        for settings in config.pools:
            profile_of(config, settings)
        added: dict[str, Pool] = {}
        try:
            for settings in config.pools:
                if settings.name not in self.pools:
                    added[settings.name] = Pool(config, settings, self._parts)
            await at_once(pool.start() for pool in added.values())
        except CannotStart:
            await self._stop(added.values(), 0.0)
            raise
        if self._stopping:  # a stop began while ports were opened, and does not know them
            await self._stop(added.values(), 0.0)
            return
        before, self.pools = (
            self.pools,
            {settings.name: added.get(settings.name) or self.pools[settings.name] for settings in config.pools},
        )
        self._config = config
        for name in before.keys() - self.pools.keys():  # before the first wait: a stop meanwhile knows them
            self._drain(before[name], config.ext_proc.drain_timeout)
        await at_once(pool.apply(config) for name, pool in self.pools.items() if name not in added)
        self._on_pools()
        self._parts.on_endpoints()

    def readiness(self) -> list[str]:
        """The pools that are not ready."""
        return [why for pool in self.pools.values() for why in pool.readiness()]

    async def stop(self, grace: float) -> None:
        """Stop every pool, at the same time."""
        self._stopping = True
        await self._stop(self.pools.values(), grace)
        if self._draining:
            await asyncio.wait(self._draining, timeout=grace)
        for task in tuple(self._draining):
            task.cancel()

    async def _stop(self, pools: Iterable[Pool], grace: float) -> None:
        await asyncio.gather(*(pool.stop(grace) for pool in pools))

    def _drain(self, pool: Pool, grace: float) -> None:
        task = asyncio.get_running_loop().create_task(self._remove(pool, grace))
        self._draining[task] = pool
        task.add_done_callback(self._draining.pop)

    async def _remove(self, pool: Pool, grace: float) -> None:
        await pool.stop(grace)
        if pool.name not in self.pools:
            await self._parts.endpoint_files.empty(pool.name)

    async def _age(self) -> None:
        clock = self._parts.clock
        while True:
            await asyncio.sleep(AGING_SECONDS)
            now = clock.now()
            for pool in self.pools.values():
                pool.store.age(now)
