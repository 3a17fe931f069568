"""Metrics of demand: how many replicas a pool needs, and the inputs of that number (`agent.scaling.demand`)."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Metric, Rows

ROWS: Final = Rows()


def _pool(name: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(name, unit, "pool", help)


DEMAND: Final = _pool(
    "igw_demand_replicas",
    "replicas",
    "Replicas that the pool needs; an HPA scales on it as an External metric with the AverageValue 1",
)
NEED: Final = ROWS.gauge(
    "igw_demand_need_replicas",
    "replicas",
    "pool need",
    "Replicas that one part of the load needs (rate, slots, kv_cache, backlog); demand is the largest",
)
CURRENT: Final = _pool("igw_demand_current_replicas", "replicas", "Replicas of the pool, those that load included")
LOADING: Final = _pool("igw_demand_loading_replicas", "replicas", "Replicas of the pool that are not ready yet")
COVERAGE: Final = _pool(
    "igw_demand_coverage_ratio",
    "ratio",
    "Part of the ready replicas that demand sees; below demand.coverageFloor it is not below the current replicas",
)
PARTIAL: Final = _pool(
    "igw_demand_partial", "boolean", "1 while demand is held at the current replicas or above, as too little is known"
)
ARRIVALS: Final = _pool(
    "igw_demand_arrivals_per_second", "requests per second", "Requests that arrive per second, mean of the last minute"
)
EXPECTED: Final = _pool(
    "igw_demand_expected_arrivals_per_second",
    "requests per second",
    "Requests per second that are expected when a replica that is requested now serves",
)
CAPACITY: Final = ROWS.gauge(
    "igw_demand_capacity_requests_per_second",
    "requests per second",
    "pool source",
    "Requests per second of one replica: learnt while replicas were saturated, or declared",
)
BACKLOG: Final = _pool(
    "igw_demand_backlog_requests", "requests", "Requests that wait at the servers that are seen, and in the agents"
)
