"""Endpoints from the API server: the ready pods of an InferencePool, or of a label selector.

    InferencePool --selector, target ports--> pods --ready, addresses--> endpoints
                       (or the configuration's)

While the API server does not answer, the last endpoints stay. An InferencePool that is deleted has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from agent.discovery.endpoints import EndpointSet
from agent.kube.cache import ObjectCache, decoder_of
from agent.kube.cluster import PODS_PATH, POOLS_PATH, Cluster
from agent.kube.errors import NoCluster
from agent.kube.informer import Informer, InformerStatus
from agent.kube.objects import InferencePool, Pod, PodView, pod_view
from agent.kube.pool_endpoints import ObjectProblem, PoolSelection, endpoints_of

if TYPE_CHECKING:
    from agent.kube.client import KubeClient

RETRY_SECONDS: Final = 5.0  # between two tries to find a cluster's configuration
POOL_NOT_FOUND: Final = "InferencePoolNotFound"
KIND_NOT_INSTALLED: Final = "KindNotInstalled"
INVALID_OBJECT: Final = "InvalidObject"
API_UNAVAILABLE: Final = "ApiUnavailable"
NO_CLUSTER: Final = "NoCluster"

_POD: Final = decoder_of(Pod)


class PodSource(NamedTuple):
    """Where a pool's pods come from: an InferencePool by name, or labels and ports. `engine` is that of pods without
    one of the `engine_labels`, or whose label names none of `engines`."""

    namespace: str
    inference_pool: str
    match_labels: tuple[tuple[str, str], ...]
    target_ports: tuple[int, ...]
    engine: str
    engine_labels: tuple[str, ...]
    engines: frozenset[str]


class SourceReport(NamedTuple):
    """What is wrong with a pool's source now; empty when nothing is."""

    problems: tuple[ObjectProblem, ...]


class KubernetesDiscovery:
    """The endpoints of one pool. `report` is called with every change of what is wrong."""

    name = "kubernetes"

    def __init__(self, source: PodSource, cluster: Cluster, report: Callable[[SourceReport], None]) -> None:
        self._source = source
        self._cluster = cluster
        self._report = report
        self._reported: SourceReport | None = None

    def set_source(self, source: PodSource) -> None:
        """Another source, from the next stream on."""
        self._source = source

    def refresh(self) -> None:
        """Nothing to look for: the API server sends every change."""

    async def watch(self) -> AsyncIterator[EndpointSet]:
        """The endpoints when they are first known, and again with every change."""
        client = await self._connected()
        async with _Watching(self._source, self._cluster, client) as watching:
            known: EndpointSet | None = None
            while True:
                found, problems = watching.look()
                self._publish(problems)
                if found is not None and found != known:
                    known = found
                    yield found
                await watching.changed()

    async def _connected(self) -> KubeClient:
        while True:
            try:
                return await self._cluster.connect()
            except NoCluster as error:
                self._publish([ObjectProblem(NO_CLUSTER, str(error))])
                await asyncio.sleep(RETRY_SECONDS)

    def _publish(self, problems: Sequence[ObjectProblem]) -> None:
        report = SourceReport(tuple(problems))
        if report != self._reported:
            self._reported = report
            self._report(report)


class _Watching:
    """The informers of one stream: of the InferencePool, if there is one, and of the pods of the present selection."""

    def __init__(self, source: PodSource, cluster: Cluster, client: KubeClient) -> None:
        self._source = source
        self._cluster = cluster
        self._client = client
        self._wake = asyncio.Event()
        self._tasks: dict[Informer, asyncio.Task[None]] = {}
        self._pools: ObjectCache[InferencePool] = ObjectCache(decoder_of(InferencePool))
        self._pool_informer: Informer | None = None
        self._pods: ObjectCache[PodView] = ObjectCache(lambda raw: pod_view(_POD(raw)))
        self._pod_informer: Informer | None = None
        self._selection: PoolSelection | None = None
        self._coming: Informer | None = None  # lists the pods of a changed selection
        self._coming_pods = self._pods

    async def __aenter__(self) -> Self:
        source = self._source
        if source.inference_pool:
            path = POOLS_PATH.format(namespace=source.namespace)
            selectors = {"fieldSelector": f"metadata.name={source.inference_pool}"}
            self._pool_informer = self._start(self._pools, path, selectors)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def changed(self) -> None:
        """Wait for a change of objects or of the API server's state."""
        await self._wake.wait()
        self._wake.clear()

    def look(self) -> tuple[EndpointSet | None, list[ObjectProblem]]:
        """The endpoints, None while they are not known, and what is wrong."""
        problems: list[ObjectProblem] = []
        selection = self._select(problems)
        if selection is None:
            gone = self._pool_informer is not None and self._pool_informer.status.synced
            return (EndpointSet({}, {}, {}) if gone and not self._pools.refused else None), problems
        self._follow(selection)
        for informer in (self._pod_informer, self._coming):
            if informer is not None:
                problems += _failing(informer.status, f"pods of namespace {selection.namespace}")
        if self._pod_informer is None or self._selection is None:
            return None, problems
        source = self._source
        found = endpoints_of(
            self._selection, self._pods.objects.values(), source.engine, source.engine_labels, source.engines
        )
        problems += found.problems
        for refused in self._pods.refused.values():
            problems.append(ObjectProblem(INVALID_OBJECT, f"pod {'/'.join(refused.key)} is ignored: {refused.reason}"))
        return EndpointSet(found.endpoints, {}, {}, found.uids), problems

    def _select(self, problems: list[ObjectProblem]) -> PoolSelection | None:
        """Which pods the pool has now; None where that is not known, or there is no such pool."""
        source, informer = self._source, self._pool_informer
        if informer is None:
            name = f"the selector of namespace {source.namespace}"
            return PoolSelection(name, source.namespace, dict(source.match_labels), source.target_ports)
        key = (source.namespace, source.inference_pool)
        name = f"InferencePool {'/'.join(key)}"
        status = informer.status
        if status.missing:
            problems.append(
                ObjectProblem(
                    KIND_NOT_INSTALLED,
                    f"{name}: the API server has no inferencepools of inference.networking.k8s.io/v1; install the CRDs "
                    "of the Gateway API inference extension",
                )
            )
        else:
            problems += _failing(status, name)
        refused = self._pools.refused.get(key)
        if refused is not None:
            problems.append(ObjectProblem(INVALID_OBJECT, f"{name} cannot be used: {refused.reason}"))
            return self._selection
        pool = self._pools.objects.get(key)
        if pool is None:
            if status.synced:
                problems.append(
                    ObjectProblem(POOL_NOT_FOUND, f"{name} does not exist; create it, or correct inferencePool")
                )
            return None
        spec = pool.spec
        ports = tuple(port.number for port in spec.target_ports)
        return PoolSelection(name, source.namespace, spec.selector.match_labels, ports)

    def _follow(self, selection: PoolSelection) -> None:
        """Watch the pods of the selection. Those of the old one stay until the new ones are listed."""
        known = self._selection
        if known is not None and known.match_labels == selection.match_labels and self._coming is None:
            self._selection = selection
            return
        labels = ",".join(f"{name}={value}" for name, value in sorted(selection.match_labels.items()))
        selectors = {"labelSelector": labels}
        if self._coming is None or self._coming.selectors != selectors:
            if self._coming is not None:
                self._end(self._coming)
            self._coming_pods = ObjectCache(lambda raw: pod_view(_POD(raw)))
            self._coming = self._start(self._coming_pods, PODS_PATH.format(namespace=selection.namespace), selectors)
        if self._coming.status.synced:
            if self._pod_informer is not None:
                self._end(self._pod_informer)
            self._pod_informer, self._pods, self._selection = self._coming, self._coming_pods, selection
            self._coming = None

    def _start(
        self, cache: ObjectCache[InferencePool] | ObjectCache[PodView], path: str, selectors: dict[str, str]
    ) -> Informer:
        informer = self._cluster.informer(self._client, cache, path, selectors, self._wake.set)
        self._tasks[informer] = asyncio.get_running_loop().create_task(informer.run())
        return informer

    def _end(self, informer: Informer) -> None:
        task = self._tasks.pop(informer, None)
        if task is not None:
            task.cancel()


def _failing(status: InformerStatus, what: str) -> list[ObjectProblem]:
    if not status.failing or (not status.synced and status.failing == "not listed yet"):
        return []
    kept = "; the last known state is kept" if status.synced else ""
    return [ObjectProblem(API_UNAVAILABLE, f"{what}: the API server does not answer: {status.failing}{kept}")]
