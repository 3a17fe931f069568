"""What a pick may depend on, and what it gives back: a pick with its reasons, or no pick with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class PickRequest(NamedTuple):
    """One request as the picker sees it.

    `chain` holds the hash of each whole block of the prompt, each hash covering all blocks before it
    (`agent.prefix.blocks`); `block_tokens` is the number of tokens of one block. `subset`, where the proxy gave one,
    holds the only addresses (`ip:port`) that may be picked.
    """

    request_id: str
    model: str
    prompt_tokens: int
    chain: Sequence[int] = ()
    block_tokens: int = 64
    subset: frozenset[str] | None = None


class Pick(NamedTuple):
    """The endpoint for one request and why.

    `fallbacks`, none unless asked for, are the next best candidates, the best first: where the proxy may go when it
    cannot reach `endpoint`. The request counts as in flight at `endpoint` even then, because nobody tells us.
    `addresses` are the candidates, in the order of every list in `scores` (scorer name -> one score per candidate) and
    of `totals` (the weighted sums). `decided_by` names what made the difference: `only_candidate`, `tie` or the scorer
    whose weighted score set the winner furthest apart from the runner-up. `hit_tokens` is what the index predicts to be
    cached at `endpoint`; `best_hit_tokens` the most that it predicts at any candidate, so that `left_warmest` tells a
    warm endpoint left for load.
    """

    request_id: str
    endpoint: str
    fallbacks: tuple[str, ...]
    prompt_tokens: int
    hit_tokens: int
    best_hit_tokens: int
    decided_by: str
    addresses: Sequence[str]
    totals: Sequence[float]
    scores: dict[str, Sequence[float]]
    version: int

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that the endpoint has to prefill, as far as the index knows; at least one."""
        return max(1, self.prompt_tokens - self.hit_tokens)

    @property
    def left_warmest(self) -> bool:
        """True when another candidate had more of this prompt in its cache."""
        return self.hit_tokens < self.best_hit_tokens


class NoPick(NamedTuple):
    """Why there is no endpoint: `reason` is one word for a label, `detail` a sentence for a person.

    Reasons: `no_endpoints` (the pool is empty), `none_healthy` (`detail` counts them by health), `subset_empty` (the
    proxy's subset holds no healthy endpoint of the pool), `all_filtered` (a filter left nothing).
    """

    request_id: str
    reason: str
    detail: str


class Prompt(NamedTuple):
    """What a request body says that a pick may depend on. A request without a body has an empty model and text.

    `text` is the prompt as bytes, in the order in which the model reads it, so that two requests with a common
    beginning have texts with a common beginning; `salt` keeps apart what must not share a cache (`cache_salt`).
    """

    model: str
    text: bytes
    salt: bytes = b""
