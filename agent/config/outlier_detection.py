"""`outlierDetection`: when an endpoint whose requests fail is ejected, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.options import option
from agent.config.values import Boolean, Duration, Number


@dataclass(frozen=True, slots=True)
class OutlierDetectionConfig:
    """Limits of the failures of an endpoint's requests, as far as the proxy reports responses."""

    enabled: bool = option(Boolean(), "off: failures are counted, and change no pick", default=True)
    consecutive_failures: int = option(
        Number(1, 1000, whole=True), "failures in a row after which an endpoint is ejected", 3
    )
    failure_ratio: float = option(
        Number(0.01, 1), "share of failures among recent responses from which an endpoint is ejected", 0.5
    )
    min_requests: float = option(Number(1, 1e6), "fewest recent responses for which failureRatio applies", 10.0)
    base_ejection_time: float = option(
        Duration(0.1, 3600), "the first ejection; each further one takes twice as long", 2.0
    )
    max_ejection_time: float = option(Duration(0.1, 3600), "the longest ejection", 60.0)
    max_ejection_percent: float = option(
        Number(0, 100),
        "percentage of a pool's endpoints that are ejected at most at a time, by the agent and the proxy together; "
        "always at least one",
        50.0,
    )
