"""A source of served metrics that has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.scaling.served_metrics import MetricSource, ServedValue, WithheldMetric

_NONE: Final = WithheldMetric("not_reported", "this agent computes no metrics for autoscalers")


class _NoMetrics:
    """Withholds every metric."""

    def pod_metrics(self, pool: str, metric: str, now: float) -> Mapping[str, ServedValue | WithheldMetric]:
        """No endpoint has a value."""
        return {}

    def pool_metric(self, pool: str, metric: str, now: float) -> ServedValue | WithheldMetric:
        """Withheld."""
        return _NONE

    def external_metric(self, pool: str, metric: str, now: float) -> ServedValue | WithheldMetric:
        """Withheld."""
        return _NONE


NO_METRICS: Final[MetricSource] = _NoMetrics()
