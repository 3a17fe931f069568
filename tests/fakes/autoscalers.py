"""HorizontalPodAutoscalers for tests."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from agent.kube.autoscalers import Autoscaler, decode
from agent.scaling.autoscalers import AutoscalerReport

Document = dict[str, Any]
DEPLOYMENT: Document = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}


def autoscaler_document(name: str = "chat", namespace: str = "llm", **changes: Any) -> Document:
    """An object of the API server whose controller wants three of two replicas; `changes` replace parts of its spec,
    `status` the whole status."""
    conditions = [{"type": "AbleToScale", "status": "True"}, {"type": "ScalingActive", "status": "True"}]
    status = {"desiredReplicas": 3, "currentReplicas": 2, "conditions": conditions}
    status = changes.pop("status", status)
    spec = {"scaleTargetRef": DEPLOYMENT, "minReplicas": 1, "maxReplicas": 4, **changes}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec, "status": status}


def autoscaler(name: str = "chat", namespace: str = "llm", **changes: Any) -> Autoscaler:
    """The same, read."""
    return decode(Raw(msgspec.json.encode(autoscaler_document(name, namespace, **changes))))


def autoscaler_report(pool: str = "pool", name: str = "chat", failing_since: float | None = None) -> AutoscalerReport:
    """The report of one that scales a pool."""
    return AutoscalerReport(pool, autoscaler(name), failing_since)
