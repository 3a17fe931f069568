"""Prefer the endpoint with the fewest requests, including the agent's own that no page shows yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scoring import Columns, shortest_first
from agent.signals import RUNNING


class Running:
    """1 for the fewest requests, 0 for the most; a request counts once, whoever sent it."""

    name = "running-requests-size-scorer"
    needs = frozenset({RUNNING})

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """1 for the smallest load, 0 for the largest; the load is at least what the server reports as running."""
        reported = columns[RUNNING]
        return shortest_first([max(count, work.load) for count, work in zip(reported, candidates.works, strict=True)])
