"""Metrics of the sources of endpoints that change by themselves: InferencePools and selected pods.

A pool whose endpoints the configuration lists has none of these series.
"""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Rows

ROWS: Final = Rows()

AGE: Final = ROWS.gauge(
    "igw_discovery_age_seconds",
    "seconds",
    "pool",
    "Time since the pool's endpoints were last known to be those that the API server has; 0 while they are",
)
PROBLEMS: Final = ROWS.gauge(
    "igw_discovery_problems",
    "problems",
    "pool reason",
    "What is wrong now with the source of the pool's endpoints, by reason; /v1/state has the objects and the remedies",
)
PROBLEMS_FOUND: Final = ROWS.counter(
    "igw_discovery_problems_total",
    "problems",
    "pool reason",
    "Problems with the source of the pool's endpoints that have begun, by reason",
)
