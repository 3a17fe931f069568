"""Prefer the endpoint that already runs the requested LoRA adapter, or has a slot for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scoring import Columns
from agent.signals import LORA_MAX, LORA_RUNNING, LORA_WAITING

# The reference's `lora-affinity-scorer`: active, a free slot, waiting for one, none of it.
ACTIVE: Final = 1.0
FREE_SLOT: Final = 0.8
COMING: Final = 0.6
NEITHER: Final = 0.0
_NONE: Final[frozenset[str]] = frozenset()


class LoraAffinity:
    """Scores only what is an adapter: the model that a server lists as its first is not, and nobody has slots for it."""

    name = "lora-affinity-scorer"
    needs: frozenset[str] = frozenset()
    wants: frozenset[str] = frozenset()

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float] | None:
        """Affinity of each candidate; no opinion where no candidate's page has ever named this adapter."""
        model = candidates.request.model
        now = candidates.now
        known = False
        scores: list[float] = []
        for view in candidates.views:
            readings = view.readings
            if LORA_MAX not in readings:
                scores.append(NEITHER)
                continue
            running = view.fresh(LORA_RUNNING, now) or _NONE
            waiting = view.fresh(LORA_WAITING, now) or _NONE
            slots = view.number(LORA_MAX, now)
            if isinstance(running, frozenset) and model in running:
                known = True
                scores.append(ACTIVE)
            elif isinstance(waiting, frozenset) and model in waiting:
                known = True
                scores.append(COMING)
            elif slots is not None and isinstance(running, frozenset) and len(running) < slots:
                scores.append(FREE_SLOT)
            else:
                scores.append(NEITHER)
        return scores if known else None
