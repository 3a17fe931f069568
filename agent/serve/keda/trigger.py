"""What the metadata of a trigger of a ScaledObject selects: a pool, a metric, and their thresholds. Pure.

KEDA sends the metadata of a trigger with each call, its own keys among them. A key that is of neither is refused: with
`activationTreshold` the pool would be scaled by another rule than the one that was written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from math import isfinite
from typing import Final, NamedTuple

from agent.scaling.served_metrics import DEMAND_REPLICAS, SERVED, MetricKind, MetricRow

POOL: Final = "pool"
METRIC: Final = "metric"
THRESHOLD: Final = "threshold"
ACTIVATION: Final = "activationThreshold"
KEYS: Final = (POOL, METRIC, THRESHOLD, ACTIVATION)
# Keys that KEDA itself reads from the metadata of these triggers (keda.sh, external scalers).
KEYS_OF_KEDA: Final = frozenset({"scalerAddress", "enableTLS", "unsafeSsl", "caCert", "tlsCertFile", "timeout"})
# Kinds that are one number of a pool; a metric of both is the same number.
_KINDS: Final = (MetricKind.EXTERNAL, MetricKind.OBJECT)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LISTED: Final = 12  # names in an error message
_SHOWN: Final = 64  # characters of a value in an error message


class Trigger(NamedTuple):
    """What one trigger selects. `activation` is None where the trigger is active while the pool has requests, else it
    is active while the metric is above the number, or requests are held."""

    pool: str
    metric: MetricRow
    threshold: float
    activation: float | None


class BadTrigger(Exception):
    """The metadata select nothing. `reason` is one of REASONS; the text says what to change."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


UNKNOWN_POOL: Final = "unknown_pool"
UNKNOWN_METRIC: Final = "unknown_metric"
BAD_METADATA: Final = "bad_metadata"
REASONS: Final = (UNKNOWN_POOL, UNKNOWN_METRIC, BAD_METADATA)


def served_metric(name: str) -> MetricRow | None:
    """The row of a metric that is one number of a pool; None where there is none of this name."""
    for kind in _KINDS:
        row = SERVED[kind].get(name)
        if row is not None:
            return row
    return None


def metric_names() -> list[str]:
    """The names of all metrics that a trigger can select."""
    return sorted({name for kind in _KINDS for name in SERVED[kind]})


def read_trigger(metadata: Mapping[str, str], pools: Collection[str]) -> Trigger:
    """What these metadata select of the pools of these names. Raises BadTrigger."""
    for key in sorted(metadata.keys() - KEYS_OF_KEDA - set(KEYS)):
        raise BadTrigger(BAD_METADATA, f"unknown metadata {_shown(key)}; there are {', '.join(KEYS)}")
    pool = _pool(metadata.get(POOL, ""), pools)
    name = metadata.get(METRIC, "") or DEMAND_REPLICAS
    row = served_metric(name)
    if row is None:
        if name in SERVED[MetricKind.PODS]:
            raise BadTrigger(
                UNKNOWN_METRIC, f"metric {name} is of each pod; KEDA needs one of {_names(metric_names())}"
            )
        raise BadTrigger(UNKNOWN_METRIC, f"unknown metric {_shown(name)}; there are {_names(metric_names())}")
    threshold = _number(THRESHOLD, metadata.get(THRESHOLD, ""))
    if threshold is None:
        if name != DEMAND_REPLICAS:
            raise BadTrigger(BAD_METADATA, f"set {THRESHOLD}: how much of {name} one replica is to have")
        threshold = 1.0  # demand is a number of replicas
    if threshold <= 0:
        raise BadTrigger(BAD_METADATA, f"{THRESHOLD} is {metadata[THRESHOLD][:_SHOWN]}; write a number above 0")
    activation = _number(ACTIVATION, metadata.get(ACTIVATION, ""))
    if activation is not None and activation < 0:
        raise BadTrigger(BAD_METADATA, f"{ACTIVATION} is {metadata[ACTIVATION][:_SHOWN]}; write a number from 0 on")
    return Trigger(pool, row, threshold, activation)


def _pool(name: str, pools: Collection[str]) -> str:
    if name in pools:
        return name
    if name:
        raise BadTrigger(UNKNOWN_POOL, f"unknown pool {_shown(name)}; there are {_names(sorted(pools))}")
    if len(pools) == 1:
        return next(iter(pools))
    raise BadTrigger(BAD_METADATA, f"set {POOL} to one of {_names(sorted(pools))}")


def _number(key: str, text: str) -> float | None:
    """The number of a key; None where the text is empty. Raises BadTrigger."""
    if not text:
        return None
    number = float(text) if _NUMBER.fullmatch(text) else float("nan")
    if not isfinite(number):
        raise BadTrigger(BAD_METADATA, f"{key} is {_shown(text)}; write a number")
    return number


def _names(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _shown(text: str) -> str:
    return repr(text[:_SHOWN])
