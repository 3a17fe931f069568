"""The table of served metrics."""

from __future__ import annotations

import re

import pytest

from agent.scaling.served_metrics import DEMAND_REPLICAS, SERVED, MetricKind, MetricRow, ServedValue
from exporters.catalog import CATALOG

ROWS = [row for rows in SERVED.values() for row in rows.values()]
# A URL segment of the metrics APIs, and a value of a label, whatever reads it.
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind}-{row.name}")
def test_a_served_metric_has_a_name_that_needs_no_escape_in_a_url(row: MetricRow) -> None:
    assert NAME.fullmatch(row.name)


def test_a_served_metric_of_the_catalogue_has_its_unit() -> None:
    known = [row for row in ROWS if row.name in CATALOG]
    assert [row.unit for row in known] == [CATALOG[row.name].unit for row in known]
    assert {row.name for row in ROWS} <= CATALOG.keys()


def test_no_metric_of_pods_is_one_of_a_pool() -> None:
    """A name is looked up by its kind, and a person should see from a name what it is of."""
    pods, others = SERVED[MetricKind.PODS], SERVED[MetricKind.OBJECT].keys() | SERVED[MetricKind.EXTERNAL].keys()
    assert not pods.keys() & others


def test_the_demand_in_replicas_is_external() -> None:
    assert [kind for kind, rows in SERVED.items() if DEMAND_REPLICAS in rows] == [MetricKind.EXTERNAL]


def test_a_number_of_one_instant_has_no_window() -> None:
    assert ServedValue(1.0, 2.0).window_seconds is None
