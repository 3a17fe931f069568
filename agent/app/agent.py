"""The whole agent: pools, one scrape loop, a picker port for each pool, one admin port; started, changed and stopped.

Everything runs on one event loop. What happens from time to time (a look at the configuration file, at the names of
endpoints, at what has grown old while nobody asked) is APScheduler's; the scrape loop keeps its own schedule.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from agent.accelerators.combine import Accelerators
from agent.app.budget import BudgetAtWork
from agent.app.changes import NeedsRestart, differences
from agent.app.devices import DevicesAtWork
from agent.app.pool import PoolAtWork, identity, profile_of, targets
from agent.app.vocabulary import WORDS
from agent.clock import Clock
from agent.config import BadConfig, Config, Pool, load
from agent.config.values import join_address, split_address
from agent.discovery.static import StaticEndpoints, is_name
from agent.events import Event
from agent.events.process import Reloaded
from agent.events.scraping import HealthChanged
from agent.instruments import Instruments
from agent.pick.profile import BadProfile
from agent.scrape.loop import ScrapeLoop
from agent.serve.admin.server import AdminServer, CannotListen
from agent.serve.ext_proc.server import ExtProcServer
from agent.serve.state.watch import WatchLimits

# How often health is looked at where nobody asks for it: a stale endpoint is then told within this time.
AGING_SECONDS: Final = 0.5
_WHY: Final = {
    errno.EADDRINUSE: "is in use by another program",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
    errno.EACCES: "needs a privilege that this process does not have",
}


class CannotStart(Exception):
    """The agent cannot run as configured; the text says why, and what to change."""


class Ports(NamedTuple):
    """Where a running agent listens: the admin address, and the picker address of each pool."""

    admin: str
    pickers: dict[str, str]


class _FileState(NamedTuple):
    """What tells one content of a file from another without reading it; a ConfigMap's symlinks are followed."""

    device: int
    inode: int
    modified_ns: int
    size: int


_NEVER: Final = _FileState(0, 0, 0, 0)


class _Every(BaseTrigger):  # type: ignore[misc]
    """So many seconds after each run. The library's own trigger goes through every run that was missed, one by one:
    a wall clock that is set ahead by a day would stop the agent for seconds."""

    def __init__(self, seconds: float) -> None:
        self._gap = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """When the next run is due."""
        return now + self._gap


class Agent:
    """One agent for one configuration. `path` is the file that it came from and is read again from, if any."""

    def __init__(
        self, config: Config, clock: Clock, *, path: Path | None = None, instruments: Instruments | None = None
    ) -> None:
        self.config = config
        self.path = path
        self.instruments = instruments or Instruments(clock)
        self._clock = clock
        self._admin = AdminServer(
            config.admin.address,
            clock=clock,
            instruments=self.instruments,
            limits=WatchLimits(watchers=config.admin.max_watchers, message_bytes=config.admin.max_state_bytes),
            not_ready=lambda: ["the agent is stopping"] if self._stopping else [],
        )
        self.pools: dict[str, PoolAtWork] = {}
        self._pickers: dict[str, ExtProcServer] = {}
        self._names: dict[str, StaticEndpoints] = {}
        self._loop = ScrapeLoop(clock)
        self._budget = BudgetAtWork(
            self._loop,
            clock,
            lambda now: [pool.store.snapshot(now) for pool in self.pools.values()],
            self.instruments,
        )
        self._devices = DevicesAtWork(self._loop, clock, self.instruments, self._run_on)
        self._admin.state.exporters = self._devices.exporters
        self._scheduler = AsyncIOScheduler(timezone="UTC")
        self._wall_ahead = clock.wall() - clock.now()
        self._pulse: asyncio.TimerHandle | None = None
        self._seen: _FileState | None = _NEVER  # the file may have changed between its reading and our start
        self._missed = False
        self._behind = False  # the file as it was last read was refused
        self._reloading = asyncio.Lock()
        self._stopping = False

    # -- start and stop ----------------------------------------------------------------------------------------------

    async def start(self) -> Ports:
        """Listen, begin to scrape, and return the addresses. Raises `CannotStart`, with nothing left running."""
        async with self._reloading:
            return await self._start(self.config)

    async def _start(self, config: Config) -> Ports:
        if not config.pools:
            raise CannotStart(f"{config.source}: there is no pool to serve; add pools: with a name and endpoints")
        _probe(config.admin.address, "admin address", "--admin-address or admin.address")
        try:
            pickers = {pool.name: await self._open(config, pool) for pool in config.pools}
            await self._set_endpoints(config)
            self._admin.set_pools([pool.store for pool in self.pools.values()])
            host, _ = split_address(config.admin.address)
            admin = join_address(host, await self._admin.start())
        except CannotStart:
            await self.stop(grace=0)
            raise
        except CannotListen as error:  # somebody took the address between our look and our listening
            await self.stop(grace=0)
            raise CannotStart(str(error)) from error
        self._schedule(config)
        self._scheduler.start()
        self._beat()
        return Ports(admin, pickers)

    async def stop(self, grace: float | None = None) -> None:
        """Take no more requests, let those being picked for finish, and close everything."""
        self._stopping = True
        seconds = self.config.ext_proc.drain_timeout if grace is None else grace
        if self._pulse is not None:
            self._pulse.cancel()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        await asyncio.gather(*(server.stop(seconds) for server in self._pickers.values()))
        self._budget.stop()
        await self._loop.stop()
        await self._devices.stop()
        await self._admin.stop()

    async def _open(self, config: Config, pool: Pool) -> str:
        """Put a pool to work and open its picker port, whose address comes back. Raises `CannotStart`."""
        _probe(pool.ext_proc_address, f"picker address of pool {pool.name}", "--ext-proc-address or extProcAddress")
        try:
            work = PoolAtWork(config, pool, self._clock, self._heard, self._admin.picks.add)
            server = ExtProcServer(
                work,
                self.instruments,
                address=pool.ext_proc_address,
                max_body=config.ext_proc.max_body,
                max_held=config.ext_proc.max_held,
            )
            port = await server.start()
        except (OSError, BadProfile) as error:
            raise CannotStart(str(error)) from error
        self.pools[pool.name], self._pickers[pool.name] = work, server
        self._names[pool.name] = StaticEndpoints()
        host, _ = split_address(pool.ext_proc_address)
        return join_address(host, port)

    async def _close(self, name: str, grace: float) -> None:
        """Take a pool out of work; what it has in flight ends well."""
        self._loop.set_targets(name, [], self.pools[name].store)
        await self._pickers.pop(name).stop(grace)
        del self.pools[name], self._names[name]

    # -- a changed configuration -------------------------------------------------------------------------------------

    async def reload(self, *, asked: bool = True) -> bool:
        """Read the file again and take it over if it is good; True when the running configuration is that of the file.

        `asked` for (by a signal), a file without changes is told as well. A bad file changes nothing, and is counted,
        and so is the end of it, be it that the file is again what it was.
        """
        if self.path is None:
            self.instruments(
                Reloaded(False, "there is no file to read: this agent was configured by flags", no_file=True)
            )
            return False
        async with self._reloading:
            self._seen = _look(self.path)
            try:
                new = await asyncio.to_thread(load, self.path, WORDS)
                changed = await self.change(new)
            except BadConfig as bad:
                return self._refused("; ".join(bad.lines()))
            except (NeedsRestart, CannotStart) as refused:
                return self._refused(str(refused))
            if changed or asked or self._behind:
                self.instruments(Reloaded(True, ", ".join(changed) or "no change"))
            self._behind = False
            return True

    def _refused(self, why: str) -> bool:
        self._behind = True
        self.instruments(Reloaded(False, why))
        return False

    async def change(self, new: Config) -> list[str]:
        """Take over another configuration, whole or not at all; what changed, in words.

        Raises `NeedsRestart` or `CannotStart`. Streams that run go on: a profile decides the next pick, an endpoint
        that is gone gets no more requests and finishes those that it has.
        """
        changed = differences(self.config, new)
        if not changed:
            return []
        if not new.pools:
            raise CannotStart("there is no pool in it; the last one is not given up")
        try:
            profiles = {pool.name: profile_of(new, pool) for pool in new.pools}
        except BadProfile as bad:
            raise CannotStart(str(bad)) from bad
        opened: list[str] = []
        try:
            for pool in new.pools:
                if pool.name not in self.pools:
                    await self._open(new, pool)
                    opened.append(pool.name)
        except CannotStart:
            for name in opened:
                await self._close(name, grace=0)
            raise
        if self._stopping:  # a stop began while ports were opened, and knows nothing of them
            for name in opened:
                await self._close(name, grace=0)
            return []
        self.config = new
        for pool in new.pools:
            self.pools[pool.name].change(new, pool, profiles[pool.name])
        await self._set_endpoints(new)
        self._admin.set_pools([self.pools[pool.name].store for pool in new.pools])
        self._schedule(new)
        # Last, as a body that is slow to arrive may hold a gone pool's port open until the drain is over.
        gone = self.pools.keys() - profiles.keys()
        await asyncio.gather(*(self._close(name, new.ext_proc.drain_timeout) for name in gone))
        return changed

    async def _set_endpoints(self, config: Config) -> None:
        """Tell the stores and the scrape loop which endpoints there are now, names resolved."""
        resolved = await asyncio.gather(*(self._names[pool.name].resolve(pool.endpoints) for pool in config.pools))
        if self._stopping:
            return
        now = self._clock.now()
        self._budget.change(config)
        for pool, found in zip(config.pools, resolved, strict=True):
            store = self.pools[pool.name].store
            store.set_endpoints(
                {**found.engines, **{name: engine for name, (engine, _) in found.unknown.items()}},
                now,
                {address: identity(endpoint) for address, endpoint in found.endpoints.items()},
            )
            reach = self.pools[pool.name].reach
            self._loop.set_targets(pool.name, targets(config, pool, found.endpoints, reach, found.names), store)
            for name, (_, why) in found.unknown.items():
                store.failed(name, "unreachable", f"the name cannot be resolved: {why}", now, 0.0)
        found_in = {pool.name: found.endpoints for pool, found in zip(config.pools, resolved, strict=True)}
        self._devices.set_pools(config, found_in)

    def _run_on(self, pool: str, address: str, accelerators: tuple[Accelerators, ...], now: float) -> None:
        if pool in self.pools:
            self.pools[pool].store.run_on(address, accelerators, now)

    # -- from time to time -------------------------------------------------------------------------------------------

    def _schedule(self, config: Config) -> None:
        jobs: dict[Callable[[], Awaitable[None]], float] = {}
        if self.path is not None:
            jobs[self._look_at_file] = config.reload.interval
        if any(is_name(endpoint.address) for pool in config.pools for endpoint in pool.endpoints):
            jobs[self._look_at_names] = config.reload.interval
        for job in self._scheduler.get_jobs():
            if job.func not in jobs:
                job.remove()
        for run, seconds in jobs.items():
            self._scheduler.add_job(
                run, _Every(seconds), id=run.__name__, replace_existing=True, coalesce=True, max_instances=1,
                misfire_grace_time=None,
            )  # fmt: skip

    def _beat(self) -> None:
        """Let what nobody asked for grow old; and where the wall clock was set, plan what is planned by it anew.

        The scheduler lives by the wall clock: set back by an hour, it would look at nothing for an hour.
        """
        self._pulse = asyncio.get_running_loop().call_later(AGING_SECONDS, self._beat)
        now = self._clock.now()
        wall_ahead = self._clock.wall() - now
        for pool in self.pools.values():
            pool.store.age(now)
        if abs(wall_ahead - self._wall_ahead) > AGING_SECONDS:
            self._schedule(self.config)
        self._wall_ahead = wall_ahead

    def _heard(self, event: Event) -> None:
        """Something happened in a pool. Where a server went down, another may stand behind its name by now."""
        self.instruments(event)
        if type(event) is HealthChanged and event.new == "down" and not self._stopping:
            job = self._scheduler.get_job(self._look_at_names.__name__) if self._scheduler.running else None
            if job is not None:
                job.modify(next_run_time=datetime.now(UTC))

    async def _look_at_names(self) -> None:
        async with self._reloading:
            await self._set_endpoints(self.config)

    async def _look_at_file(self) -> None:
        found = _look(self.path)
        if found == self._seen:
            self._missed = False
        elif found is None and not self._missed:
            self._missed = True  # an editor may be about to put the new file there: look once more before saying so
        else:
            await self.reload(asked=False)


def _look(path: Path | None) -> _FileState | None:
    """The file's state, or None where there is none."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return _FileState(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def _probe(address: str, what: str, option: str) -> None:
    """Raise `CannotStart` in a person's words when the address cannot be listened on."""
    host, port = split_address(address)
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
            one.listen()
    except OSError as error:
        why = _WHY.get(error.errno or 0, f"cannot be listened on ({error.strerror or error})")
        raise CannotStart(f"{what} {address} {why}; choose another with {option}") from error
