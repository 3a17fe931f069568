"""`demand`: how many replicas a pool needs."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.options import option
from agent.config.values import Boolean, Duration, Number


@dataclass(frozen=True, slots=True)
class DemandConfig:
    """How the demand in replicas of a pool is computed. A replica is a pod, or an endpoint that has none."""

    target: float = option(
        Number(0.05, 1), "the part of a replica's capacity and of its batch that is to be used", 0.85
    )
    kv_target: float = option(Number(0.05, 1), "the part of its KV cache that is to be used", 0.9)
    startup_time: float = option(
        Duration(0, 7200), "the time from the request for a replica until it serves; demand looks so far ahead", 300.0
    )
    drain_horizon: float = option(
        Duration(1, 86_400),
        "the time within which a backlog is to be served; at least `startupTime`",
        300.0,
        default_from=lambda scope: max(1.0, float(scope.own["startup_time"])),
        default_text="`startupTime`",
    )
    capacity: float | None = option(
        Number(0.001, 100_000),
        "requests per second that a replica can serve, until that was learnt from saturated ones",
        None,
        unset="unknown until a replica was saturated",
    )
    coverage_floor: float = option(
        Number(0, 1), "with a smaller part of the replicas seen, demand is not below the current replicas", 0.8
    )
    look_ahead: bool = option(Boolean(), "add the trend of the arrivals", default=True)
