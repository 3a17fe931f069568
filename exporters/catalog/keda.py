"""Metrics of KEDA, which calls the agent as an external scaler."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Rows

ROWS: Final = Rows()

CALLS: Final = ROWS.counter(
    "igw_keda_calls_total",
    "calls",
    "pool rpc result",
    "Calls of KEDA to the external scaler, by method and result; a pool that does not exist is empty",
)
STREAMS: Final = ROWS.add(
    "igw_keda_streams",
    "gauge",
    "streams",
    "",
    "events",
    "Open streams of KEDA: one of activity and one of targets for each trigger of the type external-push",
)
ACTIVATIONS: Final = ROWS.counter(
    "igw_keda_activations_total",
    "activations",
    "pool",
    "Times at which streams of KEDA were sent that a pool has become active",
)
