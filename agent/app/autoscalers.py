"""The HorizontalPodAutoscalers of the pools' namespaces as a component, with `kubernetes.autoscalers`.

    autoscaling/v2 of each namespace --informer--> those that scale a pool --> gauges
                                     +-----------> problems: log, metrics

Nothing here is on the path of a request, and no failure of it stops anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

from agent.app.object_problems import ObjectProblems
from agent.app.pool import Pool
from agent.app.tasks import Task, Tasks
from agent.config.config import Config
from agent.config.pools import PoolConfig
from agent.events import Hook
from agent.kube.autoscalers import AUTOSCALERS, AUTOSCALERS_PATH, Autoscaler, decode
from agent.kube.cache import ObjectCache
from agent.kube.cluster import Cluster, own_namespace
from agent.kube.errors import NoCluster
from agent.kube.informer import NOT_LISTED, Informer
from agent.kube.objects import ObjectRef
from agent.kube.pool_endpoints import (
    API_UNAVAILABLE,
    FORBIDDEN,
    INVALID_OBJECT,
    KIND_NOT_INSTALLED,
    NO_CLUSTER,
    UNAUTHORIZED,
    ObjectProblem,
)
from agent.kube.recorder import EventRecorder
from agent.scaling.autoscalers import AutoscalerReport, PoolToScale, reports

SOURCE: Final = "autoscalers"  # who finds the problems
RETRY_SECONDS: Final = 5.0  # between two tries to find a cluster's configuration
MAX_INVALID_NAMED: Final = 3  # autoscalers that cannot be read and that are named each
HTTP_UNAUTHORIZED: Final = 401
HTTP_FORBIDDEN: Final = 403


class _Followed(NamedTuple):
    """The autoscalers of a namespace."""

    cache: ObjectCache[Autoscaler]
    informer: Informer


class Autoscalers:
    """Follows the namespaces of all pools. `pools` returns those that exist by name."""

    name = "autoscalers"

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        tasks: Tasks,
        hook: Hook,
        recorder: EventRecorder,
        pools: Callable[[], Mapping[str, Pool]],
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._tasks = tasks
        self._pools = pools
        self._problems = ObjectProblems(hook, recorder)
        self._followed: dict[str, _Followed] = {}
        self._following: dict[str, Task] = {}
        self._own_namespace = ""

    # -- component -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to follow the namespaces, if the configuration requires it."""
        self._follow()

    async def apply(self, config: Config) -> None:
        """Other pools, other namespaces, or switched on or off."""
        self._config = config
        self._follow()

    def readiness(self) -> list[str]:
        """Always ready: these gauges are for people and alerts."""
        return []

    async def stop(self, grace: float) -> None:
        """Follow nothing more."""
        for task in self._following.values():
            task.cancel()
        self._following.clear()
        self._followed.clear()

    def reports(self) -> list[AutoscalerReport]:
        """The autoscalers that scale pools of the agent, as the API server last showed them."""
        scaled = [self._scaled(settings) for settings in self._config.pools]
        return reports(self._autoscalers(), scaled)

    # -- within --------------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        wanted: set[str] = set()
        if self._config.kubernetes.autoscalers:
            wanted = {namespace for each in self._config.pools if (namespace := self._namespace(each))}
        for namespace in self._following.keys() - wanted:
            self._following.pop(namespace).cancel()
            self._followed.pop(namespace, None)
            self._problems.forget(SOURCE, _ref(namespace))
        for namespace in wanted - self._following.keys():
            run = partial(self._run, namespace)
            self._following[namespace] = self._tasks.run(f"{self.name}/{namespace}", run)

    async def _run(self, namespace: str) -> None:
        while True:
            try:
                client = await self._cluster.connect()
                break
            except NoCluster as error:
                problem = ObjectProblem(NO_CLUSTER, f"kubernetes.autoscalers: {error}")
                self._problems.report(SOURCE, _ref(namespace), [problem])
                await asyncio.sleep(RETRY_SECONDS)
        cache = ObjectCache(decode)
        changed = partial(self._changed, namespace)
        informer = self._cluster.informer(client, cache, AUTOSCALERS_PATH.format(namespace=namespace), {}, changed)
        self._followed[namespace] = _Followed(cache, informer)
        await informer.run()

    def _changed(self, namespace: str) -> None:
        followed = self._followed.get(namespace)
        if followed is not None:
            self._problems.report(SOURCE, _ref(namespace), list(_problems(namespace, followed)))

    def _autoscalers(self) -> Iterator[tuple[Autoscaler, float | None]]:
        for followed in self._followed.values():
            status = followed.informer.status
            for autoscaler in followed.cache.objects.values():
                yield autoscaler, status.since if status.failing else None

    def _scaled(self, settings: PoolConfig) -> PoolToScale:
        pool = self._pools().get(settings.name)
        source = None if pool is None else pool.source
        workloads = frozenset() if source is None else source.workloads
        return PoolToScale(settings.name, self._namespace(settings), settings.inference_pool, workloads)

    def _namespace(self, settings: PoolConfig) -> str:
        """The namespace of a pool's objects; empty outside a cluster where none is configured."""
        configured = settings.namespace or self._config.kubernetes.namespace
        if not configured and not self._own_namespace:
            with contextlib.suppress(NoCluster):
                self._own_namespace = own_namespace()
        return configured or self._own_namespace


def _ref(namespace: str) -> ObjectRef:
    return ObjectRef("", "Namespace", "", namespace)


def _problems(namespace: str, followed: _Followed) -> Iterator[ObjectProblem]:
    """What is wrong with the autoscalers of a namespace. An API server that does not answer for a while is none."""
    status, where = followed.informer.status, f"namespace {namespace}"
    off = "or set kubernetes.autoscalers to false"
    if status.missing:
        text = f"{where}: the API server has no {AUTOSCALERS} of autoscaling/v2; use Kubernetes 1.23 or later, {off}"
        yield ObjectProblem(KIND_NOT_INSTALLED, text)
    elif status.code == HTTP_FORBIDDEN:
        text = (
            f"{where}: the agent may not read {AUTOSCALERS} of autoscaling ({status.failing}); apply "
            f"deploy/kubernetes/pools there, {off}"
        )
        yield ObjectProblem(FORBIDDEN, text)
    elif status.failing not in ("", NOT_LISTED) and not status.synced:
        text = f"{where}: the {AUTOSCALERS} cannot be read: {status.failing}"
        yield (
            ObjectProblem(UNAUTHORIZED, text)
            if status.code == HTTP_UNAUTHORIZED
            else ObjectProblem(API_UNAVAILABLE, text)
        )
    for refused in sorted(followed.cache.refused.values())[:MAX_INVALID_NAMED]:
        text = f"HorizontalPodAutoscaler {'/'.join(refused.key)} is ignored: {refused.reason}"
        yield ObjectProblem(INVALID_OBJECT, text)
