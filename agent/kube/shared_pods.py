"""Pods that several pools select. Pure.

Each of the pools sends requests to such a pod and counts those of the other as foreign work; their gauges count its
load twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from agent.kube.objects import Key
from agent.kube.pool_endpoints import POD_IN_TWO_POOLS, ObjectProblem


class LabelledPod(NamedTuple):
    """A pod and its labels."""

    namespace: str
    name: str
    labels: Mapping[str, str]


class SelectingPool(NamedTuple):
    """A pool by the name that it has in messages, and which pods it selects."""

    source: str
    namespace: str
    match_labels: Mapping[str, str]

    def selects(self, pod: LabelledPod) -> bool:
        """Whether the pool selects the pod."""
        return pod.namespace == self.namespace and self.match_labels.items() <= pod.labels.items()


class _Shared(NamedTuple):
    """The first of the pods that a pool shares, the other pool, and the number of shared pods."""

    pod: Key
    other: str
    pods: int


def shared_pods(pools: Iterable[SelectingPool], pods: Iterable[LabelledPod]) -> Mapping[str, ObjectProblem]:
    """The problem of each pool that shares a pod, by `source`."""
    by_namespace: dict[str, list[SelectingPool]] = {}
    for pool in pools:
        by_namespace.setdefault(pool.namespace, []).append(pool)
    found: dict[str, _Shared] = {}
    for pod in pods:
        candidates = by_namespace.get(pod.namespace, ())
        if len(candidates) < 2:
            continue
        owners = sorted({pool.source for pool in candidates if pool.selects(pod)})
        if len(owners) < 2:
            continue
        key = (pod.namespace, pod.name)
        for owner in owners:
            other = owners[1] if owner == owners[0] else owners[0]
            known = found.get(owner)
            if known is None:
                found[owner] = _Shared(key, other, 1)
            else:
                found[owner] = _Shared(*min((known.pod, known.other), (key, other)), known.pods + 1)
    return {owner: _problem(owner, each) for owner, each in found.items()}


def _problem(owner: str, shared: _Shared) -> ObjectProblem:
    more = f", and {shared.pods - 1} more pods that other pools select" if shared.pods > 1 else ""
    return ObjectProblem(
        POD_IN_TWO_POOLS,
        f"{owner} and {shared.other} both select pod {'/'.join(shared.pod)}{more}; change the selector of one of the "
        "pools, or the labels of the pod",
    )
