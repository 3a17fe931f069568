"""The Kubernetes objects that the agent reads, with the fields that it reads of them. Pure.

An object of the API server has far more fields; they are skipped without being decoded. Field names and types are those
of the Kubernetes API (core/v1) and of the Gateway API inference extension (InferencePool v1). InferenceObjective and
InferenceModelRewrite are in `agent.kube.objectives`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec import Struct

ACTIVE_PORTS: Final = "llm-d.ai/active-ports"
ACTIVE_PORTS_OLD: Final = "inference.networking.k8s.io/active-ports"
ROLE: Final = "llm-d.ai/role"
PREFILL: Final = "prefill"

Key = tuple[str, str]  # namespace and name


class ObjectMeta(Struct, rename="camel", frozen=True, gc=False):
    """`metadata` of any object."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class ObjectRef(NamedTuple):
    """One object of the API server; `uid` is empty where it is not known. As text: kind, namespace and name."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""

    @property
    def anonymous(self) -> ObjectRef:
        """The reference without the uid: equal for all objects that had this name one after another."""
        return self._replace(uid="")

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class ContainerPort(Struct, rename="camel", frozen=True, gc=False):
    """A port that a container declares; a container may listen on others too."""

    container_port: int


class Container(Struct, rename="camel", frozen=True, gc=False):
    """A container of a pod."""

    ports: list[ContainerPort] | None = None


class PodSpec(Struct, rename="camel", frozen=True, gc=False):
    """`spec` of a Pod."""

    node_name: str = ""
    containers: list[Container] | None = None


class PodCondition(Struct, rename="camel", frozen=True, gc=False):
    """A condition of a pod."""

    type: str
    status: str


class PodStatus(Struct, rename={"pod_ip": "podIP"}, frozen=True, gc=False):
    """`status` of a Pod."""

    phase: str = ""
    pod_ip: str = ""
    conditions: list[PodCondition] | None = None


class Pod(Struct, rename="camel", frozen=True, gc=False):
    """A Pod."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class PodView(NamedTuple):
    """What the agent keeps of a Pod. `declared_ports` are those of its containers, empty where none declares any;
    `active_ports` those that its annotation allows, None without one."""

    namespace: str
    name: str
    uid: str
    ip: str
    node: str
    ready: bool
    terminating: bool
    labels: Mapping[str, str]
    declared_ports: frozenset[int]
    active_ports: frozenset[int] | None

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.namespace, self.name


class LabelSelector(Struct, rename="camel", frozen=True, gc=False):
    """The selector of an InferencePool: labels and values that a pod must all have."""

    match_labels: dict[str, str]


class TargetPort(Struct, frozen=True, gc=False):
    """A port of the pool's pods."""

    number: int


class InferencePoolSpec(Struct, rename="camel", frozen=True, gc=False):
    """`spec` of an InferencePool."""

    selector: LabelSelector
    target_ports: list[TargetPort]


class InferencePool(Struct, rename="camel", frozen=True, gc=False):
    """An InferencePool."""

    metadata: ObjectMeta
    spec: InferencePoolSpec


def pod_view(pod: Pod) -> PodView:
    """What the agent keeps of a pod."""
    meta, spec, status = pod.metadata, pod.spec, pod.status
    ready = any(each.type == "Ready" and each.status == "True" for each in status.conditions or ())
    declared = {port.container_port for container in spec.containers or () for port in container.ports or ()}
    annotations = meta.annotations or {}
    active = annotations.get(ACTIVE_PORTS, annotations.get(ACTIVE_PORTS_OLD))
    return PodView(
        meta.namespace,
        meta.name,
        meta.uid,
        status.pod_ip,
        spec.node_name,
        ready,
        meta.deletion_timestamp is not None or status.phase in ("Succeeded", "Failed"),
        meta.labels or {},
        frozenset(declared),
        None if active is None else ports_of(active),
    )


def ports_of(text: str) -> frozenset[int]:
    """The ports of a comma-separated list; what is not a port is left out."""
    words = (word.strip() for word in text.split(","))
    numbers = (int(word) for word in words if word.isascii() and word.isdecimal() and len(word) <= 5)
    return frozenset(number for number in numbers if 1 <= number <= 65535)
