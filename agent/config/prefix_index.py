"""`prefixIndex`: the index of prompt prefixes."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.options import option
from agent.config.values import Boolean, Number


@dataclass(frozen=True, slots=True)
class PrefixIndexConfig:
    """The index of the prompts that each endpoint received."""

    block_tokens: int = option(Number(16, 4096, whole=True), "tokens per block of the index", 64, live=False)
    bytes_per_token: int = option(
        Number(1, 64, whole=True), "bytes of prompt text that count as one token", 4, live=False
    )
    max_tokens: int = option(
        Number(64, 1 << 24, whole=True), "tokens of a prompt that are compared, from its start", 131_072, live=False
    )
    capacity_blocks: int = option(
        Number(1, 10_000_000, whole=True),
        "blocks per endpoint that does not report the size of its cache",
        31_250,
        live=False,
    )
    max_blocks: int = option(
        Number(1, 1_000_000_000, whole=True),
        "blocks of all endpoints of a pool together, about 250 bytes each",
        2_000_000,
        live=False,
    )
    auto_size: bool = option(Boolean(), "follow the cache size that an endpoint reports", default=True, live=False)
