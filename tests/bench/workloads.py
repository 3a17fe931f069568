"""Workloads of the routing bench that are generated, not recorded. Equal arguments give equal workloads."""

from __future__ import annotations

from itertools import accumulate, count
from random import Random
from typing import NamedTuple

from tests.bench.replay import Arrival


class SharedPrefixes(NamedTuple):
    """Questions about a few long documents: each prompt is one of `prefixes` and a question of its own.

    A prefix has `prefix_blocks` blocks, a question up to `question_blocks`; the answer has `answer_tokens` in the mean
    (exponential). Requests arrive at random at `per_second`. The popularity of the prefixes is Zipf's with the exponent
    `skew`.
    """

    prefixes: int
    prefix_blocks: int = 32
    question_blocks: int = 16
    answer_tokens: float = 500.0
    per_second: float = 9.4
    skew: float = 0.8


def shared_prefixes(shape: SharedPrefixes, requests: int, block_tokens: int, seed: int) -> list[Arrival]:
    """The first `requests` requests, in order of time; the last block of each is partial."""
    rng = Random(seed)
    weights = list(accumulate(1 / (rank + 1) ** shape.skew for rank in range(shape.prefixes)))
    new_blocks = count(shape.prefixes * shape.prefix_blocks)
    now, arrivals = 0.0, list[Arrival]()
    for _ in range(requests):
        now += rng.expovariate(shape.per_second)
        [prefix] = rng.choices(range(shape.prefixes), cum_weights=weights)
        first = prefix * shape.prefix_blocks
        blocks = [*range(first, first + shape.prefix_blocks)]
        blocks.extend(next(new_blocks) for _ in range(rng.randint(1, shape.question_blocks)))
        prompt_tokens = len(blocks) * block_tokens - rng.randrange(block_tokens)
        arrivals.append(Arrival(now, prompt_tokens, max(1, int(rng.expovariate(1 / shape.answer_tokens))), blocks))
    return arrivals
