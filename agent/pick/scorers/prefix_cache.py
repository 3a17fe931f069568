"""Prefer the endpoint that holds most of this prompt's prefix in its cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scoring import Columns


class PrefixCache:
    """The share of the prompt that the index predicts in each candidate's cache."""

    name = "prefix-cache-scorer"
    needs: frozenset[str] = frozenset()

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters, "prefixMatchInfoProducerName")

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float] | None:
        """Predicted hit over prompt length; None where no candidate holds any of it."""
        prompt = candidates.request.prompt_tokens
        if prompt <= 0 or not any(candidates.hits):
            return None
        return [min(1.0, hit / prompt) for hit in candidates.hits]
