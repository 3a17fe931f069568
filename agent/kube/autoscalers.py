"""HorizontalPodAutoscalers (autoscaling/v2), as far as the agent reads them. Pure.

Field names and types are those of the Kubernetes API (kubernetes.io/docs/reference/kubernetes-api, autoscaling/v2). The
controller writes the whole status at its first sync, conditions included; before it, and for an object that no
controller has seen, the API server shows `desiredReplicas` 0, which is no order. It stays 0 until the controller has
computed a number: while no metric can be read. Go omits `currentReplicas` where it is 0, so that with conditions a
missing one is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from agent.kube.objects import Key, ObjectMeta

AUTOSCALERS: Final = "horizontalpodautoscalers"
AUTOSCALERS_PATH: Final = "/apis/autoscaling/v2/namespaces/{namespace}/" + AUTOSCALERS
SCALING_ACTIVE: Final = "ScalingActive"
ABLE_TO_SCALE: Final = "AbleToScale"
SCALING_DISABLED: Final = "ScalingDisabled"  # reason of ScalingActive: the target was scaled to 0 by hand
NO_SCALE: Final = "FailedGetScale"  # reason of AbleToScale: the target does not exist, or cannot be read
DEFAULT_MIN_REPLICAS: Final = 1
_KNOWN_STATUSES: Final[Mapping[str, bool]] = {"True": True, "False": False}


class SelectorRequirement(Struct, frozen=True, gc=False):
    """One of the `matchExpressions` of a label selector."""

    key: str
    operator: str
    values: list[str] | None = None

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels have what it requires; an operator that Kubernetes does not have matches nothing."""
        value, values = labels.get(self.key), self.values or ()
        match self.operator:
            case "In":
                return value is not None and value in values
            case "NotIn":
                return value is None or value not in values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
        return False


class MetricSelector(Struct, rename="camel", frozen=True, gc=False):
    """A label selector; an empty one matches all labels."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[SelectorRequirement] | None = None

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects an object with these labels."""
        return all(labels.get(key) == value for key, value in (self.match_labels or {}).items()) and all(
            each.matches(labels) for each in self.match_expressions or ()
        )


class TargetRef(Struct, rename="camel", frozen=True, gc=False):
    """An object that is scaled, or that a metric describes."""

    kind: str
    name: str
    api_version: str = ""


class _Identifier(Struct, frozen=True, gc=False):
    name: str
    selector: MetricSelector | None = None


class _ObjectMetric(Struct, rename="camel", frozen=True, gc=False):
    described_object: TargetRef


class _ExternalMetric(Struct, frozen=True, gc=False):
    metric: _Identifier


class _Metric(Struct, frozen=True, gc=False):
    object: _ObjectMetric | None = None
    external: _ExternalMetric | None = None


class _Spec(Struct, rename="camel", frozen=True, gc=False):
    scale_target_ref: TargetRef
    max_replicas: int
    min_replicas: int | None = None
    metrics: list[_Metric] | None = None


class _Condition(Struct, frozen=True, gc=False):
    type: str
    status: str = ""
    reason: str = ""


class _Status(Struct, rename="camel", frozen=True, gc=False):
    desired_replicas: int = 0
    current_replicas: int = 0
    conditions: list[_Condition] | None = None


class _Autoscaler(Struct, frozen=True, gc=False):
    metadata: ObjectMeta
    spec: _Spec
    status: _Status = _Status()


class ExternalName(NamedTuple):
    """An external metric that an autoscaler reads: its name, and the selector of its labels."""

    name: str
    selector: MetricSelector


class Autoscaler(NamedTuple):
    """What the agent keeps of a HorizontalPodAutoscaler. `desired` and `current` are None while its controller has not
    computed them, or cannot read the target; `scaling_active` is None where the condition is absent or Unknown."""

    namespace: str
    name: str
    target: TargetRef
    objects: tuple[TargetRef, ...]
    externals: tuple[ExternalName, ...]
    min_replicas: int
    max_replicas: int
    desired: int | None
    current: int | None
    scaling_active: bool | None

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.namespace, self.name


_AUTOSCALERS: Final = msgspec.json.Decoder(_Autoscaler)


def decode(raw: Raw) -> Autoscaler:
    """An autoscaler from its JSON. Raises ValidationError where a field has another type than Kubernetes gives it."""
    found = _AUTOSCALERS.decode(raw)
    spec, status = found.spec, found.status
    metrics = spec.metrics or ()
    conditions = {each.type: each for each in status.conditions or ()}
    able, active = conditions.get(ABLE_TO_SCALE), conditions.get(SCALING_ACTIVE)
    counted = bool(conditions) and not (able is not None and able.status == "False" and able.reason == NO_SCALE)
    ordered = status.desired_replicas > 0 or (
        active is not None and (active.status == "True" or active.reason == SCALING_DISABLED)
    )
    return Autoscaler(
        found.metadata.namespace,
        found.metadata.name,
        spec.scale_target_ref,
        tuple(each.object.described_object for each in metrics if each.object is not None),
        tuple(_externals(metrics)),
        DEFAULT_MIN_REPLICAS if spec.min_replicas is None else spec.min_replicas,
        spec.max_replicas,
        status.desired_replicas if counted and ordered else None,
        status.current_replicas if counted else None,
        None if active is None else _KNOWN_STATUSES.get(active.status),
    )


def _externals(metrics: Iterable[_Metric]) -> Iterable[ExternalName]:
    for each in metrics:
        if each.external is not None:
            metric = each.external.metric
            yield ExternalName(metric.name, metric.selector or MetricSelector())
