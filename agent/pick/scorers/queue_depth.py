"""Prefer the endpoint with the shortest queue, relative to the longest and the shortest of the candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scoring import Columns, shortest_first
from agent.signals import WAITING


class QueueDepth:
    """1 for the shortest queue, 0 for the longest."""

    name = "queue-scorer"
    needs = frozenset({WAITING})

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """1 for the shortest queue, 0 for the longest, linear in between."""
        return shortest_first(columns[WAITING])
