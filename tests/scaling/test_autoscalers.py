"""Which autoscalers scale a pool, and their gauges."""

from __future__ import annotations

from typing import Any

import pytest

from agent.kube.objects import Workload
from agent.scaling.autoscalers import MAX_AGE_SECONDS, MAX_PER_POOL, AutoscalerReport, PoolToScale, reports, scaled_by
from agent.scaling.gauges import gauge_set
from exporters.catalog import autoscalers as rows
from exporters.gauge import GaugeSet
from tests.fakes.autoscalers import autoscaler, autoscaler_report

CHAT = Workload("Deployment", "chat")
OWNED = PoolToScale("chat-pool", "llm", "chat", frozenset({CHAT, Workload("ReplicaSet", "chat-75bf")}))
EMPTY = PoolToScale("chat-pool", "llm", "chat", frozenset())
OTHER = PoolToScale("code-pool", "llm", "", frozenset({Workload("StatefulSet", "code")}))


def external(name: str = "igw_demand_replicas", **labels: str) -> dict[str, Any]:
    return {"type": "External", "external": {"metric": {"name": name, "selector": {"matchLabels": labels}}}}


def described(kind: str, name: str, version: str = "inference.networking.k8s.io/v1") -> dict[str, Any]:
    found = {"kind": kind, "name": name, "apiVersion": version}
    return {"type": "Object", "object": {"metric": {"name": "m"}, "describedObject": found}}


def test_the_target_that_owns_the_pods_of_a_pool_decides() -> None:
    assert scaled_by(autoscaler(), [OWNED, OTHER]) == ["chat-pool"]
    reads_another = autoscaler(metrics=[external(pool="code-pool")])
    assert scaled_by(reads_another, [OWNED, OTHER]) == ["chat-pool"]


@pytest.mark.parametrize("target", [{"kind": "Deployment", "name": "code"}, {"kind": "StatefulSet", "name": "chat"}])
def test_another_target_scales_no_pool_whose_metrics_it_does_not_read(target: dict[str, str]) -> None:
    assert scaled_by(autoscaler(scaleTargetRef=target), [OWNED, OTHER]) == []


def test_an_autoscaler_of_another_namespace_scales_no_pool() -> None:
    assert scaled_by(autoscaler(namespace="elsewhere", metrics=[external()]), [OWNED, OTHER]) == []


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (external(pool="chat-pool"), ["chat-pool"]),
        (external(inference_pool="chat"), ["chat-pool"]),
        (external(inference_pool="code-pool"), ["code-pool"]),
        (external(), ["chat-pool", "code-pool"]),
        (external("queue_of_a_broker", pool="chat-pool"), []),
        (described("InferencePool", "chat"), ["chat-pool"]),
        (described("InferencePool", "chat", ""), ["chat-pool"]),
        (described("InferencePool", "code-pool"), ["code-pool"]),
        (described("InferencePool", "chat", "other.example.com/v1"), []),
        (described("Service", "chat"), []),
        ({"type": "Resource", "resource": {"name": "cpu"}}, []),
    ],
)
def test_where_the_target_owns_no_pod_of_a_pool_the_metrics_decide(metric: Any, expected: list[str]) -> None:
    assert scaled_by(autoscaler(metrics=[metric]), [EMPTY, OTHER]) == expected


def gauges(*found: AutoscalerReport, now: float = 0.0) -> tuple[GaugeSet, dict[str, float], dict[str, str]]:
    made = gauge_set([], now, scalers=found)
    labels = ("pool", "llm", "chat")
    return (
        made,
        {each.metric.name: each.value for each in made.gauges if each.labels == labels},
        {each.metric.name: each.reason for each in made.withheld},
    )


def test_the_gauges_are_what_the_object_says() -> None:
    _, values, withheld = gauges(autoscaler_report())
    assert values == {
        rows.DESIRED.name: 3.0,
        rows.CURRENT.name: 2.0,
        rows.MIN.name: 1.0,
        rows.MAX.name: 4.0,
        rows.ACTIVE.name: 1.0,
    }
    assert withheld == {}


def test_what_the_controller_has_not_written_is_withheld_and_never_zero() -> None:
    _, values, withheld = gauges(AutoscalerReport("pool", autoscaler(status={"desiredReplicas": 0})))
    assert values == {rows.MIN.name: 1.0, rows.MAX.name: 4.0}
    assert withheld == dict.fromkeys((rows.DESIRED.name, rows.CURRENT.name, rows.ACTIVE.name), "no_status")


def test_the_numbers_end_a_while_after_the_api_server_does_not_answer() -> None:
    lost = autoscaler_report(failing_since=10.0)
    assert len(gauges(lost, now=10.0 + MAX_AGE_SECONDS)[1]) == len(list(rows.ROWS))
    _, values, withheld = gauges(lost, now=10.5 + MAX_AGE_SECONDS)
    assert values == {}
    assert withheld == {row.name: "stale" for row in rows.ROWS}


def test_a_pool_has_a_bounded_number_of_autoscalers() -> None:
    many = [(autoscaler(f"chat-{number:03}"), None) for number in range(MAX_PER_POOL + 4)]
    found = reports(reversed(many), [OWNED, OTHER])
    assert [each.autoscaler.name for each in found] == [f"chat-{number:03}" for number in range(MAX_PER_POOL)]
    assert {each.pool for each in found} == {"chat-pool"}
