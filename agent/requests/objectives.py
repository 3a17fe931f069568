"""The objectives of one pool, and the terms on which a request is served by its objective.

    objectives of the configuration ---+
                                       +--> name of an objective -> priority ---+
    InferenceObjectives of the pool ---+    name of a model      -> priority ---+--> terms of a request

The priority of a request is that of the objective that it names; else that of the objective which is bound to its
model; else 0. It is 0 too where the request names an objective that does not exist: a typing error must not give a
request the priority of its model, which may be a higher one.

Where the configuration and an object have an objective of the same name, or bind one to the same model, that of the
configuration is used: it is also known while the API server is not.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from agent.config.objectives import ObjectiveConfig
from agent.events import Hook, ignore
from agent.events.exchange import NO_SLO, Slo
from agent.events.objectives import UnknownObjective
from agent.kube.objectives import NO_OBJECTIVES, PoolObjectives
from agent.requests.flow_terms import FlowHeaders, FlowTerms

# Names of unknown objectives that are remembered, so that each is logged once: a client may name another one in each
# request.
REMEMBERED_NAMES: Final = 100


class RequestTerms:
    """The terms of the requests to a pool. The objectives of the configuration and those of the objects may be replaced
    at any time, and apply to the next request."""

    def __init__(self, pool: str, hook: Hook = ignore) -> None:
        self._pool = pool
        self._hook = hook
        self._declared: tuple[ObjectiveConfig, ...] = ()
        self._objects = NO_OBJECTIVES
        self._priorities: Mapping[str, int] = {}
        self._by_model: Mapping[str, int] = {}
        self._slos: Mapping[str, Slo] = {}  # by objective
        self._slos_by_model: Mapping[str, Slo] = {}
        self._unknown: set[str] = set()  # names that have been logged

    @property
    def priorities(self) -> Mapping[str, int]:
        """The priority of each objective."""
        return self._priorities

    @property
    def by_model(self) -> Mapping[str, int]:
        """The priority of the requests for each model that an objective is bound to, where they name no objective."""
        return self._by_model

    def set_declared(self, objectives: Iterable[ObjectiveConfig]) -> None:
        """Replace the objectives of the configuration; those of other pools are left out."""
        self._declared = tuple(each for each in objectives if each.pool in ("", self._pool))
        self._merge()

    def set_objects(self, objectives: PoolObjectives) -> None:
        """Replace the objectives of the API server's objects."""
        self._objects = objectives
        self._merge()

    def terms(self, headers: FlowHeaders, model: str) -> FlowTerms:
        """The terms of a request for this model, under the name that the client gives it."""
        name = headers.objective
        priority = self._priorities.get(name, 0) if name else self._by_model.get(model, 0)
        slo = self._slos.get(name, NO_SLO) if name else self._slos_by_model.get(model, NO_SLO)
        ttft, tpot = headers.ttft_seconds, headers.tpot_seconds
        if ttft is not None or tpot is not None:
            slo = Slo(slo.ttft if ttft is None else ttft, slo.tpot if tpot is None else tpot)
        return FlowTerms(priority, headers.caller, headers.ttl_seconds, ttft, slo)

    def check(self, headers: FlowHeaders) -> None:
        """Report an objective that does not exist; called once for each request."""
        name = headers.objective
        if not name or name in self._priorities:
            return
        unknown = self._unknown
        first = len(unknown) < REMEMBERED_NAMES and name not in unknown
        if first:
            unknown.add(name)
        self._hook(UnknownObjective(self._pool, name, first, first and len(unknown) >= REMEMBERED_NAMES))

    def _merge(self) -> None:
        priorities = dict(self._objects.priorities)
        for each in self._declared:
            priorities[each.name] = each.priority
        by_model = {model: priorities[name] for model, name in self._objects.models.items() if name in priorities}
        for each in self._declared:
            for model in each.models:
                by_model[model] = each.priority
        slos = {each.name: Slo(each.ttft, each.time_per_output_token) for each in self._declared}
        by_declared = {model: slos[each.name] for each in self._declared for model in each.models}
        bound = {model: slos[name] for model, name in self._objects.models.items() if name in slos}
        self._slos, self._slos_by_model = slos, {**bound, **by_declared}
        self._priorities, self._by_model = priorities, by_model
        self._unknown -= priorities.keys()
