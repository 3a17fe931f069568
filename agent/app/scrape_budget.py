"""The scrape budget: once a second it finds the active endpoints and sets the scrape intervals of all.

An endpoint is active while it has a request in flight, or when its readings or health have changed recently: the picker
needs its state. An idle endpoint is scraped less often, until its next page or a pick makes it active. Without a budget
nothing of this runs. Accelerator exporters and the probes beside a page keep their own intervals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from agent.clock import Clock
from agent.config.config import Config
from agent.config.scrape import BudgetConfig
from agent.events import Hook
from agent.events.scraping import BudgetChanged, BudgetExceeded, ScrapesPaced
from agent.scrape.budget import ALLOCATED_SHARE, Bounds, RateLimiter, adjusted_rate, share
from agent.scrape.loop import ScrapeLoop
from agent.signals import FINISHED, KV_USAGE, RUNNING, WAITING
from agent.state.snapshot import EndpointView, Snapshot

ADJUST_SECONDS: Final = 1.0
# An endpoint is idle after this many of the longest intervals without a change: an idle one is scraped that rarely.
_IDLE_AFTER_INTERVALS: Final = 2
# The weight of the newest second in the moving average of what was used: one second alone is noise.
_NEWEST_WEIGHT: Final = 0.3
# Adjustments at the lowest rate until the moving average shows that rate alone.
_SETTLED_ADJUSTMENTS: Final = 10


class _Activity(NamedTuple):
    """The values of an endpoint that change while it is active, and when they changed last."""

    values: tuple[object, ...]
    at: float


class _Meter(NamedTuple):
    """The counters at the last adjustment: seconds of CPU, and scrapes that the rate limiter admitted."""

    at: float
    cpu: float
    admitted: int


class _Used(NamedTuple):
    """Scrapes and CPU seconds per second, as moving averages."""

    scrapes: float
    cores: float


class ScrapeBudget:
    """Sets the scrape intervals of the model servers. `snapshots` returns those of all pools at a time."""

    def __init__(
        self, loop: ScrapeLoop, clock: Clock, snapshots: Callable[[float], list[Snapshot]], hook: Hook
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._snapshots = snapshots
        self._hook = hook
        self._budget = BudgetConfig()
        self._bounds = Bounds(1.0, 1.0)
        self._max_age = 1.0
        self._limiter: RateLimiter | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rate = float("inf")  # scrapes per second
        self._meter = _Meter(0.0, 0.0, 0)
        self._used: _Used | None = None
        self._activity: dict[tuple[str, str], _Activity] = {}
        self._exceeded: frozenset[str] = frozenset()
        self._adjustments_at_lowest = 0

    def change(self, config: Config) -> None:
        """Apply another configuration; its endpoints reach the scrape loop by other ways."""
        wanted = (config.scrape.budget, Bounds(config.scrape.interval, config.longest_interval), config.latest_scrape)
        if wanted == (self._budget, self._bounds, self._max_age):
            return
        self.stop()
        self._budget, self._bounds, self._max_age = wanted
        if not self._budget.is_set:
            return
        # The cost of a scrape is measured: with a budget of CPU alone, all are admitted until the first adjustment.
        self._rate = self._budget.scrapes_per_second or float("inf")
        self._limiter = RateLimiter(self._rate, self._max_age)
        self._loop.set_rate_limiter(self._limiter)
        self._meter = _Meter(self._clock.now(), self._clock.cpu(), 0)
        self._timer = asyncio.get_running_loop().call_later(ADJUST_SECONDS, self._adjust)

    def stop(self) -> None:
        """Remove the budget: every endpoint is scraped at the configured interval."""
        if self._timer is not None:
            self._timer.cancel()
        if self._limiter is not None:
            self._loop.set_rate_limiter(None)
            self._hook(BudgetChanged())
        self._timer = self._limiter = None
        self._activity, self._used, self._exceeded, self._adjustments_at_lowest = {}, None, frozenset(), 0

    def _adjust(self) -> None:
        limiter = self._limiter
        if limiter is None:
            return
        self._timer = asyncio.get_running_loop().call_later(ADJUST_SECONDS, self._adjust)
        now = self._clock.now()
        used = self._used = self._measured(now, limiter.admitted)
        snapshots = self._snapshots(now)
        busy = self._active(snapshots, now)
        endpoints, active = sum(len(snapshot.endpoints) for snapshot in snapshots), sum(map(len, busy))
        self._rate = self._affordable(endpoints, used.cores)
        limiter.set_rate(self._rate)
        intervals = share(active, endpoints - active, ALLOCATED_SHARE * self._rate, self._bounds)
        for snapshot, addresses in zip(snapshots, busy, strict=True):
            self._loop.set_intervals(snapshot.pool, (view.address for view in snapshot.endpoints), addresses, intervals)
        per_second, cores = self._budget.scrapes_per_second, self._budget.cpu
        parts = {
            **({"scrapes": used.scrapes / per_second} if per_second is not None else {}),
            **({"cpu": used.cores / cores} if cores is not None else {}),
        }
        self._hook(ScrapesPaced(intervals.busy, active, intervals.idle, endpoints - active, parts))
        self._report_exceeded(endpoints, used)

    def _measured(self, now: float, admitted: int) -> _Used:
        """The moving average of what was used per second."""
        before, self._meter = self._meter, _Meter(now, self._clock.cpu(), admitted)
        elapsed = max(now - before.at, ADJUST_SECONDS / 2)
        newest = _Used((admitted - before.admitted) / elapsed, (self._meter.cpu - before.cpu) / elapsed)
        mean = self._used or newest
        return _Used(*(old + _NEWEST_WEIGHT * (new - old) for old, new in zip(mean, newest, strict=True)))

    def _affordable(self, endpoints: int, cores: float) -> float:
        """The scrapes per second that the budget allows."""
        per_second = self._budget.scrapes_per_second or float("inf")
        if self._budget.cpu is None or not endpoints:
            return per_second
        lowest = min(per_second, endpoints / self._bounds.longest)
        highest = min(per_second, endpoints / self._bounds.shortest / ALLOCATED_SHARE)
        return adjusted_rate(self._rate, cores, self._budget.cpu, lowest, highest)

    def _active(self, snapshots: list[Snapshot], now: float) -> list[set[str]]:
        """The addresses of the active endpoints of each pool."""
        since = now - _IDLE_AFTER_INTERVALS * self._bounds.longest
        before, self._activity = self._activity, {}
        found = []
        for snapshot in snapshots:
            busy = set()
            for view in snapshot.endpoints:
                key, values = (snapshot.pool, view.address), _values_of(view)
                activity = before.get(key)
                if activity is None or activity.values != values:
                    activity = _Activity(values, now)
                self._activity[key] = activity
                if view.work.requests or activity.at > since:
                    busy.add(view.address)
            found.append(busy)
        return found

    def _report_exceeded(self, endpoints: int, used: _Used) -> None:
        """Report once when the fleet needs more than the budget to stay fresh."""
        before, needed = self._exceeded, endpoints / self._bounds.longest
        per_second, cores = self._budget.scrapes_per_second, self._budget.cpu
        short: dict[str, BudgetExceeded] = {}
        if per_second is not None and needed > per_second:
            short["scrapes"] = BudgetExceeded("scrapes", endpoints, needed, per_second)
        self._adjustments_at_lowest = self._adjustments_at_lowest + 1 if self._rate <= needed else 0
        settled = self._adjustments_at_lowest >= _SETTLED_ADJUSTMENTS
        # With a tenth of hysteresis, so that a value near the budget is not reported every second.
        if cores is not None and settled and used.cores > cores * (0.9 if "cpu" in before else 1.0):
            short["cpu"] = BudgetExceeded("cpu", endpoints, used.cores, cores)
        self._exceeded = frozenset(short)
        for resource, event in short.items():
            if resource not in before:
                self._hook(event)


def _values_of(view: EndpointView) -> tuple[object, ...]:
    """The values that change while the endpoint is active."""
    values = view.values
    return (
        view.health,
        values.get(RUNNING),
        values.get(WAITING),
        values.get(KV_USAGE),
        values.get(FINISHED),
        view.work.requests,
    )
