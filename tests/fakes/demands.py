"""Demands of pools for tests."""

from __future__ import annotations

from agent.scaling.arrivals import ExpectedRate
from agent.scaling.demand import DemandSettings, PoolUse, decide
from agent.scaling.demand_gauges import DemandReport
from agent.scaling.learnt_capacity import LEARNT, Capacity
from agent.scaling.loading import Loading
from agent.scaling.pool_demand import PastDecision

SETTINGS = DemandSettings(target=0.8)


def pool_use(**changes: object) -> PoolUse:
    """Four replicas of 10 requests/s to which 40 requests/s arrive; everything is known."""
    busy = PoolUse(
        0.0, 4, 4, 4, 3.0, 2.0, 5.0, 1.0, ExpectedRate(40.0, 0.0, 0.0, 2.0, 330.0, 40.0), Capacity(10.0, LEARNT, -60.0)
    )
    return busy._replace(loading=Loading(0.0, 0.0), **changes)  # type: ignore[arg-type]


def demand_report(pool: str = "pool", at: float = 0.0, **changes: object) -> DemandReport:
    """The report of a pool whose demand was computed at `at`, and once before."""
    use = pool_use(at=at, **changes)
    before = PastDecision(at - 15.0, decide(pool_use(at=at - 15.0), SETTINGS))
    latest = PastDecision(at, decide(use, SETTINGS))
    return DemandReport(pool, SETTINGS, latest, (before, latest))
