"""Whether the endpoints of a pool are those that its source has now, and what is wrong there. Pure."""

from __future__ import annotations

from typing import NamedTuple

from agent.kube.objectives import PoolObjectives
from agent.kube.objects import Workload
from agent.kube.pool_endpoints import ObjectProblem


class SourceStatus(NamedTuple):
    """A source of endpoints that changes by itself. `source` names it for a person. `current`: the endpoints are those
    that it has now; else they are those of `known_at` (monotonic seconds; None: they were never known), and a problem
    says why. `objectives` are what the source says about requests, None where it says nothing, or is not known.
    `loading` are the pods that exist and are not ready; `workloads` own the pods, or have done so last."""

    source: str
    current: bool
    known_at: float | None
    problems: tuple[ObjectProblem, ...] = ()
    objectives: PoolObjectives | None = None
    loading: int = 0
    workloads: frozenset[Workload] = frozenset()

    def age(self, now: float) -> float | None:
        """Seconds since the endpoints were last known to be current; 0 while they are, None before."""
        if self.current:
            return 0.0
        return None if self.known_at is None else max(0.0, now - self.known_at)
