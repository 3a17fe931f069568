"""Prefer the endpoint with the fewest running requests, the picker's own ones that no page has shown included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scorers.queue_depth import shortest_first
from agent.pick.scoring import Columns
from agent.signals import RUNNING


class Running:
    """1 at the fewest requests, 0 at the most; a request counts once, as the server's or as ours."""

    name = "running-requests-size-scorer"
    needs = frozenset({RUNNING})

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """The larger of what the server reports and what we have there, ranked from most to fewest."""
        reported = columns[RUNNING]
        return shortest_first(
            [max(count, float(view.work.requests)) for count, view in zip(reported, candidates.views, strict=True)]
        )
