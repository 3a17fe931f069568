"""From the pods that a pool selects to its endpoints, and what is wrong with the selection. Pure.

An endpoint is a ready pod and one of the pool's target ports; with several ports (data-parallel ranks) a pod has one
endpoint for each, in the order of the ports, limited by the annotation `llm-d.ai/active-ports`. A pod that is being
deleted, that has no address, or whose label `llm-d.ai/role` is `prefill` has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from agent.config.addresses import join_address
from agent.config.pools import EndpointConfig
from agent.engine_specs import engine_by_label
from agent.kube.objects import PREFILL, ROLE, PodView


class ObjectProblem(NamedTuple):
    """What is wrong with a pool or another object, for a person: `reason` is a word in CamelCase as in an Event,
    `message` names the object and says what to change."""

    reason: str
    message: str


NO_MATCHING_PODS: Final = "NoMatchingPods"
NO_READY_PODS: Final = "NoReadyPods"
PORT_NOT_DECLARED: Final = "TargetPortNotDeclared"
NO_ACTIVE_PORT: Final = "NoActivePort"
UNKNOWN_ENGINE: Final = "UnknownEngine"


class PoolSelection(NamedTuple):
    """Which pods a pool selects, and the ports of its endpoints. `source` names it in messages."""

    source: str
    namespace: str
    match_labels: Mapping[str, str]
    target_ports: tuple[int, ...]


class SelectedEndpoints(NamedTuple):
    """The endpoints by address, the uid of the pod of each, and what is wrong."""

    endpoints: Mapping[str, EndpointConfig]
    uids: Mapping[str, str]
    problems: tuple[ObjectProblem, ...]


def selects(selection: PoolSelection, pod: PodView) -> bool:
    """Whether the pool selects the pod."""
    labels = pod.labels
    return pod.namespace == selection.namespace and all(
        labels.get(name) == value for name, value in selection.match_labels.items()
    )


def endpoints_of(
    selection: PoolSelection,
    pods: Iterable[PodView],
    engine: str,
    engine_labels: Sequence[str],
    engines: frozenset[str],
) -> SelectedEndpoints:
    """The pool's endpoints. `engine` is that of pods without one of the `engine_labels`, or whose label names none of
    `engines`."""
    found: dict[str, EndpointConfig] = {}
    uids: dict[str, str] = {}
    matching = ready = 0
    undeclared: dict[int, str] = {}
    unknown: dict[str, str] = {}
    inactive = ""
    for pod in sorted((pod for pod in pods if selects(selection, pod)), key=lambda pod: pod.key):
        matching += 1
        if not is_destination(pod):
            continue
        ready += 1
        by_label = engine_by_label(pod.labels, engine_labels)
        if by_label is not None and by_label[1] not in engines:
            unknown.setdefault(by_label[1], f"{by_label[0]} of pod {pod.namespace}/{pod.name}")
            by_label = None
        ports = [port for port in selection.target_ports if pod.active_ports is None or port in pod.active_ports]
        if not ports and not inactive:
            inactive = pod.name
        for port in ports:
            if pod.declared_ports and port not in pod.declared_ports:
                undeclared.setdefault(port, pod.name)
            address = join_address(pod.ip, port)
            found[address] = EndpointConfig(
                address=address,
                engine=engine if by_label is None else by_label[1],
                labels=tuple(sorted(pod.labels.items())),
                node=pod.node,
                pod=f"{pod.namespace}/{pod.name}",
                devices=(),
            )
            uids[address] = pod.uid
    return SelectedEndpoints(found, uids, tuple(_problems(selection, matching, ready, undeclared, inactive, unknown)))


def is_destination(pod: PodView) -> bool:
    """Whether requests may be sent to the pod."""
    return bool(pod.ready and pod.ip and not pod.terminating and pod.labels.get(ROLE) != PREFILL)


def _problems(
    selection: PoolSelection,
    matching: int,
    ready: int,
    undeclared: Mapping[int, str],
    inactive: str,
    unknown: Mapping[str, str],
) -> Iterable[ObjectProblem]:
    source, namespace = selection.source, selection.namespace
    if not matching:
        labels = ",".join(f"{name}={value}" for name, value in sorted(selection.match_labels.items()))
        yield ObjectProblem(
            NO_MATCHING_PODS,
            f"{source} selects no pod: no pod of namespace {namespace} has the labels {labels}; correct the selector, "
            "or the labels in the template of the model servers",
        )
    elif not ready:
        yield ObjectProblem(
            NO_READY_PODS,
            f"{source} selects {matching} pods, and none is ready with an address; look at their readiness probes",
        )
    for port, pod in sorted(undeclared.items()):
        yield ObjectProblem(
            PORT_NOT_DECLARED,
            f"{source} has target port {port}, which no container of pod {namespace}/{pod} declares; correct the "
            "target port if the model server does not listen there",
        )
    if inactive:
        yield ObjectProblem(
            NO_ACTIVE_PORT,
            f"the annotation for active ports of pod {namespace}/{inactive} has none of the target ports of {source}; "
            "the pod gets no requests",
        )
    for name, where in sorted(unknown.items()):
        yield ObjectProblem(
            UNKNOWN_ENGINE,
            f"{source}: the label {where} names the engine {name!r}, which is unknown; the pool's engine is used",
        )


def shared_pods(selections: Sequence[PoolSelection], pods: Iterable[PodView]) -> Mapping[str, tuple[str, str, str]]:
    """Pods that two pools select: pool -> the pod's name, the pool's source and the other's. The first pod only."""
    found: dict[str, tuple[str, str, str]] = {}
    for pod in pods:
        owners = [selection.source for selection in selections if selects(selection, pod)]
        for owner in owners[1:]:
            found.setdefault(owner, (pod.name, owners[0], owner))
    return found
