"""Prefer the endpoint whose accelerators are the least busy.

Off in every ready-made profile: utilization says that something runs, not how much. A server with one long request is
as busy as one with fifty, and the number is as old as its exporter makes it (dcgm-exporter: up to 30 seconds). It is of
use where other programs run on the same accelerators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.accelerators.table import UTILIZATION
from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scoring import Columns


class Accelerator:
    """1 at idle accelerators, 0 at busy ones."""

    name = "accelerator-utilization-scorer"
    needs = frozenset({UTILIZATION})

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """1 - utilization of the busiest accelerator of each candidate."""
        return [1.0 - busy for busy in columns[UTILIZATION]]
