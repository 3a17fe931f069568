"""The gauges of demand are those of the last decision, or withheld with the reason."""

from __future__ import annotations

from agent.scaling.demand_gauges import MAX_AGE_SECONDS, DemandReport, served
from agent.scaling.gauges import gauge_set
from agent.scaling.learnt_capacity import UNKNOWN_CAPACITY, Capacity
from agent.scaling.served_metrics import ServedValue, WithheldMetric
from exporters.catalog import demand as rows
from tests.fakes.demands import SETTINGS, demand_report


def values(report: DemandReport, now: float = 0.0) -> dict[tuple[str, ...], float]:
    made = gauge_set([], now, demands=[report])
    return {(each.metric.name, *each.labels[1:]): each.value for each in made.gauges}


def reasons(report: DemandReport, now: float = 0.0) -> dict[tuple[str, ...], str]:
    made = gauge_set([], now, demands=[report])
    return {(each.metric.name, *each.labels[1:]): each.reason for each in made.withheld}


def test_a_demand_is_published_with_its_needs_and_inputs():
    found = values(demand_report())
    assert found[(rows.DEMAND.name,)] == 5.0  # 40 requests/s over 10 at a target of 0.8
    assert found[(rows.NEED.name, "rate")] == 5.0
    assert found[(rows.NEED.name, "slots")] == 3.0
    assert found[(rows.CURRENT.name,)] == 4.0
    assert found[(rows.CAPACITY.name, "learnt")] == 10.0
    assert found[(rows.BACKLOG.name,)] == 6.0
    assert found[(rows.PARTIAL.name,)] == 0.0


def test_the_age_of_a_demand_is_that_of_its_oldest_reading():
    (gauge,) = (
        each for each in gauge_set([], 5.0, demands=[demand_report(at=3.0)]).gauges if each.metric is rows.DEMAND
    )
    assert gauge.at == 3.0


def test_unknown_needs_are_withheld_with_their_reason():
    found = reasons(demand_report(capacity=Capacity(None, UNKNOWN_CAPACITY), slots=None))
    assert found[(rows.NEED.name, "rate")] == "no_capacity"
    assert found[(rows.NEED.name, "slots")] == "not_reported"
    assert found[(rows.CAPACITY.name, "unknown")] == "no_capacity"


def test_a_demand_that_was_not_computed_for_some_seconds_is_withheld():
    assert reasons(demand_report(), MAX_AGE_SECONDS + 1)[(rows.DEMAND.name,)] == "stale"
    assert (rows.DEMAND.name,) in values(demand_report(), MAX_AGE_SECONDS)


def test_without_known_replicas_there_is_no_number():
    assert reasons(demand_report(replicas=None))[(rows.DEMAND.name,)] == "never_known"
    assert reasons(DemandReport("pool", SETTINGS, None))[(rows.DEMAND.name,)] == "never_known"


def test_autoscalers_read_the_same_number_or_the_reason():
    assert served(demand_report(at=3.0), 5.0) == ServedValue(5.0, 3.0)
    assert served(demand_report(), 60.0) == WithheldMetric("stale", "the last demand was computed 60 s ago")
    assert served(demand_report(replicas=None), 0.0).reason == "never_known"  # type: ignore[union-attr]
