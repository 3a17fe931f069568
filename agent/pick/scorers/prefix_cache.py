"""Prefer the endpoint that holds most of this prompt's prefix in its cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.pick.candidates import Candidates
from agent.pick.parameters import only
from agent.pick.scoring import Columns


class PrefixCache:
    """The part of the prompt that the index expects in each candidate's cache."""

    name = "prefix-cache-scorer"
    needs: frozenset[str] = frozenset()

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters, "prefixMatchInfoProducerName")

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float] | None:
        """Expected hit over prompt length; no opinion where nobody holds any of it."""
        prompt = candidates.request.prompt_tokens
        if prompt <= 0 or not any(candidates.hits):
            return None
        return [min(1.0, hit / prompt) for hit in candidates.hits]
