"""From reports of demand to JSON: `/v1/scaling`."""

from __future__ import annotations

from collections.abc import Sequence

from agent.scaling.demand import WITHHELD, Demand, PoolUse
from agent.scaling.demand_gauges import DemandReport
from agent.scaling.pool_demand import PastDecision
from agent.serve.state.moment import Moment, printable, rfc3339
from agent.serve.state.scaling_schema import (
    DemandInputsJson,
    DemandNeedJson,
    DemandSettingsJson,
    PastDemandJson,
    ScalingJson,
    ScalingPoolJson,
)


def scaling(reports: Sequence[DemandReport], moment: Moment) -> ScalingJson:
    """The document of these pools."""
    return ScalingJson(rfc3339(moment.wall), [_pool(each, moment.now) for each in reports])


def _pool(report: DemandReport, now: float) -> ScalingPoolJson:
    withheld, latest, settings = report.withheld(now), report.latest, report.settings
    decision = None if latest is None else latest.decision
    known = decision if isinstance(decision, Demand) and withheld is None else None
    return ScalingPoolJson(
        printable(report.pool),
        None if known is None else known.replicas,
        WITHHELD if known is None else known.driver,
        known is not None and known.partial,
        "" if withheld is None else withheld[0],
        "" if withheld is None else withheld[1],
        None if decision is None else max(0.0, now - decision.use.at),
        [DemandNeedJson(need.name, need.replicas, need.reason) for need in decision.needs]
        if isinstance(decision, Demand)
        else [],
        None if decision is None else _inputs(decision.use, now),
        DemandSettingsJson(
            settings.target,
            settings.kv_target,
            settings.startup_seconds,
            settings.horizon,
            settings.coverage_floor,
            settings.look_ahead,
        ),
        [_past(each, now) for each in report.past],
    )


def _inputs(use: PoolUse, now: float) -> DemandInputsJson:
    expected, capacity = use.expected, use.capacity
    per_second = capacity.requests_per_second
    return DemandInputsJson(
        use.replicas,
        use.ready,
        use.seen,
        use.coverage,
        use.loading.replicas,
        None if per_second is None else use.loading.seconds * per_second,
        use.waiting,
        use.held,
        None if expected is None else expected.short,
        None if expected is None else expected.noise,
        None if expected is None else expected.trend * 60.0,
        None if expected is None else expected.trend_seconds,
        None if expected is None else expected.rate,
        per_second,
        capacity.source,
        None if capacity.learnt_at is None else max(0.0, now - capacity.learnt_at),
        [printable(each) for each in use.unknown_peers],
    )


def _past(each: PastDecision, now: float) -> PastDemandJson:
    decision, use = each.decision, each.decision.use
    known = decision if isinstance(decision, Demand) else None
    return PastDemandJson(
        max(0.0, now - each.at),
        None if known is None else known.replicas,
        WITHHELD if known is None else known.driver,
        use.replicas,
        use.loading.replicas,
        None if use.expected is None else use.expected.rate,
        use.waiting + use.held,
    )
