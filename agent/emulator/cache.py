"""The blocks of one server's KV cache: who holds them, which are remembered, which leaves next.

A block is *named* by the hash of all tokens up to its end once it is full, and *unnamed* until then. Requests hold
blocks; several may hold one named block. A named block that nobody holds is idle: it still serves hits until its room
is needed. Idle blocks leave in the order in which they became idle; a request lets go of its blocks from the last to
the first, so the ends of long prompts leave before their beginnings, as in vLLM.

Only held blocks count as used: an idle server reports 0 however full its cache is (recorded in vLLM 0.32).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

Lives = Callable[[str, float], None]  # ("lifetime" | "idle" | "reuse", seconds)


class BlockCache:
    """`capacity` blocks; every method keeps `0 <= used <= capacity` and `used + idle <= capacity`."""

    __slots__ = ("_born", "_holders", "_idle", "_lives", "_touched", "_unnamed", "capacity")

    def __init__(self, capacity: int, lives: Lives | None = None) -> None:
        self.capacity = capacity
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._unnamed = 0
        self._lives = lives
        self._born: dict[int, float] = {}
        self._touched: dict[int, float] = {}

    @property
    def used(self) -> int:
        """Blocks held by requests."""
        return len(self._holders) + self._unnamed

    @property
    def idle(self) -> int:
        """Named blocks that nobody holds."""
        return len(self._idle)

    def match(self, hashes: Sequence[int], limit: int) -> int:
        """How many leading blocks of `hashes[:limit]` are here, held or idle."""
        holders, idle = self._holders, self._idle
        count = 0
        for name in hashes[:limit]:
            if name not in holders and name not in idle:
                break
            count += 1
        return count

    def admit(self, hashes: Sequence[int], matched: int, new: int, now: float) -> bool:
        """Hold the first `matched` of `hashes` and `new` unnamed blocks; False, and none held, if they do not fit."""
        holders, idle = self._holders, self._idle
        shared = hashes[:matched]
        woken = sum(1 for name in shared if name in idle)
        if new + woken > self.capacity - len(holders) - self._unnamed:
            return False
        for name in shared:
            if name in idle:
                del idle[name]
                holders[name] = 1
                if self._lives is not None:
                    self._lives("reuse", now - self._touched[name])
            else:
                holders[name] += 1
        return self.take(new, now)

    def take(self, count: int, now: float) -> bool:
        """Hold `count` more unnamed blocks, making idle ones leave; False, and nothing changed, if there is no room."""
        if count > self.capacity - len(self._holders) - self._unnamed:
            return False
        self._unnamed += count
        idle = self._idle
        while len(self._holders) + self._unnamed + len(idle) > self.capacity:
            name, _ = idle.popitem(last=False)
            if self._lives is not None:
                self._lives("lifetime", now - self._born.pop(name))
                self._lives("idle", now - self._touched.pop(name))
        return True

    def name(self, name: int, now: float) -> bool:
        """Name one unnamed block; False if a block of that name is here already (the caller's copy stays unnamed)."""
        if name in self._holders or name in self._idle:
            return False
        self._holders[name] = 1
        self._unnamed -= 1
        if self._lives is not None:
            self._born[name] = self._touched[name] = now
        return True

    def release(self, named: Sequence[int], unnamed: int, now: float) -> None:
        """Let go of `named`, the last first, and of `unnamed` blocks without a name."""
        self._unnamed -= unnamed
        holders, idle = self._holders, self._idle
        for name in reversed(named):
            left = holders[name] - 1
            if left:
                holders[name] = left
            else:
                del holders[name]
                idle[name] = None
                if self._lives is not None:
                    self._touched[name] = now

    def forget(self) -> None:
        """Drop every idle block: the prefix cache is reset, what requests hold stays."""
        for name in self._idle:
            self._born.pop(name, None)
            self._touched.pop(name, None)
        self._idle.clear()
