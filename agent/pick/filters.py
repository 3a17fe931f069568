"""Filters: each takes the candidates and returns the places of those that stay.

`serves_model`, `prefix_affinity` and `accelerator_ceiling` keep all candidates where they would leave none. Health and
the proxy's subset are strict: `agent.pick.picker` applies these two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from agent.accelerators.table import UTILIZATION
from agent.pick.candidates import Candidates
from agent.pick.parameters import BadParameter, number, only
from agent.signals import MODELS

Filter = Callable[[Candidates], Sequence[int]]


def serves_model(candidates: Candidates) -> Sequence[int]:
    """The candidates that serve the request's model, where any is known to; else all of them.

    A server whose list of models is unknown is removed only when another is known to have the model. Where none has
    it, all stay: the model server responds with the error that its clients know.
    """
    model = candidates.request.model
    views = candidates.views
    if not model:
        return range(len(views))
    served = [view.reading(MODELS) for view in views]
    serving = [place for place, reading in enumerate(served) if reading is not None and model in reading[0]]  # type: ignore[operator]
    return serving or range(len(views))


def prefix_affinity(parameters: Mapping[str, object]) -> Filter:
    """Keep the candidates that hold at least `affinityThreshold` of the prompt (the warm ones), while that is cheap.

    When the smallest backlog of the warm ones exceeds the smallest of all by more than `maxTTFTPenaltyMs`, all stay: to
    prefill the prompt again may be faster than to wait. Rule and defaults: llm-d, "sticky until saturated", 2026-08-17
    (0.8; 18,000 ms there). BadParameter for a parameter that it does not take.
    """
    only(parameters, "affinityThreshold", "maxTTFTPenaltyMs", "explorationProbability", "peakPrefillThroughput")
    threshold = number(parameters, "affinityThreshold", 0.8, low=0.0, high=1.0)
    penalty = number(parameters, "maxTTFTPenaltyMs", 18_000.0, low=0.0, high=1e9) / 1000
    if number(parameters, "explorationProbability", 0.0, low=0.0, high=1.0) != 0.0:
        raise BadParameter(
            "explorationProbability", "is not offered: a pick is a function of the state; write 0 or leave it out"
        )

    def keep(candidates: Candidates) -> Sequence[int]:
        wanted = threshold * candidates.request.prompt_tokens
        everything = range(len(candidates))
        if wanted <= 0:
            return everything
        warm = [place for place, hit in enumerate(candidates.hits) if hit >= wanted]
        if not warm or len(warm) == len(candidates):
            return everything
        backlog = candidates.backlog_seconds
        if min(backlog[place] for place in warm) - min(backlog) > penalty:
            return everything
        return warm

    return keep


def accelerator_ceiling(parameters: Mapping[str, object]) -> Filter:
    """Remove the endpoints whose accelerators are known to be busier than `maxUtilization`, unless all are.

    An endpoint whose utilization is unknown stays: a missing reading is no reason to starve a server. BadParameter for
    a parameter that it does not take.
    """
    only(parameters, "maxUtilization")
    ceiling = number(parameters, "maxUtilization", 0.95, low=0.0, high=1.0)

    def keep(candidates: Candidates) -> Sequence[int]:
        column = candidates.column(UTILIZATION)
        return [place for place, busy in enumerate(column) if busy is None or busy <= ceiling] or range(len(column))

    return keep


FILTERS: Final[Mapping[str, Callable[[Mapping[str, object]], Filter]]] = {
    "accelerator-utilization-filter": accelerator_ceiling,
    "prefix-cache-affinity-filter": prefix_affinity,
}
