"""Hard constraints: each filter takes candidates and says which places stay.

`serves_model`, `prefix_affinity` and `accelerator_ceiling` relax when they would leave nothing: they state a
preference that only holds where somebody fulfils it. Health and the proxy's subset do not relax: `agent.pick.picker`
applies these two itself.
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
    """The candidates that answer for the request's model, where any is known to; else all of them.

    A server whose list of models is unknown is left out only when another is known to have the model. Where none has
    it, all stay: the model server gives the error that its clients know.
    """
    model = candidates.request.model
    views = candidates.views
    if not model:
        return range(len(views))
    served = [view.reading(MODELS) for view in views]
    serving = [place for place, reading in enumerate(served) if reading is not None and model in reading[0]]  # type: ignore[operator]
    return serving or range(len(views))


def prefix_affinity(parameters: Mapping[str, object]) -> Filter:
    """Stay warm: keep the candidates that hold at least `affinityThreshold` of the prompt, while that costs little.

    When the least work ahead of the warm ones exceeds the least of the others by more than `maxTTFTPenaltyMs`, all
    stay: the prompt may be cheaper to prefill again than to wait for. Rule and defaults: llm-d, "sticky until
    saturated", 2026-08-17 (0.8; 18,000 ms there). BadParameter for one that it does not take.
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
        everyone = range(len(candidates))
        if wanted <= 0:
            return everyone
        warm = [place for place, hit in enumerate(candidates.hits) if hit >= wanted]
        if not warm or len(warm) == len(candidates):
            return everyone
        backlog = candidates.backlog_seconds
        if min(backlog[place] for place in warm) - min(backlog) > penalty:
            return everyone
        return warm

    return keep


def accelerator_ceiling(parameters: Mapping[str, object]) -> Filter:
    """Leave out whoever's accelerators are known to be busier than `maxUtilization`, unless that is everybody.

    An endpoint whose utilization is unknown stays: silence of an exporter is no reason to starve a server.
    BadParameter for one that it does not take.
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
