"""Prefer the endpoint whose accelerators are the least busy.

No preset uses it: utilization shows that something runs, not how much. A server with one long request is as busy as one
with fifty, and the reading is as old as its exporter makes it (dcgm-exporter: up to 30 seconds). It helps where other
programs run on the same accelerators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.accelerators.table import UTILIZATION
from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scoring import Columns


class Accelerator:
    """1 where the accelerators are idle, 0 where one is busy."""

    name = "accelerator-utilization-scorer"
    needs = frozenset({UTILIZATION})

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """1 - utilization of the busiest accelerator of each candidate."""
        return [1.0 - busy for busy in columns[UTILIZATION]]
