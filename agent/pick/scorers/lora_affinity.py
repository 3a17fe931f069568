"""Prefer the endpoint that already runs the requested LoRA adapter, or has a slot for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scoring import Columns
from agent.signals import LORA_MAX, LORA_RUNNING, LORA_WAITING
from agent.state.snapshot import EndpointView

# The values of the reference's `lora-affinity-scorer`: adapter running, a free slot, adapter waiting, none of these.
ACTIVE: Final = 1.0
FREE_SLOT: Final = 0.8
COMING: Final = 0.6
NEITHER: Final = 0.0


class LoraAffinity:
    """Applies only to requests for an adapter that some candidate's fresh page names."""

    name = "lora-affinity-scorer"
    needs: frozenset[str] = frozenset()

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float] | None:
        """The affinity of each candidate; None where no candidate's page names this adapter."""
        model, now = candidates.request.model, candidates.now
        if candidates.adapters is not None and model not in candidates.adapters:
            return None
        for signal in (LORA_RUNNING, LORA_WAITING):
            for view in candidates.views:
                names = view.fresh(signal, now)
                if isinstance(names, frozenset) and model in names:
                    return _affinities(candidates, model, now)
        return None


def _affinities(candidates: Candidates, model: str, now: float) -> Sequence[float]:
    """The affinity of each candidate; of one whose running adapters are unknown, the lowest among the others."""
    found = [
        None if each.fresh(LORA_RUNNING, now) is None else _affinity(each, model, now) for each in candidates.views
    ]
    lowest = min((each for each in found if each is not None), default=NEITHER)
    return [lowest if each is None else each for each in found]


def _affinity(view: EndpointView, model: str, now: float) -> float:
    running = view.fresh(LORA_RUNNING, now)
    waiting = view.fresh(LORA_WAITING, now)
    slots = view.number(LORA_MAX, now)
    if isinstance(running, frozenset):
        if model in running:
            return ACTIVE
        if isinstance(waiting, frozenset) and model in waiting:
            return COMING
        if slots is not None and len(running) < slots:
            return FREE_SLOT
    return NEITHER
