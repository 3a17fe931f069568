"""From the pods that a pool selects to its endpoints, and what is wrong with the selection. Pure.

An endpoint is a ready pod and one of the pool's target ports; with several ports (data-parallel ranks) a pod has one
endpoint for each, in the order of the ports, limited by the annotation `llm-d.ai/active-ports`. A pod that is being
deleted, that has no address, or whose label `llm-d.ai/role` is `prefill` has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from agent.config.addresses import join_address
from agent.config.pools import EndpointConfig
from agent.engine_specs import engine_by_label
from agent.kube.objects import PREFILL, ROLE, Key, PodView, Workload


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
POD_IN_TWO_POOLS: Final = "PodInTwoPools"
NO_EXPORTER_POD: Final = "NoExporterPod"
POOL_NOT_FOUND: Final = "InferencePoolNotFound"
KIND_NOT_INSTALLED: Final = "KindNotInstalled"
INVALID_OBJECT: Final = "InvalidObject"
API_UNAVAILABLE: Final = "ApiUnavailable"
UNAUTHORIZED: Final = "Unauthorized"
FORBIDDEN: Final = "Forbidden"
NO_CLUSTER: Final = "NoCluster"
# Every reason for which a problem with a pool's source is reported, in the order of docs/reference/metrics.md.
SOURCE_REASONS: Final = (
    NO_CLUSTER,
    API_UNAVAILABLE,
    UNAUTHORIZED,
    FORBIDDEN,
    KIND_NOT_INSTALLED,
    POOL_NOT_FOUND,
    INVALID_OBJECT,
    NO_MATCHING_PODS,
    NO_READY_PODS,
    PORT_NOT_DECLARED,
    NO_ACTIVE_PORT,
    UNKNOWN_ENGINE,
    POD_IN_TWO_POOLS,
    NO_EXPORTER_POD,
)


class PoolSelection(NamedTuple):
    """Which pods a pool selects, and the ports of its endpoints. `source` names it in messages."""

    source: str
    namespace: str
    match_labels: Mapping[str, str]
    target_ports: tuple[int, ...]


class SelectedEndpoints(NamedTuple):
    """The endpoints by address, the uid of the pod of each, what is wrong, how many pods are not ready, and the
    workloads that own the pods, ready or not: the last ones that did, where there is no pod now."""

    endpoints: Mapping[str, EndpointConfig]
    uids: Mapping[str, str]
    problems: tuple[ObjectProblem, ...]
    loading: int = 0
    workloads: frozenset[Workload] = frozenset()


def labels_in_words(labels: Mapping[str, str]) -> str:
    """Labels as a selector of the API, such as `app=chat,tier=gold`."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


def selects(selection: PoolSelection, pod: PodView) -> bool:
    """Whether the pool selects the pod."""
    labels = pod.labels
    return pod.namespace == selection.namespace and all(
        labels.get(name) == value for name, value in selection.match_labels.items()
    )


class _Part(NamedTuple):
    """What one pod adds to the endpoints and to the problems. `unknown`: the engine that its label names, and where."""

    endpoints: tuple[EndpointConfig, ...] = ()
    uid: str = ""
    ready: bool = False
    undeclared: tuple[int, ...] = ()
    inactive: bool = False
    unknown: tuple[str, str] | None = None
    loading: bool = False
    workloads: tuple[Workload, ...] = ()


class PodEndpoints:
    """The endpoints of a selection, kept pod by pod, so that a change of one pod costs no work for the others.

    `engine` is that of pods without one of the `engine_labels`, or whose label names none of `engines`.
    """

    def __init__(
        self, selection: PoolSelection, engine: str, engine_labels: Sequence[str], engines: frozenset[str]
    ) -> None:
        self.selection = selection
        self._engine = engine
        self._engine_labels = engine_labels
        self._engines = engines
        self._parts: dict[Key, _Part] = {}
        self._owners: dict[str, dict[Key, EndpointConfig]] = {}  # address -> pods; more than one for a moment at most
        self._endpoints: dict[str, EndpointConfig] = {}
        self._uids: dict[str, str] = {}
        self._ready = 0
        self._loading = 0
        self._workloads: Counter[Workload] = Counter()  # the number of pods of each
        self._last_workloads: frozenset[Workload] = frozenset()
        self._faulty: set[Key] = set()  # pods with something wrong

    def update(self, key: Key, pod: PodView | None) -> None:
        """The pod as it is now; None for one that is gone."""
        before = self._parts.pop(key, None)
        after = None if pod is None or not selects(self.selection, pod) else self._part(pod)
        if after is not None:
            self._parts[key] = after
        self._ready += (after is not None and after.ready) - (before is not None and before.ready)
        self._loading += (after is not None and after.loading) - (before is not None and before.loading)
        self._count_workloads(before, after)
        self._faulty.discard(key)
        if after is not None and (after.undeclared or after.inactive or after.unknown):
            self._faulty.add(key)
        if before is not None:
            for endpoint in before.endpoints:
                self._remove(endpoint.address, key)
        if after is not None:
            for endpoint in after.endpoints:
                self._owners.setdefault(endpoint.address, {})[key] = endpoint
                self._settle(endpoint.address)

    def selected(self) -> SelectedEndpoints:
        """The endpoints now; later changes do not change what was returned."""
        return SelectedEndpoints(
            dict(self._endpoints), dict(self._uids), tuple(self._problems()), self._loading, self._last_workloads
        )

    def _count_workloads(self, before: _Part | None, after: _Part | None) -> None:
        """A pod is added, changed or gone. A workload that is scaled to zero is remembered until another has pods."""
        if (before.workloads if before else ()) == (after.workloads if after else ()):
            return
        if after is not None:
            self._workloads.update(after.workloads)
        if before is not None:
            self._workloads.subtract(before.workloads)
        present = frozenset(each for each, count in self._workloads.items() if count > 0)
        self._workloads = Counter({each: self._workloads[each] for each in present})
        self._last_workloads = present or self._last_workloads

    def _remove(self, address: str, key: Key) -> None:
        owners = self._owners[address]
        del owners[key]
        if owners:
            self._settle(address)
        else:
            del self._owners[address], self._endpoints[address], self._uids[address]

    def _settle(self, address: str) -> None:
        """Of several pods with one address, the last by its name counts."""
        owners = self._owners[address]
        key = next(iter(owners)) if len(owners) == 1 else max(owners)
        self._endpoints[address] = owners[key]
        self._uids[address] = self._parts[key].uid

    def _part(self, pod: PodView) -> _Part:
        if not is_destination(pod):
            loading = not (pod.ready or pod.terminating or pod.labels.get(ROLE) == PREFILL)
            return _Part(loading=loading, workloads=pod.workloads)
        by_label = engine_by_label(pod.labels, self._engine_labels)
        unknown = None
        if by_label is not None and by_label[1] not in self._engines:
            unknown = (by_label[1], f"{by_label[0]} of pod {pod.namespace}/{pod.name}")
            by_label = None
        ports = self.selection.target_ports
        if pod.active_ports is not None:
            ports = tuple(port for port in ports if port in pod.active_ports)
        name = f"{pod.namespace}/{pod.name}"
        labels = tuple(sorted(pod.labels.items()))
        engine = self._engine if by_label is None else by_label[1]
        endpoints = tuple(
            EndpointConfig(join_address(pod.ip, port), engine, labels, pod.node, name, ()) for port in ports
        )
        declared = pod.declared_ports
        undeclared = tuple(port for port in ports if port not in declared) if declared else ()
        return _Part(endpoints, pod.uid, True, undeclared, not ports, unknown, workloads=pod.workloads)

    def _problems(self) -> Iterable[ObjectProblem]:
        undeclared: dict[int, str] = {}
        unknown: dict[str, str] = {}
        inactive = ""
        for key in sorted(self._faulty):
            part = self._parts[key]
            for port in part.undeclared:
                undeclared.setdefault(port, key[1])
            if part.unknown is not None:
                unknown.setdefault(*part.unknown)
            if part.inactive and not inactive:
                inactive = key[1]
        return _problems(self.selection, len(self._parts), self._ready, undeclared, inactive, unknown)


def endpoints_of(
    selection: PoolSelection,
    pods: Iterable[PodView],
    engine: str,
    engine_labels: Sequence[str],
    engines: frozenset[str],
) -> SelectedEndpoints:
    """The endpoints of these pods at once; see `PodEndpoints`."""
    found = PodEndpoints(selection, engine, engine_labels, engines)
    for pod in pods:
        found.update(pod.key, pod)
    return found.selected()


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
        labels = labels_in_words(selection.match_labels)
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
