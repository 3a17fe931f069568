"""What a pick may depend on: the prompt of a request, and the request as the picker reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class PickRequest(NamedTuple):
    """One request as the picker reads it.

    `chain` holds the hash of each whole block of the prompt, each hash covering all blocks before it
    (`agent.prefix.blocks`); `block_tokens` is the number of tokens of one block. `subset`, where the proxy sent one,
    holds the only addresses (`ip:port`) that may be picked. `max_output_tokens` as in Prompt.
    """

    request_id: str
    model: str
    prompt_tokens: int
    chain: Sequence[int] = ()
    block_tokens: int = 64
    subset: frozenset[str] | None = None
    max_output_tokens: int = 0


class Prompt(NamedTuple):
    """The parts of a request body on which a pick may depend. A request without a body has an empty model and text.

    `text` is the prompt as bytes, in the order in which the model reads it: two requests with a common beginning have
    texts with a common beginning. `salt` separates what must not share a cache (`cache_salt`). `max_output_tokens` is
    the limit that the request sets to the tokens of its answers together, 0 where it sets none.
    """

    model: str
    text: bytes
    salt: bytes = b""
    max_output_tokens: int = 0
