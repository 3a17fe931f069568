"""Which endpoint holds which prefix, as far as we sent it there: an estimate, bounded per endpoint, in memory.

A block is known at an endpoint from the moment at which a prompt with it was sent there, not from the moment at which
it was prefilled: requests of one burst with one prefix then meet at one endpoint, where all but the first find it
cached. Each endpoint remembers at most as many blocks as its server's cache holds, least recently used first out. A
chain is touched from its end to its beginning, so its deepest block is the oldest and leaves first, and what is left of
a chain is always its beginning.

One table holds, for each block, the endpoints that have it as bits of one integer: a look-up costs the same for four
endpoints and for a thousand. A block costs about 190 bytes for its first endpoint and 110 for each further one (CPython
3.11).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

# Blocks per endpoint until its server says how much its cache holds: the reference's default.
DEFAULT_CAPACITY_BLOCKS: Final = 31_250


class _Holder:
    __slots__ = ("bit", "blocks", "capacity")

    def __init__(self, bit: int, capacity: int) -> None:
        self.bit = bit
        self.capacity = capacity
        self.blocks: OrderedDict[int, None] = OrderedDict()


class PrefixIndex:
    """The index of one pool. Addresses are known from the first `record` or `resize` on, until `forget`."""

    def __init__(self, default_capacity_blocks: int = DEFAULT_CAPACITY_BLOCKS) -> None:
        self._default_capacity = default_capacity_blocks
        self._holders: dict[str, _Holder] = {}
        self._where: dict[int, int] = {}
        self._free_bits: list[int] = []

    def match(self, chain: Sequence[int], addresses: Sequence[str]) -> list[int]:
        """How many leading blocks of the chain each of the addresses holds, in their order."""
        where = self._where
        alive = where.get(chain[0], 0) if chain else 0
        if not alive:
            return [0] * len(addresses)
        depths: dict[int, int] = {}
        depth = 1
        for block in chain[1:]:
            still = alive & where.get(block, 0)
            if still != alive:
                _spell(alive & ~still, depth, depths)
                alive = still
                if not alive:
                    break
            depth += 1
        _spell(alive, depth, depths)
        holders = self._holders
        return [
            depths.get(holder.bit, 0) if (holder := holders.get(address)) is not None else 0 for address in addresses
        ]

    def record(self, address: str, chain: Sequence[int]) -> None:
        """A prompt with this chain was sent to the address."""
        holder = self._holder(address)
        blocks, bit, where = holder.blocks, holder.bit, self._where
        for block in reversed(chain):
            if block in blocks:
                blocks.move_to_end(block)
            else:
                blocks[block] = None
                where[block] = where.get(block, 0) | bit
        self._shrink(holder)

    def resize(self, address: str, capacity_blocks: int) -> None:
        """The address holds at most so many blocks from now on; at least one."""
        holder = self._holder(address)
        holder.capacity = max(1, capacity_blocks)
        self._shrink(holder)

    def forget(self, address: str) -> None:
        """The address holds nothing any more; unknown addresses hold nothing anyway."""
        holder = self._holders.pop(address, None)
        if holder is None:
            return
        for block in holder.blocks:
            self._leave(block, holder.bit)
        self._free_bits.append(holder.bit)

    def blocks(self, address: str) -> int:
        """How many blocks the address is taken to hold."""
        holder = self._holders.get(address)
        return 0 if holder is None else len(holder.blocks)

    def capacity(self, address: str) -> int:
        """How many blocks the address can hold."""
        holder = self._holders.get(address)
        return self._default_capacity if holder is None else holder.capacity

    def __len__(self) -> int:
        """How many different blocks are known anywhere."""
        return len(self._where)

    def _holder(self, address: str) -> _Holder:
        holder = self._holders.get(address)
        if holder is None:
            bit = self._free_bits.pop() if self._free_bits else 1 << len(self._holders)
            holder = self._holders[address] = _Holder(bit, self._default_capacity)
        return holder

    def _shrink(self, holder: _Holder) -> None:
        blocks = holder.blocks
        while len(blocks) > holder.capacity:
            block, _ = blocks.popitem(last=False)
            self._leave(block, holder.bit)

    def _leave(self, block: int, bit: int) -> None:
        left = self._where[block] & ~bit
        if left:
            self._where[block] = left
        else:
            del self._where[block]


def _spell(bits: int, depth: int, depths: dict[int, int]) -> None:
    """Note `depth` for each bit that is set."""
    while bits:
        bit = bits & -bits
        depths[bit] = depth
        bits ^= bit
