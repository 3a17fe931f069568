"""HorizontalPodAutoscalers of the real controller: their manifests, what became of them, and what they read."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from agent.serve.metrics_api.paths import CUSTOM, EXTERNAL
from tests.cluster.aggregation import API_SERVICES, SERVICES
from tests.cluster.api import Api, Object
from tests.cluster.changes import Changes
from tests.cluster.control_plane import ControlPlane
from tests.waiting import found

CONTROLLER: Final = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
# Without a window, so that one wrong number shrinks the target at the next sync.
AT_ONCE: Final[Mapping[str, Any]] = {
    "stabilizationWindowSeconds": 0,
    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 1}],
}
WITHIN: Final = 60.0


def of_pods(metric: str, average: int) -> Object:
    return {"type": "Pods", "pods": {"metric": {"name": metric}, "target": _average(average)}}


def of_object(pool: str, metric: str, target: Mapping[str, str]) -> Object:
    version = "inference.networking.k8s.io/v1"
    described = {"apiVersion": version, "kind": "InferencePool", "name": pool}
    return {
        "type": "Object",
        "object": {"metric": {"name": metric}, "describedObject": described, "target": dict(target)},
    }


def external(pool: str, metric: str, average: int) -> Object:
    selector = {"matchLabels": {"pool": pool}}
    return {
        "type": "External",
        "external": {"metric": {"name": metric, "selector": selector}, "target": _average(average)},
    }


def _average(value: int) -> dict[str, str]:
    return {"type": "AverageValue", "averageValue": str(value)}


def autoscaler(namespace: str, name: str, metric: Mapping[str, Any], *, maximum: int) -> Object:
    """One that scales the Deployment of its name from 1 to `maximum`."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 1,
            "maxReplicas": maximum,
            "metrics": [dict(metric)],
            "behavior": {"scaleDown": dict(AT_ONCE), "scaleUp": dict(AT_ONCE)},
        },
    }


class WatchedAutoscalers:
    """The autoscalers of a namespace, by the API server's changes of them and by its audit log."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.namespace = namespace
        self.path = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
        self.changes = Changes(control_plane, self.path)
        self._control_plane = control_plane

    @property
    def _api(self) -> Api:
        return self._control_plane.api

    def desired(self, name: str) -> list[int]:
        """The desired replicas of one, in the order in which its controller wrote them, each number once in a row; 0
        where it has computed none."""
        numbers = [
            state["status"]["desiredReplicas"]
            for state in self.changes.states.get(name, ())
            if state.get("status", {}).get("conditions")
        ]
        return [number for number, before in zip(numbers, [None, *numbers], strict=False) if number != before]

    def history(self, name: str) -> str:
        """Each status of one: its desired and current replicas, and the metric as its controller read it."""
        rows = []
        for state in self.changes.states.get(name, ()):
            status = state.get("status", {})
            read = [
                value for each in status.get("currentMetrics") or () for value in each.values() if value != each["type"]
            ]
            numbers = [each["current"] for each in read if isinstance(each, dict)]
            rows.append(f"{status.get('desiredReplicas')} of {status.get('currentReplicas', 0)} by {numbers}")
        return "; ".join(rows)

    def active(self, name: str) -> Object:
        """Its condition ScalingActive."""
        states = self.changes.states.get(name, ())
        conditions = states[-1].get("status", {}).get("conditions", ()) if states else ()
        return next((each for each in conditions if each["type"] == "ScalingActive"), {})

    async def have(self, names: Collection[str], replicas: int) -> None:
        """Wait until each wants this number."""
        await self._until(lambda name: self.desired(name)[-1:] == [replicas], names, f"{replicas} desired replicas")

    async def are_active(self, names: Collection[str], status: str) -> None:
        """Wait until the condition ScalingActive of each has this status."""
        await self._until(lambda name: self.active(name).get("status") == status, names, f"ScalingActive={status}")

    async def read(self, names: Sequence[str], times: int = 2) -> None:
        """Wait until the controller has requested the metric of each so often from now on, answered or refused."""
        mark = self._control_plane.audit.mark()

        def counted() -> Counter[str]:
            counts: Counter[str] = Counter()
            for record in self._control_plane.audit.records(CONTROLLER, since=mark):
                if record.group in (CUSTOM, EXTERNAL) and record.namespace == self.namespace:
                    path = unquote(record.path)
                    counts.update(name for name in names if f"={name}" in path or f"/{name}/" in path)
            return counts

        await found(
            lambda: asyncio.to_thread(counted),
            lambda counts: all(counts[name] >= times for name in names),
            WITHIN,
            what=f"{times} more reads of each autoscaler",
        )

    async def _until(self, holds: Any, names: Collection[str], what: str) -> None:
        async def missing() -> dict[str, Any]:
            return {name: (self.desired(name), self.active(name)) for name in names if not holds(name)}

        await found(missing, lambda late: not late, WITHIN, what=what)


def api_services(control_plane: ControlPlane) -> Changes:
    """The changes of all APIServices, for `unavailable`."""
    return Changes(control_plane, API_SERVICES)


def unavailable(changes: Changes) -> list[str]:
    """The times at which an APIService of the agent was not Available, since it was first."""
    late = []
    for name in SERVICES:
        seen = False
        for state in changes.states.get(name, ()):
            conditions = state.get("status", {}).get("conditions", ())
            available: Object = next((each for each in conditions if each["type"] == "Available"), {})
            seen = seen or available.get("status") == "True"
            if seen and available.get("status") != "True":
                late.append(f"{name}: {available}")
    return late
