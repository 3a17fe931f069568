"""The prefix index: an estimate of the prompt blocks in each endpoint's cache, bounded per endpoint and in total.

A block is recorded for an endpoint when a prompt with it is sent there, not when it is prefilled. Requests of one burst
with one prefix then go to one endpoint, where all but the first find it cached. The blocks of a request that fails are
removed again (`agent.requests.outcomes`), as far as the proxy reports results.
`make bench-routing` prints predicted over served hits.

Each endpoint holds at most as many blocks as its server's cache, and the least recently used is evicted first. A chain
is recorded from its end to its beginning, so its deepest block is the oldest and the rest of an evicted chain is always
its beginning. All endpoints together hold at most `max_blocks`: above it, endpoints that hold more than an equal share
lose their oldest blocks. That bound holds whatever capacity a server's page reports.

One table maps each block to its endpoints as the bits of one integer. A look-up costs one step for each block of the
chain, whatever the number of endpoints, and one for each address. A block costs about 170 bytes at its first endpoint
and 100 at each further one (CPython 3.11, up to 100 endpoints; 1,000 endpoints: 260).

A prefix is shared where prompts continued it in at least `SHARED_CONTINUATIONS` ways. A conversation continues the end
of its last prompt, in one way or, edited and sent again, in a few; a system prompt or a document is continued by each
prompt in its own way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice, repeat
from typing import Final

# Blocks per endpoint until its server reports the size of its cache: the reference's default.
DEFAULT_CAPACITY_BLOCKS: Final = 31_250
# Blocks of all endpoints together; one that two endpoints hold counts twice. At most about half a gigabyte.
MAX_BLOCKS: Final = 2_000_000
# From this number of different continuations on, a prefix is shared. Two and three occur in conversations: to treat
# those as shared cost 0.3 % of the p90 to first token on the Mooncake conversation trace.
SHARED_CONTINUATIONS: Final = 4


class _Holder:
    __slots__ = ("address", "bit", "blocks", "capacity")

    def __init__(self, address: str, bit: int, capacity: int) -> None:
        self.address = address
        self.bit = bit
        self.capacity = capacity
        self.blocks: OrderedDict[int, None] = OrderedDict()  # the least recently used first


class PrefixIndex:
    """The index of one pool. An address is known from its first `record` or `resize` until `forget`."""

    def __init__(self, default_capacity_blocks: int = DEFAULT_CAPACITY_BLOCKS, max_blocks: int = MAX_BLOCKS) -> None:
        self._default_capacity = max(1, default_capacity_blocks)
        self._max = max_blocks
        self._held = 0
        self._holders: dict[str, _Holder] = {}
        self._by_bit: dict[int, _Holder] = {}
        self._where: dict[int, int] = {}
        self._ends: set[int] = set()  # the last blocks of prompts that no prompt has continued
        self._continuations: dict[int, int] = {}  # of blocks that prompts continued in more than one way
        self._free_bits: list[int] = []

    def match(self, chain: Sequence[int], addresses: Sequence[str]) -> list[int]:
        """The number of leading blocks of the chain that each address holds, in the order of the addresses."""
        where = self._where
        alive = where.get(chain[0], 0) if chain else 0
        if not alive:
            return [0] * len(addresses)
        depths: dict[str, int] = {}
        depth = 1
        for block in chain[1:]:
            still = alive & where.get(block, 0)
            if still != alive:
                self._note_depth(alive ^ still, depth, depths)
                alive = still
                if not alive:
                    break
            depth += 1
        self._note_depth(alive, depth, depths)
        return list(map(depths.get, addresses, repeat(0)))

    def record(self, address: str, chain: Sequence[int]) -> None:
        """Record that a prompt with this chain was sent to the address."""
        holder = self._holder(address)
        blocks, bit, where = holder.blocks, holder.bit, self._where
        before = len(blocks)
        if chain and chain[-1] not in where:
            self._ends.add(chain[-1])
        continued = False  # the block behind in the chain is a new one
        for block in reversed(chain):
            if block in blocks:
                blocks.move_to_end(block)
                held = bit
            else:
                blocks[block] = None
                held = where.get(block, 0)
                where[block] = held | bit
            if not held:
                continued = True
            elif continued:
                continued = False
                self._continue(block)
        self._held += len(blocks) - before
        self._shrink(holder, holder.capacity)
        if self._held > self._max:
            self._share_out(holder)

    def newest(self, count: int) -> dict[str, list[int]]:
        """The most recently used blocks of each address, the oldest of them first; at most `count` in all, each address
        an equal share."""
        share = count // max(1, len(self._holders))
        found: dict[str, list[int]] = {}
        for address, holder in self._holders.items():
            blocks = list(islice(reversed(holder.blocks), share))
            if blocks:
                blocks.reverse()
                found[address] = blocks
        return found

    def restore(self, address: str, blocks: Sequence[int]) -> None:
        """Record blocks that `newest` of another index returned, unless any block of the address is known here."""
        holder = self._holder(address)
        if holder.blocks:
            return
        bit, where, held = holder.bit, self._where, holder.blocks
        for block in blocks:
            held[block] = None
            where[block] = where.get(block, 0) | bit
        self._held += len(held)
        self._shrink(holder, holder.capacity)
        if self._held > self._max:
            self._share_out(holder)

    def holds(self, address: str, block: int) -> bool:
        """Whether the address holds the block, by the estimate."""
        holder = self._holders.get(address)
        return holder is not None and block in holder.blocks

    def remove(self, address: str, chain: Sequence[int]) -> None:
        """Remove these blocks of the address: a prompt with them was sent there and not prefilled."""
        holder = self._holders.get(address)
        if holder is None:
            return
        blocks, bit, where = holder.blocks, holder.bit, self._where
        for block in chain:
            if blocks.pop(block, self) is None:
                self._held -= 1
                left = where[block] ^ bit
                if left:
                    where[block] = left
                else:
                    del where[block]

    def shared(self, chain: Sequence[int], depth: int) -> bool:
        """Whether many prompts begin with the first `depth` blocks of the chain, and continue them differently."""
        return depth > 0 and self._continuations.get(chain[depth - 1], 0) >= SHARED_CONTINUATIONS

    def resize(self, address: str, capacity_blocks: int) -> None:
        """Set the number of blocks that the address holds at most; at least one."""
        holder = self._holder(address)
        holder.capacity = max(1, capacity_blocks)
        self._shrink(holder, holder.capacity)

    def clear(self, address: str) -> None:
        """Remove all blocks of the address, which keeps its capacity. An unknown address is ignored."""
        holder = self._holders.get(address)
        if holder is not None:
            self._shrink(holder, 0)

    def forget(self, address: str) -> None:
        """Remove the address and all its blocks. An unknown address is ignored."""
        holder = self._holders.pop(address, None)
        if holder is None:
            return
        self._shrink(holder, 0)
        del self._by_bit[holder.bit]
        self._free_bits.append(holder.bit)

    def blocks(self, address: str) -> int:
        """The number of blocks that the address holds, by the estimate."""
        holder = self._holders.get(address)
        return 0 if holder is None else len(holder.blocks)

    def capacity(self, address: str) -> int:
        """The number of blocks that the address can hold."""
        holder = self._holders.get(address)
        return self._default_capacity if holder is None else holder.capacity

    def __len__(self) -> int:
        """The number of different blocks at any address."""
        return len(self._where)

    def _holder(self, address: str) -> _Holder:
        holder = self._holders.get(address)
        if holder is None:
            bit = self._free_bits.pop() if self._free_bits else 1 << len(self._holders)
            holder = self._holders[address] = self._by_bit[bit] = _Holder(address, bit, self._default_capacity)
        return holder

    def _shrink(self, holder: _Holder, size: int, total: int | None = None) -> None:
        """Evict the holder's oldest blocks until it has `size` of them, or all holders together have `total`."""
        blocks, bit, where = holder.blocks, holder.bit, self._where
        excess = len(blocks) - size
        if total is not None:
            excess = min(excess, self._held - total)
        if excess <= 0:
            return
        for _ in range(excess):
            block, _ = blocks.popitem(last=False)
            left = where[block] ^ bit
            if left:
                where[block] = left
            else:
                del where[block]
                self._ends.discard(block)
                self._continuations.pop(block, None)
        self._held -= excess

    def _continue(self, block: int) -> None:
        """Note that a prompt continued this block, which was known, in a new way."""
        if block in self._ends:
            self._ends.remove(block)
        else:
            self._continuations[block] = self._continuations.get(block, 1) + 1

    def _share_out(self, writer: _Holder) -> None:
        """Evict blocks until all holders together are within the bound: first of the writer, then of others above their
        share."""
        share = self._max // len(self._holders)
        self._shrink(writer, share, self._max)
        for holder in self._holders.values():
            if self._held <= self._max:
                return
            self._shrink(holder, share, self._max)

    def _note_depth(self, bits: int, depth: int, depths: dict[str, int]) -> None:
        """Set `depth` for the address of each bit in `bits`."""
        by_bit = self._by_bit
        while bits:
            bit = bits & -bits
            depths[by_bit[bit].address] = depth
            bits ^= bit
