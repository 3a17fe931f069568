"""Which endpoint holds which prefix, as far as we sent it there: an estimate, bounded per endpoint and in all.

A block is known at an endpoint from the moment at which a prompt with it was sent there, not from the moment at which
it was prefilled: requests of one burst with one prefix then meet at one endpoint, where all but the first find it
cached. The price is that a request which fails before its prefill leaves blocks here that its server never had; they
leave like any block that is not used again. `make bench-routing` prints predicted over served hits.

Each endpoint remembers at most as many blocks as its server's cache holds, least recently used first out. A chain is
touched from its end to its beginning, so its deepest block is the oldest and leaves first, and what is left of a chain
is always its beginning. All endpoints together remember at most `most_blocks`: over that, endpoints that hold more than
an equal share give up their oldest blocks. That bound holds whatever capacity a server's page claims.

One table holds, for each block, the endpoints that have it as bits of one integer, so a look-up costs a step for each
block of the chain, whatever the number of endpoints, and one for each address asked about. A block costs about 170
bytes at its first endpoint and 100 at each further one (CPython 3.11, up to 100 endpoints; 1,000 endpoints: 260).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import repeat
from typing import Final

# Blocks per endpoint until its server says how much its cache holds: the reference's default.
DEFAULT_CAPACITY_BLOCKS: Final = 31_250
# Blocks of all endpoints together, one that two endpoints hold counted twice: at most about half a gigabyte.
MOST_BLOCKS: Final = 2_000_000


class _Holder:
    __slots__ = ("address", "bit", "blocks", "capacity")

    def __init__(self, address: str, bit: int, capacity: int) -> None:
        self.address = address
        self.bit = bit
        self.capacity = capacity
        self.blocks: OrderedDict[int, None] = OrderedDict()  # the least recently used first


class PrefixIndex:
    """The index of one pool. Addresses are known from the first `record` or `resize` on, until `forget`."""

    def __init__(self, default_capacity_blocks: int = DEFAULT_CAPACITY_BLOCKS, most_blocks: int = MOST_BLOCKS) -> None:
        self._default_capacity = max(1, default_capacity_blocks)
        self._most = most_blocks
        self._held = 0
        self._holders: dict[str, _Holder] = {}
        self._by_bit: dict[int, _Holder] = {}
        self._where: dict[int, int] = {}
        self._free_bits: list[int] = []

    def match(self, chain: Sequence[int], addresses: Sequence[str]) -> list[int]:
        """How many leading blocks of the chain each of the addresses holds, in their order."""
        where = self._where
        alive = where.get(chain[0], 0) if chain else 0
        if not alive:
            return [0] * len(addresses)
        depths: dict[str, int] = {}
        depth = 1
        for block in chain[1:]:
            still = alive & where.get(block, 0)
            if still != alive:
                self._spell(alive ^ still, depth, depths)
                alive = still
                if not alive:
                    break
            depth += 1
        self._spell(alive, depth, depths)
        return list(map(depths.get, addresses, repeat(0)))

    def record(self, address: str, chain: Sequence[int]) -> None:
        """A prompt with this chain was sent to the address."""
        holder = self._holder(address)
        blocks, bit, where = holder.blocks, holder.bit, self._where
        before = len(blocks)
        for block in reversed(chain):
            if block in blocks:
                blocks.move_to_end(block)
            else:
                blocks[block] = None
                where[block] = where.get(block, 0) | bit
        self._held += len(blocks) - before
        self._shrink(holder, holder.capacity)
        if self._held > self._most:
            self._share_out(holder)

    def resize(self, address: str, capacity_blocks: int) -> None:
        """The address holds at most so many blocks from now on; at least one."""
        holder = self._holder(address)
        holder.capacity = max(1, capacity_blocks)
        self._shrink(holder, holder.capacity)

    def forget(self, address: str) -> None:
        """The address holds nothing any more; unknown addresses hold nothing anyway."""
        holder = self._holders.pop(address, None)
        if holder is None:
            return
        self._shrink(holder, 0)
        del self._by_bit[holder.bit]
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
            holder = self._holders[address] = self._by_bit[bit] = _Holder(address, bit, self._default_capacity)
        return holder

    def _shrink(self, holder: _Holder, size: int, most: int | None = None) -> None:
        """Let the holder's oldest blocks go until it has `size` of them, or all holders together have `most`."""
        blocks, bit, where = holder.blocks, holder.bit, self._where
        excess = len(blocks) - size
        if most is not None:
            excess = min(excess, self._held - most)
        if excess <= 0:
            return
        for _ in range(excess):
            block, _ = blocks.popitem(last=False)
            left = where[block] ^ bit
            if left:
                where[block] = left
            else:
                del where[block]
        self._held -= excess

    def _share_out(self, writer: _Holder) -> None:
        """Bring all holders together down to the bound: first the writer gives, then others above their share."""
        share = self._most // len(self._holders)
        self._shrink(writer, share, self._most)
        for holder in self._holders.values():
            if self._held <= self._most:
                return
            self._shrink(holder, share, self._most)

    def _spell(self, bits: int, depth: int, depths: dict[str, int]) -> None:
        """Note `depth` for the address of each bit that is set."""
        by_bit = self._by_bit
        while bits:
            bit = bits & -bits
            depths[by_bit[bit].address] = depth
            bits ^= bit
