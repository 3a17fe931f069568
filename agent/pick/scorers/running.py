"""Prefer the endpoint with the fewest running requests, including the agent's own that no page shows yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scoring import Columns, shortest_first
from agent.signals import RUNNING


class Running:
    """1 for the fewest requests, 0 for the most; a request counts once, as the server's or as the agent's."""

    name = "running-requests-size-scorer"
    needs = frozenset({RUNNING})

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """1 for the fewest running requests, 0 for the most; the larger of the server's and the agent's count."""
        reported = columns[RUNNING]
        return shortest_first(
            [max(count, float(view.work.requests)) for count, view in zip(reported, candidates.views, strict=True)]
        )
