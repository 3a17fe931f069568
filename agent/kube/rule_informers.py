"""The InferencePools, objectives and rewrites of one namespace, kept by informers.

    inferencepools ------------------------------+
    inferenceobjectives      of both groups -----+--> pools(), objects(), problems()
    inferencemodelrewrites   of both groups -----+

A group that is not installed has no objects. Until every group has answered, the objects of none are known: an object
of the old group counts only where the new one has none of its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from agent.kube.cache import ObjectCache, decoder_of
from agent.kube.cluster import POOLS_PATH, Cluster
from agent.kube.informer import Informer, InformerStatus
from agent.kube.objectives import GROUPS, PLURALS, VERSION, RuleObject, decode
from agent.kube.objects import InferencePool
from agent.kube.pool_endpoints import FORBIDDEN, KIND_NOT_INSTALLED, ObjectProblem

if TYPE_CHECKING:
    from agent.kube.client import KubeClient

HTTP_FORBIDDEN: Final = 403


class RuleInformers:
    """The informers of a namespace. `on_change` is called on the event loop after each change."""

    def __init__(self, cluster: Cluster, client: KubeClient, namespace: str, on_change: Callable[[], None]) -> None:
        self.namespace = namespace
        self._pools: ObjectCache[InferencePool] = ObjectCache(decoder_of(InferencePool))
        path = POOLS_PATH.format(namespace=namespace)
        self._pool_informer = cluster.informer(client, self._pools, path, {}, on_change)
        self._rules: dict[tuple[str, str], tuple[ObjectCache[RuleObject], Informer]] = {}
        for kind, plural in PLURALS.items():
            for group in GROUPS:
                cache = ObjectCache(partial(decode, group, kind))
                path = f"/apis/{group}/{VERSION}/namespaces/{namespace}/{plural}"
                self._rules[kind, group] = (cache, cluster.informer(client, cache, path, {}, on_change))

    async def run(self) -> None:
        """Keep all of them current until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for informer in (self._pool_informer, *(informer for _, informer in self._rules.values())):
                group.create_task(informer.run())

    def pools(self) -> Mapping[str, InferencePool] | None:
        """The InferencePools by name, those that cannot be used left out; None while they are not known."""
        if not self._pool_informer.status.synced or self._pool_informer.status.missing:
            return None
        return {name: pool for (_, name), pool in self._pools.objects.items()}

    def pool_names(self) -> frozenset[str] | None:
        """The names of all InferencePools; None while they are not known."""
        if not self._pool_informer.status.synced or self._pool_informer.status.missing:
            return None
        return frozenset(name for _, name in (*self._pools.objects, *self._pools.refused))

    def objects(self) -> list[RuleObject] | None:
        """The objectives and rewrites of both groups; None while those of some group are not known."""
        found: list[RuleObject] = []
        for cache, informer in self._rules.values():
            if not _answered(informer.status):
                return None
            if not informer.status.missing:
                found += cache.objects.values()
        return found

    def problems(self) -> list[ObjectProblem]:
        """Kinds of which no group is installed, and kinds that the agent may not read: one problem for each reason."""
        absent: list[str] = []
        unread: dict[str, str] = {}
        for kind, plural in PLURALS.items():
            statuses = {group: self._rules[kind, group][1].status for group in GROUPS}
            if all(status.missing for status in statuses.values()):
                absent.append(kind)
            for group, status in statuses.items():
                if status.code == HTTP_FORBIDDEN:
                    unread[f"{plural} of {group}"] = status.failing
        where = f"namespace {self.namespace}"
        found: list[ObjectProblem] = []
        if absent:
            text = (
                f"{where}: the API server has no {' and no '.join(absent)} of {' or '.join(GROUPS)}; install the CRDs "
                "of deploy/crds to use them"
            )
            found.append(ObjectProblem(KIND_NOT_INSTALLED, text))
        if unread:
            text = (
                f"{where}: the agent may not read {', '.join(unread)} ({next(iter(unread.values()))}); its role needs "
                "the verbs list and watch on them"
            )
            found.append(ObjectProblem(FORBIDDEN, text))
        return found


def _answered(status: InformerStatus) -> bool:
    return status.synced or status.missing or status.code == HTTP_FORBIDDEN
