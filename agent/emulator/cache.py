"""The blocks of one server's KV cache: which are held by requests, which are idle, which is evicted next.

A block is *hashed* once it is full: its key is the hash of all tokens up to its end. Until then it is *unhashed*.
Several requests may hold one hashed block. A hashed block that no request holds is idle: it still serves hits until its
space is needed. Idle blocks are evicted in the order in which they became idle. A request releases its blocks from the
last to the first, so the end of a long prompt is evicted before its beginning, as in vLLM.

Only held blocks count as used: an idle server reports 0 however full its cache is (recorded in vLLM 0.32).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

BlockAges = Callable[[str, float], None]  # ("lifetime" | "idle" | "reuse", seconds)


class BlockCache:
    """`capacity` blocks; every method keeps `0 <= used <= capacity` and `used + idle <= capacity`."""

    __slots__ = ("_ages", "_created", "_holders", "_idle", "_unhashed", "_used_at", "capacity")

    def __init__(self, capacity: int, ages: BlockAges | None = None) -> None:
        self.capacity = capacity
        self._holders: dict[int, int] = {}  # hash -> number of requests that hold the block
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._unhashed = 0
        self._ages = ages
        self._created: dict[int, float] = {}
        self._used_at: dict[int, float] = {}

    @property
    def used(self) -> int:
        """Blocks held by requests."""
        return len(self._holders) + self._unhashed

    @property
    def idle(self) -> int:
        """Hashed blocks that no request holds."""
        return len(self._idle)

    def match(self, hashes: Sequence[int], limit: int) -> int:
        """How many leading blocks of `hashes[:limit]` are in the cache, held or idle."""
        holders, idle = self._holders, self._idle
        count = 0
        for key in hashes[:limit]:
            if key not in holders and key not in idle:
                break
            count += 1
        return count

    def admit(self, hashes: Sequence[int], matched: int, new: int, now: float) -> bool:
        """Hold the first `matched` of `hashes` and `new` unhashed blocks; False, with none held, if they do not fit."""
        holders, idle = self._holders, self._idle
        shared = hashes[:matched]
        reused = sum(1 for key in shared if key in idle)
        if new + reused > self.capacity - len(holders) - self._unhashed:
            return False
        for key in shared:
            if key in idle:
                del idle[key]
                holders[key] = 1
                if self._ages is not None:
                    self._ages("reuse", now - self._used_at[key])
            else:
                holders[key] += 1
        return self.allocate(new, now)

    def allocate(self, count: int, now: float) -> bool:
        """Hold `count` more unhashed blocks and evict idle ones for them; False, with no change, if they do not fit."""
        if count > self.capacity - len(self._holders) - self._unhashed:
            return False
        self._unhashed += count
        idle = self._idle
        while len(self._holders) + self._unhashed + len(idle) > self.capacity:
            key, _ = idle.popitem(last=False)
            if self._ages is not None:
                self._ages("lifetime", now - self._created.pop(key))
                self._ages("idle", now - self._used_at.pop(key))
        return True

    def add_hash(self, key: int, now: float) -> bool:
        """Give one unhashed block its hash; False if the cache has that block already (the copy stays unhashed)."""
        if key in self._holders or key in self._idle:
            return False
        self._holders[key] = 1
        self._unhashed -= 1
        if self._ages is not None:
            self._created[key] = self._used_at[key] = now
        return True

    def release(self, hashed: Sequence[int], unhashed: int, now: float) -> None:
        """Release the blocks `hashed`, the last one first, and a number of unhashed blocks."""
        self._unhashed -= unhashed
        holders, idle = self._holders, self._idle
        for key in reversed(hashed):
            left = holders[key] - 1
            if left:
                holders[key] = left
            else:
                del holders[key]
                idle[key] = None
                if self._ages is not None:
                    self._used_at[key] = now

    def drop_idle(self) -> None:
        """Drop every idle block, as a reset of the prefix cache does; held blocks stay."""
        for key in self._idle:
            self._created.pop(key, None)
            self._used_at.pop(key, None)
        self._idle.clear()
