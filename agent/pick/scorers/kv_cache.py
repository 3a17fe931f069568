"""Prefer the endpoint with the most free KV cache: 1 - usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scoring import Columns
from agent.signals import KV_USAGE


class KvCache:
    """1 where the cache is empty, 0 where it is full."""

    name = "kv-cache-utilization-scorer"
    needs = frozenset({KV_USAGE})

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """1 - usage at each candidate."""
        return [1.0 - usage for usage in columns[KV_USAGE]]
