"""Metrics of the HorizontalPodAutoscalers that scale a pool (`agent.scaling.autoscalers`)."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Metric, Rows

ROWS: Final = Rows()


def _autoscaler(name: str, unit: str, help: str) -> Metric:
    return ROWS.gauge(name, unit, "pool hpa_namespace hpa", help)


DESIRED: Final = _autoscaler(
    "igw_hpa_desired_replicas",
    "replicas",
    "Replicas that the HPA of the pool wants; absent until its controller has written its status",
)
CURRENT: Final = _autoscaler(
    "igw_hpa_current_replicas", "replicas", "Replicas of the HPA's target, as its controller last saw them"
)
MIN: Final = _autoscaler("igw_hpa_min_replicas", "replicas", "minReplicas of the HPA")
MAX: Final = _autoscaler("igw_hpa_max_replicas", "replicas", "maxReplicas of the HPA")
ACTIVE: Final = _autoscaler(
    "igw_hpa_scaling_active",
    "boolean",
    "Condition ScalingActive of the HPA: 0 while it has no metric that it can use, or is switched off; absent while "
    "the condition is absent or Unknown",
)
