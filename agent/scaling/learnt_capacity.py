"""How many requests per second one replica of a pool can serve.

It shows only while a replica is saturated: what one with free capacity serves is what arrives. A capacity that were
learnt from all replicas would fall with the load of each, so that a pool that has grown would never shrink.

The value is an envelope. It follows the measured throughput of saturated replicas up within a minute and down with a
half-life of ten minutes of saturated time; without a saturated replica it stays. So a minute of long prompts lowers it
little, a lasting change of the requests is followed, and a rising queue meanwhile counts as backlog. It stays within
`SPREAD` times the declared value, so that a server that is stuck cannot make it 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final, NamedTuple

RISE_SECONDS: Final = 30.0  # half-lives
FALL_SECONDS: Final = 600.0
SPREAD: Final = 10.0
# The range of a capacity without a declared value, in requests per second.
LOWEST: Final = 1e-3
HIGHEST: Final = 1e5

DECLARED: Final = "declared"
LEARNT: Final = "learnt"
UNKNOWN_CAPACITY: Final = "unknown"
SOURCES: Final = (LEARNT, DECLARED, UNKNOWN_CAPACITY)


class Capacity(NamedTuple):
    """Requests per second of one replica (None: unknown), what it comes from, and when it was last learnt (monotonic
    seconds; None: never)."""

    requests_per_second: float | None
    source: str
    learnt_at: float | None = None


class LearntCapacity:
    """The capacity of the replicas of one pool. `declared` is the configured value, None without one."""

    def __init__(self, declared: float | None = None) -> None:
        self.declared = declared
        self._value: float | None = None
        self._at: float | None = None

    def observe(self, saturated: Sequence[float], seconds: float, now: float) -> None:
        """Record the throughput, in requests per second, of each replica that was saturated during the whole time of
        its measurement; `seconds` have passed since the last call. A replica that has finished nothing is stuck or
        works on long requests: it shows no capacity. Of several the median counts."""
        rates = [rate for rate in saturated if rate > 0]
        if not rates:
            return
        sample = median(rates)
        before = self._value
        if before is None:
            self._value = sample
        else:
            half_life = RISE_SECONDS if sample > before else FALL_SECONDS
            self._value = sample + (before - sample) * 0.5 ** (max(0.0, seconds) / half_life)
        self._at = now

    def restore(self, value: float, at: float) -> None:
        """Continue with what was learnt before a restart or by another replica of the agent, unless more was learnt
        here."""
        if self._at is None or at > self._at:
            self._value, self._at = value, at

    def capacity(self) -> Capacity:
        """The learnt value within its bounds, else the declared one, else None."""
        value, declared = self._value, self.declared
        if value is None:
            return Capacity(declared, UNKNOWN_CAPACITY if declared is None else DECLARED)
        low, high = (LOWEST, HIGHEST) if declared is None else (declared / SPREAD, declared * SPREAD)
        return Capacity(min(max(value, low), high), LEARNT, self._at)
