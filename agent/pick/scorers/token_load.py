"""Prefer the endpoint with the fewest uncached prompt tokens in flight, those of this request included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from agent.pick.candidates import Candidates
from agent.pick.parameters import number, only
from agent.pick.scoring import Columns

# The load at which the score is 0; the reference's `token-load-scorer` has the same.
FULL_TOKENS: Final = 4_194_304.0


class TokenLoad:
    """1 - min(1, (backlog in uncached tokens + this request's uncached tokens) / queueThresholdTokens)."""

    name = "token-load-scorer"
    needs: frozenset[str] = frozenset()

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters, "queueThresholdTokens")
        self.full = number(parameters, "queueThresholdTokens", FULL_TOKENS, low=1, high=1e15)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """The free part of each candidate's threshold once this request is there."""
        prompt = candidates.request.prompt_tokens
        return [
            1.0 - min(1.0, (backlog * work.rate + max(0, prompt - hit)) / self.full)
            for work, hit, backlog in zip(candidates.works, candidates.hits, candidates.backlog_seconds, strict=True)
        ]
