"""The Kubernetes objects that the agent reads, with the fields that it reads of them. Pure.

An object of the API server has far more fields; they are skipped without being decoded. Field names and types are those
of the Kubernetes API (core/v1) and of the Gateway API inference extension (InferencePool v1). InferenceObjective and
InferenceModelRewrite are in `agent.kube.objectives`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from msgspec import Struct

ACTIVE_PORTS: Final = "llm-d.ai/active-ports"
ACTIVE_PORTS_OLD: Final = "inference.networking.k8s.io/active-ports"
ROLE: Final = "llm-d.ai/role"
PREFILL: Final = "prefill"

Key = tuple[str, str]  # namespace and name
LEADER_WORKER_SET: Final = "leaderworkerset.sigs.k8s.io/name"  # label of its pods
POD_TEMPLATE_HASH: Final = (
    "pod-template-hash"  # label of the pods of a Deployment, and the end of its ReplicaSet's name
)


class OwnerReference(Struct, frozen=True, gc=False):
    """An owner of an object; `controller` is the one that creates it and deletes it."""

    kind: str
    name: str
    controller: bool | None = None


class Workload(NamedTuple):
    """What pods belong to and what may be scaled, in the namespace of the pods: Deployment, StatefulSet and others."""

    kind: str
    name: str


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
    owner_references: list[OwnerReference] | None = None


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
    `active_ports` those that its annotation allows, None without one; `workloads` those that it belongs to."""

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
    workloads: tuple[Workload, ...] = ()

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
        tuple(workloads_of(meta)),
    )


def workloads_of(meta: ObjectMeta) -> Iterator[Workload]:
    """What a pod belongs to: its controller; the Deployment of a ReplicaSet, whose name ends with the hash of the pod's
    template; the LeaderWorkerSet that its label names."""
    labels = meta.labels or {}
    for owner in meta.owner_references or ():
        if owner.controller:
            yield Workload(owner.kind, owner.name)
            template = labels.get(POD_TEMPLATE_HASH, "")
            if owner.kind == "ReplicaSet" and template and owner.name.endswith(f"-{template}"):
                yield Workload("Deployment", owner.name[: -len(template) - 1])
    if LEADER_WORKER_SET in labels:
        yield Workload("LeaderWorkerSet", labels[LEADER_WORKER_SET])


def ports_of(text: str) -> frozenset[int]:
    """The ports of a comma-separated list; what is not a port is left out."""
    words = (word.strip() for word in text.split(","))
    numbers = (int(word) for word in words if word.isascii() and word.isdecimal() and len(word) <= 5)
    return frozenset(number for number in numbers if 1 <= number <= 65535)
