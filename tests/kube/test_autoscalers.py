"""What the agent reads of a HorizontalPodAutoscaler, and what a pod belongs to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from agent.kube.autoscalers import decode
from agent.kube.objects import ObjectMeta, OwnerReference, Workload, workloads_of
from tests.fakes.autoscalers import DEPLOYMENT, autoscaler, autoscaler_document


def condition(kind: str, status: str, reason: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason}


def status(*conditions: dict[str, str], **numbers: int) -> dict[str, Any]:
    return {**numbers, "conditions": list(conditions)}


def test_the_numbers_of_the_status_are_read_and_a_missing_one_is_zero_once_there_are_conditions() -> None:
    found = autoscaler()
    assert (found.desired, found.current, found.min_replicas, found.max_replicas) == (3, 2, 1, 4)
    assert found.scaling_active is True
    for active in (condition("ScalingActive", "True"), condition("ScalingActive", "False", "ScalingDisabled")):
        at_zero = autoscaler(status=status(condition("AbleToScale", "True"), active, desiredReplicas=0))
        assert (at_zero.desired, at_zero.current) == (0, 0)


def test_the_zero_of_a_controller_that_could_not_read_a_metric_yet_is_no_order() -> None:
    failed = condition("ScalingActive", "False", "FailedGetExternalMetric")
    found = autoscaler(status=status(condition("AbleToScale", "True"), failed, desiredReplicas=0, currentReplicas=2))
    assert (found.desired, found.current, found.scaling_active) == (None, 2, False)


def test_what_no_controller_has_written_is_unknown() -> None:
    found = autoscaler(status={"desiredReplicas": 0})
    assert (found.desired, found.current, found.scaling_active) == (None, None, None)
    document = autoscaler_document()
    del document["status"]
    assert decode(Raw(msgspec.json.encode(document))).desired is None


def test_the_numbers_of_a_target_that_does_not_exist_are_unknown() -> None:
    lost = status(condition("AbleToScale", "False", "FailedGetScale"), desiredReplicas=3, currentReplicas=2)
    assert (autoscaler(status=lost).desired, autoscaler(status=lost).current) == (None, None)
    refused = status(condition("AbleToScale", "False", "FailedUpdateScale"), desiredReplicas=3, currentReplicas=2)
    assert autoscaler(status=refused).desired == 3


@pytest.mark.parametrize(("written", "read"), [("True", True), ("False", False), ("Unknown", None), ("", None)])
def test_scaling_active_is_unknown_unless_it_is_true_or_false(written: str, read: bool | None) -> None:
    assert autoscaler(status=status(condition("ScalingActive", written))).scaling_active is read


def test_without_min_replicas_it_is_one_as_the_api_documents() -> None:
    assert autoscaler(minReplicas=None).min_replicas == 1
    assert autoscaler(minReplicas=0).min_replicas == 0


def test_an_object_with_a_field_of_another_type_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        autoscaler(maxReplicas="many")


def selects(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    metric = {"type": "External", "external": {"metric": {"name": "m", "selector": selector}}}
    ((_, found),) = autoscaler(metrics=[metric]).externals
    return found.matches(labels)


def test_a_selector_of_a_metric_matches_as_kubernetes_documents_it() -> None:
    def expression(operator: str, *values: str) -> dict[str, Any]:
        return {"matchExpressions": [{"key": "pool", "operator": operator, "values": list(values)}]}

    chat = {"pool": "chat"}
    assert selects(None, chat)
    assert selects({"matchLabels": chat}, chat)
    assert not selects({"matchLabels": {"pool": "code"}}, chat)
    assert selects(expression("In", "chat", "code"), chat)
    assert not selects(expression("In", "code"), chat)
    assert not selects(expression("NotIn", "chat"), chat)
    assert selects(expression("NotIn", "code"), chat)
    assert selects(expression("NotIn", "code"), {})
    assert selects(expression("Exists"), chat)
    assert not selects(expression("DoesNotExist"), chat)
    assert selects(expression("DoesNotExist"), {})
    assert not selects(expression("Near", "chat"), chat)


def meta(labels: dict[str, str], *owners: OwnerReference) -> ObjectMeta:
    return ObjectMeta("pod", labels=labels, owner_references=list(owners))


def test_a_pod_belongs_to_its_controller_to_its_deployment_and_to_its_leader_worker_set() -> None:
    replica_set = OwnerReference("ReplicaSet", "chat-75bf", controller=True)
    assert list(workloads_of(meta({"pod-template-hash": "75bf"}, replica_set))) == [
        Workload("ReplicaSet", "chat-75bf"),
        Workload("Deployment", "chat"),
    ]
    assert list(workloads_of(meta({}, replica_set))) == [Workload("ReplicaSet", "chat-75bf")]
    leader = OwnerReference("StatefulSet", "chat", controller=True)
    assert list(workloads_of(meta({"leaderworkerset.sigs.k8s.io/name": "chat"}, leader))) == [
        Workload("StatefulSet", "chat"),
        Workload("LeaderWorkerSet", "chat"),
    ]
    assert list(workloads_of(meta({}, OwnerReference("Node", "n1")))) == []


@given(st.text("abc-", min_size=1), st.text("0123456789bcdf", min_size=1))
def test_the_name_of_a_deployment_is_that_of_its_replica_set_without_the_hash(name: str, template: str) -> None:
    owner = OwnerReference("ReplicaSet", f"{name}-{template}", controller=True)
    assert Workload("Deployment", name) in workloads_of(meta({"pod-template-hash": template}, owner))


def test_the_target_has_its_kind_and_its_name() -> None:
    target = autoscaler().target
    assert (target.kind, target.name) == (DEPLOYMENT["kind"], DEPLOYMENT["name"])
