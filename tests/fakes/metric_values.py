"""A source of served metrics with the values that a test sets."""

from __future__ import annotations

from collections.abc import Mapping

from agent.scaling.served_metrics import ServedValue, WithheldMetric
from agent.serve.metrics_api.answer import PodOfEndpoint, PoolOfApi

Value = ServedValue | WithheldMetric
WAITING = "igw_endpoint_waiting_requests"
KV = "igw_endpoint_kv_usage_ratio"
HIT_RATIO = "igw_endpoint_prefix_hit_ratio"
AVERAGE_QUEUE = "llm_d_epp_average_queue_size"
HELD = "igw_flow_held_requests"


class FixedMetrics:
    """Values of endpoints by pool, metric and address; values of pools by pool and metric."""

    def __init__(self) -> None:
        self.pods: dict[tuple[str, str], dict[str, Value]] = {}
        self.pools: dict[tuple[str, str], Value] = {}
        self.externals: dict[tuple[str, str], Value] = {}
        self.reads = 0

    def pod_metrics(self, pool: str, metric: str, now: float) -> Mapping[str, Value]:
        self.reads += 1
        return self.pods.get((pool, metric), {})

    def pool_metric(self, pool: str, metric: str, now: float) -> Value:
        self.reads += 1
        return self.pools.get((pool, metric), WithheldMetric("none_fresh"))

    def external_metric(self, pool: str, metric: str, now: float) -> Value:
        self.reads += 1
        return self.externals.get((pool, metric), WithheldMetric("none_fresh"))


def pool_of(
    name: str, *pods: str, namespace: str = "llm", ports: int = 1, labels: Mapping[str, str] | None = None
) -> PoolOfApi:
    """A pool whose InferencePool has its name; its pods have the label `app=NAME` and these."""
    made = {
        f"{pod}:{8000 + port}": PodOfEndpoint(namespace, pod, {"app": name, **(labels or {})})
        for pod in pods
        for port in range(ports)
    }
    return PoolOfApi(name, namespace, name, made)
