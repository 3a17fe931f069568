"""The gauges of demand, from the last decision of each pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from agent.scaling.accelerators import GaugeCollector
from agent.scaling.demand import Demand, DemandSettings, NoDemand
from agent.scaling.needs import NEEDS, NO_ARRIVALS, NO_CAPACITY
from agent.scaling.pool_demand import PastDecision
from exporters.catalog import demand as rows

# A decision is made each second. An older one is no number any more: the task that makes them has failed.
MAX_AGE_SECONDS: Final = 10.0


class DemandReport(NamedTuple):
    """The demand of one pool at one time: its settings, the last decision (None: none yet), and those of the last
    hour."""

    pool: str
    settings: DemandSettings
    latest: PastDecision | None
    past: Sequence[PastDecision] = ()

    def withheld(self, now: float) -> tuple[str, str] | None:
        """Why there is no number at `now`, and the detail; None: there is one."""
        latest = self.latest
        if latest is None:
            return "never_known", "no demand was computed yet"
        if now - latest.at > MAX_AGE_SECONDS:
            return "stale", f"the last demand was computed {now - latest.at:.0f} s ago"
        if isinstance(latest.decision, NoDemand):
            return latest.decision.reason, latest.decision.detail
        return None


def of_pools(gauges: GaugeCollector, reports: Sequence[DemandReport], now: float) -> None:
    """The gauges of all pools."""
    for report in reports:
        withheld, latest = report.withheld(now), report.latest
        pool = (report.pool,)
        if withheld is not None or latest is None or not isinstance(latest.decision, Demand):
            gauges.withhold(rows.DEMAND, pool, "never_known" if withheld is None else withheld[0])
            continue
        _pool(gauges, pool, latest.decision)


def _pool(gauges: GaugeCollector, pool: tuple[str], decision: Demand) -> None:
    use = decision.use
    at = use.at
    gauges.dated(rows.DEMAND, pool, decision.replicas, at)
    for name, need in zip(NEEDS, decision.needs, strict=True):
        if need.replicas is None:
            gauges.withhold(rows.NEED, (*pool, name), need.reason)
        else:
            gauges.dated(rows.NEED, (*pool, name), need.replicas, at)
    gauges.known(rows.CURRENT, pool, use.replicas or 0.0)
    gauges.known(rows.LOADING, pool, use.loading.replicas)
    gauges.known(rows.COVERAGE, pool, use.coverage)
    gauges.known(rows.PARTIAL, pool, float(decision.partial))
    if use.expected is None:
        gauges.withhold(rows.ARRIVALS, pool, NO_ARRIVALS)
        gauges.withhold(rows.EXPECTED, pool, NO_ARRIVALS)
    else:
        gauges.dated(rows.ARRIVALS, pool, use.expected.short, at)
        gauges.dated(rows.EXPECTED, pool, use.expected.rate, at)
    capacity = use.capacity
    if capacity.requests_per_second is None:
        gauges.withhold(rows.CAPACITY, (*pool, capacity.source), NO_CAPACITY)
    else:
        gauges.known(rows.CAPACITY, (*pool, capacity.source), capacity.requests_per_second)
    gauges.dated(rows.BACKLOG, pool, use.waiting + use.held, at)
