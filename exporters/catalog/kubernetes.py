"""Metrics of the objects of a Kubernetes cluster that the agent reads beside its endpoints, and of what it writes."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Rows

ROWS: Final = Rows()

OBJECT_PROBLEMS: Final = ROWS.add(
    "igw_kubernetes_object_problems",
    "gauge",
    "objects",
    "kind reason",
    "events",
    "Objectives, rewrites and pools that need a correction now, by kind and reason; the log names them",
)
OBJECT_PROBLEMS_FOUND: Final = ROWS.counter(
    "igw_kubernetes_object_problems_found_total",
    "problems",
    "kind reason",
    "Problems with objectives, rewrites and pools that have begun, by kind and reason",
)
WRITES: Final = ROWS.counter(
    "igw_kubernetes_writes_total",
    "writes",
    "what result",
    "Kubernetes Events and conditions (what: event, condition) that were written, by result: ok, forbidden (a missing "
    "permission), refused (the API server does not take it) or failed (no usable answer; tried again)",
)
