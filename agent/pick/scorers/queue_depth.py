"""Prefer the endpoint with the shortest queue, relative to the longest and the shortest of the candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scoring import Columns
from agent.signals import WAITING


def shortest_first(lengths: Sequence[float]) -> list[float]:
    """(longest - own) / (longest - shortest); 1 for all when they are equal. The reference's `queue-scorer` formula."""
    longest, shortest = max(lengths), min(lengths)
    span = longest - shortest
    if span == 0:
        return [1.0] * len(lengths)
    return [(longest - length) / span for length in lengths]


class QueueDepth:
    """1 for the shortest queue, 0 for the longest."""

    name = "queue-scorer"
    needs = frozenset({WAITING})

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """1 for the shortest queue, 0 for the longest, linear in between."""
        return shortest_first(columns[WAITING])
