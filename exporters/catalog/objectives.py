"""Metrics of the objectives and the flow headers of requests."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Rows

ROWS: Final = Rows()

UNKNOWN: Final = ROWS.counter(
    "igw_unknown_objectives_total",
    "requests",
    "pool",
    "Requests that name an objective which neither the configuration nor an object has: their priority is 0",
)
IGNORED: Final = ROWS.counter(
    "igw_flow_headers_ignored_total",
    "headers",
    "pool header reason",
    "Headers of objective, caller, TTL and deadline whose value is not used, by header and reason; of one that was "
    "repeated the last value is used",
)
