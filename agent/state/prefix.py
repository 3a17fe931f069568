"""The index of prefixes, as far as the state knows it."""

from __future__ import annotations

from typing import Protocol


class PrefixMemory(Protocol):
    """What the store tells an index of prefixes: how much an endpoint holds, and that it holds nothing any more."""

    def resize(self, address: str, capacity_blocks: int) -> None:
        """The endpoint's cache has room for so many blocks of the index."""
        ...

    def forget(self, address: str) -> None:
        """The endpoint is gone or has lost its cache."""
        ...
