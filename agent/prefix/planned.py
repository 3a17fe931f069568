"""The prompt blocks of requests that wait, by the endpoint to which they are planned: what its cache will hold by the
time at which a request behind them is dispatched there.

A block counts for each request that brings it, so that a plan which is given up takes back its own blocks only. At most
`limit` blocks are kept; the blocks of a request beyond are not kept, and its successors do not follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# About 200 bytes each (CPython 3.11): at most 100 MB.
MAX_PLANNED_BLOCKS: Final = 500_000


class PlannedBlocks:
    """The planned blocks of one pool."""

    __slots__ = ("_limit", "_where", "blocks")

    def __init__(self, limit: int = MAX_PLANNED_BLOCKS) -> None:
        self._limit = limit
        self._where: dict[int, dict[str, int]] = {}  # block -> address -> requests that bring it
        self.blocks = 0  # a block counts for each request

    def add(self, address: str, chain: Sequence[int]) -> bool:
        """A request with this chain is planned to the address; False where its blocks are not kept."""
        if self.blocks + len(chain) > self._limit:
            return False
        self.blocks += len(chain)
        where = self._where
        for block in chain:
            counts = where.get(block)
            if counts is None:
                where[block] = {address: 1}
            else:
                counts[address] = counts.get(address, 0) + 1
        return True

    def remove(self, address: str, chain: Sequence[int]) -> None:
        """That plan is over. The chain was added for this address."""
        self.blocks -= len(chain)
        where = self._where
        for block in chain:
            counts = where[block]
            left = counts[address] - 1
            if left:
                counts[address] = left
            else:
                del counts[address]
                if not counts:
                    del where[block]

    def match(self, chain: Sequence[int]) -> dict[str, int]:
        """The number of leading blocks of the chain that are planned to each address, where there are any."""
        depths: dict[str, int] = {}
        where = self._where
        alive = where.get(chain[0]) if chain else None
        if not alive:
            return depths
        addresses = set(alive)
        depth = 1
        for block in chain[1:]:
            counts = where.get(block)
            if counts is None:
                break
            if not addresses <= counts.keys():
                still = addresses & counts.keys()
                for address in addresses - still:
                    depths[address] = depth
                addresses = still
                if not addresses:
                    return depths
            depth += 1
        for address in addresses:
            depths[address] = depth
        return depths
