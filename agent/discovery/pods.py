"""Endpoints from the API server: the ready pods of an InferencePool, or of a label selector.

    InferencePool --selector, target ports--> pods --ready, addresses--> endpoints
                       (or the configuration's)

While the API server does not answer, the last endpoints stay, and the status says since when they may be out of date.
An InferencePool that is deleted has none. A change of a pod is applied as soon as it arrives; while changes keep coming
they are applied together, every GATHER_SECONDS.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from agent.discovery.endpoints import EndpointSet
from agent.kube.cache import ObjectCache, decoder_of
from agent.kube.cluster import PODS_PATH, POOLS_PATH, Cluster, own_namespace
from agent.kube.errors import NoCluster
from agent.kube.informer import Informer, InformerStatus
from agent.kube.objects import InferencePool, Pod, PodView, Workload, pod_view
from agent.kube.pool_endpoints import (
    API_UNAVAILABLE,
    FORBIDDEN,
    INVALID_OBJECT,
    KIND_NOT_INSTALLED,
    NO_CLUSTER,
    POOL_NOT_FOUND,
    UNAUTHORIZED,
    ObjectProblem,
    PodEndpoints,
    PoolSelection,
    labels_in_words,
)
from agent.state.source import SourceStatus

if TYPE_CHECKING:
    from agent.kube.client import KubeClient

RETRY_SECONDS: Final = 5.0  # between two tries to find a cluster's configuration
GATHER_SECONDS: Final = 0.05
# The objects of a pod are indexed in steps of this number, between which requests are picked.
PODS_PER_STEP: Final = 250
MAX_INVALID_NAMED: Final = 3  # pods that cannot be used and that are named each

_POD: Final = decoder_of(Pod)


class PodSource(NamedTuple):
    """Where a pool's pods come from: an InferencePool by name, or labels and ports. An empty `namespace` is the agent's
    own. `engine` is that of pods without one of the `engine_labels`, or whose label names none of `engines`."""

    namespace: str
    inference_pool: str
    match_labels: tuple[tuple[str, str], ...]
    target_ports: tuple[int, ...]
    engine: str
    engine_labels: tuple[str, ...]
    engines: frozenset[str]

    def in_words(self) -> str:
        """The source for a person."""
        prefix = f"{self.namespace}/" if self.namespace else ""
        if self.inference_pool:
            return f"InferencePool {prefix}{self.inference_pool}"
        return f"selector {prefix}{labels_in_words(dict(self.match_labels))}"


class KubernetesDiscovery:
    """The endpoints of one pool. `report` is called with every change of the source's status."""

    def __init__(self, source: PodSource, cluster: Cluster, report: Callable[[SourceStatus], None]) -> None:
        self._source = source
        self._cluster = cluster
        self._report = report
        self._reported: SourceStatus | None = None

    def set_source(self, source: PodSource) -> None:
        """Another source, from the next stream on."""
        self._source = source

    async def watch(self) -> AsyncIterator[EndpointSet]:
        """The endpoints when they are first known, and again with every change."""
        source, client = await self._connected()
        async with _Watching(source, self._cluster, client) as watching:
            known: EndpointSet | None = None
            while True:
                found = await watching.look()
                self._publish(watching.status())
                if found is not None and found != known:
                    known = found
                    yield found
                    await asyncio.sleep(GATHER_SECONDS)
                await watching.changed()

    async def _connected(self) -> tuple[PodSource, KubeClient]:
        source = self._source
        while True:
            try:
                client = await self._cluster.connect()
                if not source.namespace:
                    source = source._replace(namespace=await self._cluster.run(own_namespace))
            except NoCluster as error:
                problem = ObjectProblem(NO_CLUSTER, f"{source.in_words()}: {error}")
                self._publish(SourceStatus(source.in_words(), current=False, known_at=None, problems=(problem,)))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return source, client

    def _publish(self, status: SourceStatus) -> None:
        if status != self._reported:
            self._reported = status
            self._report(status)


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
        self._pods: ObjectCache[PodView] = _pod_cache()
        self._pod_informer: Informer | None = None
        self._endpoints: PodEndpoints | None = None
        self._coming: Informer | None = None  # lists the pods of a changed selection
        self._coming_pods = self._pods
        self._problems: list[ObjectProblem] = []
        self._loading = 0
        self._workloads: frozenset[Workload] = frozenset()

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

    async def look(self) -> EndpointSet | None:
        """The endpoints, None while they are not known."""
        problems = self._problems = []
        selection = self._select(problems)
        if selection is None:
            gone = self._pool_informer is not None and self._pool_informer.status.synced
            return EndpointSet({}, {}, {}) if gone and not self._pools.refused else None
        self._follow(selection)
        for informer in (self._pod_informer, self._coming):
            if informer is not None:
                problems += _failing(informer.status, f"pods of namespace {selection.namespace}", selection.source)
        found = self._endpoints
        if found is None:
            return None
        await self._index(found)
        selected = found.selected()
        problems += selected.problems
        self._loading = selected.loading
        self._workloads = selected.workloads
        refused = sorted(self._pods.refused.values())
        for each in refused[:MAX_INVALID_NAMED]:
            problems.append(ObjectProblem(INVALID_OBJECT, f"pod {'/'.join(each.key)} is ignored: {each.reason}"))
        return EndpointSet(selected.endpoints, {}, {}, selected.uids)

    def status(self) -> SourceStatus:
        """Whether the endpoints of the last look are those of the source now, and what is wrong."""
        informers = [each for each in (self._pool_informer, self._pod_informer, self._coming) if each is not None]
        since = [each.status.since for each in informers if each.status.failing]
        known = bool(informers) and all(each.status.synced for each in informers)
        return SourceStatus(
            self._source.in_words(),
            current=known and not since,
            known_at=min(since) if since and (known or self._endpoints is not None) else None,
            problems=tuple(self._problems),
            loading=self._loading,
            workloads=self._workloads,
        )

    def _select(self, problems: list[ObjectProblem]) -> PoolSelection | None:
        """Which pods the pool has now; None where that is not known, or there is no such pool."""
        source, informer = self._source, self._pool_informer
        name = source.in_words()
        if informer is None:
            return PoolSelection(name, source.namespace, dict(source.match_labels), source.target_ports)
        last = None if self._endpoints is None else self._endpoints.selection
        key = (source.namespace, source.inference_pool)
        status = informer.status
        if status.missing:
            problems.append(
                ObjectProblem(
                    KIND_NOT_INSTALLED,
                    f"{name}: the API server has no inferencepools of inference.networking.k8s.io/v1; install the CRDs "
                    "of the Gateway API inference extension (deploy/crds)",
                )
            )
        else:
            problems += _failing(status, name, name)
        refused = self._pools.refused.get(key)
        if refused is not None:
            problems.append(ObjectProblem(INVALID_OBJECT, f"{name} cannot be used: {refused.reason}"))
            return last
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
        known = None if self._endpoints is None else self._endpoints.selection
        if known is not None and known.match_labels == selection.match_labels and self._coming is None:
            if known != selection:
                self._begin_index(selection)
            return
        selectors = {"labelSelector": labels_in_words(selection.match_labels)}
        if self._coming is None or self._coming.selectors != selectors:
            if self._coming is not None:
                self._end(self._coming)
            self._coming_pods = _pod_cache()
            self._coming = self._start(self._coming_pods, PODS_PATH.format(namespace=selection.namespace), selectors)
        if self._coming.status.synced:
            if self._pod_informer is not None:
                self._end(self._pod_informer)
            self._pod_informer, self._pods = self._coming, self._coming_pods
            self._coming = None
            self._begin_index(selection)

    def _begin_index(self, selection: PoolSelection) -> None:
        """Compute the endpoints of every pod again."""
        source = self._source
        self._endpoints = PodEndpoints(selection, source.engine, source.engine_labels, source.engines)
        self._pods.take_changed()
        self._pods.mark_all_changed()

    async def _index(self, found: PodEndpoints) -> None:
        """Apply the pods that have changed."""
        changed, pods = self._pods.take_changed(), self._pods
        for number, key in enumerate(changed, 1):
            found.update(key, pods.objects.get(key))
            if number % PODS_PER_STEP == 0:
                await asyncio.sleep(0)

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


def _pod_cache() -> ObjectCache[PodView]:
    return ObjectCache(lambda raw: pod_view(_POD(raw)))


def _failing(status: InformerStatus, what: str, source: str) -> Sequence[ObjectProblem]:
    """What is wrong with the connection, for the source; nothing while the first list is on its way."""
    if not status.failing or (not status.synced and status.failing == "not listed yet"):
        return ()
    kept = "; the last known endpoints are kept" if status.synced else ""
    if status.code == 401:
        why = (
            f"the API server refuses the agent's token ({status.failing}); look whether its ServiceAccount exists, or "
            "whether the credentials in kubernetes.kubeconfig have expired"
        )
        return (ObjectProblem(UNAUTHORIZED, f"{source}: {why}{kept}"),)
    if status.code == 403:
        why = f"the agent may not read the {what} ({status.failing}); apply deploy/kubernetes/pools"
        return (ObjectProblem(FORBIDDEN, f"{source}: {why}{kept}"),)
    why = f"the API server does not answer for {what}: {status.failing}"
    return (ObjectProblem(API_UNAVAILABLE, f"{source}: {why}{kept}"),)
