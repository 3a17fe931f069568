"""The budget of scrapes at work: once a second it looks at who is at work, and shares the budget out anew.

At work is who has a request of ours, or whose readings or health have changed within the last few looks: there a picker
wants to know how things stand. Who stands still is asked less often, until its next page or a pick says that this is
over. Without a budget nothing of this runs. The pages of accelerator exporters and what is asked beside a page keep
their own intervals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from agent.clock import Clock
from agent.config import Budget, Config
from agent.events import Hook
from agent.events.scraping import BudgetChanged, BudgetExceeded, ScrapesPaced
from agent.scrape.budget import GIVEN_OUT, Bounds, Gate, followed, share
from agent.scrape.loop import ScrapeLoop
from agent.signals import FINISHED, KV_USAGE, RUNNING, WAITING
from agent.state.snapshot import EndpointView, Snapshot

LOOK_SECONDS: Final = 1.0
# Who stands still is asked every `Bounds.longest`: so many of these without news, and it does.
_STILL_AFTER_INTERVALS: Final = 2
# What one second used says little: a look counts for this part of the mean.
_NEWEST: Final = 0.3
# So many looks at the least that keeps readings fresh, until the mean is that of this time alone.
_SETTLED_LOOKS: Final = 10


class _Seen(NamedTuple):
    """What an endpoint showed last, and when that was news."""

    shown: tuple[object, ...]
    at: float


class _Meter(NamedTuple):
    """Where the counters stood at the last look: seconds of CPU, and scrapes that were let through."""

    at: float
    cpu: float
    passed: int


class _Used(NamedTuple):
    """In a second, on average of late."""

    scrapes: float
    cores: float


class ScrapeBudget:
    """Paces the model servers of a scrape loop. `snapshots` gives those of all pools at a time."""

    def __init__(
        self, loop: ScrapeLoop, clock: Clock, snapshots: Callable[[float], list[Snapshot]], hook: Hook
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._snapshots = snapshots
        self._hook = hook
        self._budget = Budget()
        self._bounds = Bounds(1.0, 1.0)
        self._latest = 1.0
        self._gate: Gate | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rate = float("inf")  # scrapes in a second that there may be
        self._looked = _Meter(0.0, 0.0, 0)
        self._used: _Used | None = None
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._outgrown: frozenset[str] = frozenset()
        self._looks_at_least = 0

    def change(self, config: Config) -> None:
        """Another configuration holds from now on; its endpoints are told to the scrape loop by others."""
        told = (config.scrape.budget, Bounds(config.scrape.interval, config.longest_interval), config.latest_scrape)
        if told == (self._budget, self._bounds, self._latest):
            return
        self.stop()
        self._budget, self._bounds, self._latest = told
        if not self._budget.is_set:
            return
        # What a scrape costs is found out: with a budget of CPU alone, all are let through until the first look.
        self._rate = self._budget.scrapes_per_second or float("inf")
        self._gate = Gate(self._rate, self._latest)
        self._loop.set_gate(self._gate)
        self._looked = _Meter(self._clock.now(), self._clock.cpu(), 0)
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def stop(self) -> None:
        """No budget any more: all at the configured interval."""
        if self._timer is not None:
            self._timer.cancel()
        if self._gate is not None:
            self._loop.set_gate(None)
            self._hook(BudgetChanged())
        self._timer = self._gate = None
        self._seen, self._used, self._outgrown, self._looks_at_least = {}, None, frozenset(), 0

    def _look(self) -> None:
        gate = self._gate
        if gate is None:
            return
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        now = self._clock.now()
        used = self._used = self._measured(now, gate.passed)
        snapshots = self._snapshots(now)
        busy = self._at_work(snapshots, now)
        endpoints, at_work = sum(len(snapshot.endpoints) for snapshot in snapshots), sum(map(len, busy))
        self._rate = self._affordable(endpoints, used.cores)
        gate.widen(self._rate)
        intervals = share(at_work, endpoints - at_work, GIVEN_OUT * self._rate, self._bounds)
        for snapshot, addresses in zip(snapshots, busy, strict=True):
            self._loop.pace(snapshot.pool, (view.address for view in snapshot.endpoints), addresses, intervals)
        per_second, cores = self._budget.scrapes_per_second, self._budget.cpu
        parts = {
            **({"scrapes": used.scrapes / per_second} if per_second is not None else {}),
            **({"cpu": used.cores / cores} if cores is not None else {}),
        }
        self._hook(ScrapesPaced(intervals.busy, at_work, intervals.idle, endpoints - at_work, parts))
        self._tell_outgrown(endpoints, used)

    def _measured(self, now: float, passed: int) -> _Used:
        """What was used in a second, of late."""
        before, self._looked = self._looked, _Meter(now, self._clock.cpu(), passed)
        elapsed = max(now - before.at, LOOK_SECONDS / 2)
        newest = _Used((passed - before.passed) / elapsed, (self._looked.cpu - before.cpu) / elapsed)
        mean = self._used or newest
        return _Used(*(old + _NEWEST * (new - old) for old, new in zip(mean, newest, strict=True)))

    def _affordable(self, endpoints: int, cores: float) -> float:
        """The scrapes in a second from now on."""
        per_second = self._budget.scrapes_per_second or float("inf")
        if self._budget.cpu is None or not endpoints:
            return per_second
        least = min(per_second, endpoints / self._bounds.longest)
        most = min(per_second, endpoints / self._bounds.shortest / GIVEN_OUT)
        return followed(self._rate, cores, self._budget.cpu, least, most)

    def _at_work(self, snapshots: list[Snapshot], now: float) -> list[set[str]]:
        """The addresses of the endpoints that are at work, for each pool."""
        since = now - _STILL_AFTER_INTERVALS * self._bounds.longest
        before, self._seen = self._seen, {}
        found = []
        for snapshot in snapshots:
            busy = set()
            for view in snapshot.endpoints:
                key, shown = (snapshot.pool, view.address), _shown(view)
                seen = before.get(key)
                if seen is None or seen.shown != shown:
                    seen = _Seen(shown, now)
                self._seen[key] = seen
                if view.work.requests or seen.at > since:
                    busy.add(view.address)
            found.append(busy)
        return found

    def _tell_outgrown(self, endpoints: int, used: _Used) -> None:
        """Say once that the fleet needs more than the budget to stay fresh, and once that it does no more."""
        before, needed = self._outgrown, endpoints / self._bounds.longest
        per_second, cores = self._budget.scrapes_per_second, self._budget.cpu
        short: dict[str, BudgetExceeded] = {}
        if per_second is not None and needed > per_second:
            short["scrapes"] = BudgetExceeded("scrapes", endpoints, needed, per_second)
        self._looks_at_least = self._looks_at_least + 1 if self._rate <= needed else 0
        settled = self._looks_at_least >= _SETTLED_LOOKS
        # It is over a tenth below the budget: not to be told each second.
        if cores is not None and settled and used.cores > cores * (0.9 if "cpu" in before else 1.0):
            short["cpu"] = BudgetExceeded("cpu", endpoints, used.cores, cores)
        self._outgrown = frozenset(short)
        for of, event in short.items():
            if of not in before:
                self._hook(event)


def _shown(view: EndpointView) -> tuple[object, ...]:
    """What changes where something is done."""
    values = view.values
    return (
        view.health,
        values.get(RUNNING),
        values.get(WAITING),
        values.get(KV_USAGE),
        values.get(FINISHED),
        view.work.requests,
    )
