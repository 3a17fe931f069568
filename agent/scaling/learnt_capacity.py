"""How many requests per second one replica of a pool can serve.

It shows only while a replica is saturated: what one with free capacity serves is what arrives. A capacity that were
learnt from all replicas would fall with the load of each, so that a pool that has grown would never shrink.

The value is an envelope. It follows the measured throughput of saturated replicas up within a minute and down with a
half-life of ten minutes of saturated time; without a saturated replica it stays. So a minute of long prompts lowers it
little, a lasting change of the requests is followed, and a rising queue meanwhile counts as backlog. It stays within
`SPREAD` times the declared value, so that a server that is stuck cannot make it 0.

Every replica of the agent learns by itself. The capacity is that of all their envelopes (`agent.scaling.envelope`). One
that learns nothing for `GAP_SECONDS` while others do continues from theirs. The envelope of a replica that has gone is
kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final, NamedTuple

from agent.scaling.envelope import Envelope, largest

RISE_SECONDS: Final = 30.0  # half-life
GAP_SECONDS: Final = 60.0
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
    """The capacity of the replicas of one pool. `declared` is the configured value, None without one; `own` the
    envelope that this replica of the agent has learnt, None before."""

    def __init__(self, declared: float | None = None) -> None:
        self.declared = declared
        self.own: Envelope | None = None
        self._peers: Mapping[str, Envelope] = {}

    def observe(self, saturated: Sequence[float], seconds: float, now: float) -> None:
        """Record the throughput, in requests per second, of each replica that was saturated during the whole time of
        its measurement; `seconds` have passed since the last call. A replica that has finished nothing is stuck or
        works on long requests: it shows no capacity. Of several the median counts."""
        rates = [rate for rate in saturated if rate > 0]
        if not rates:
            return
        sample = median(rates)
        before = self._before()
        if before is None:
            value = sample
        elif sample > before.value:
            value = sample + (before.value - sample) * float(0.5 ** (max(0.0, seconds) / RISE_SECONDS))
        else:
            value = before.fallen(sample, seconds)
        self.own = Envelope(value, now)

    def restore(self, value: float, at: float) -> None:
        """Continue with what was learnt before a restart, unless more was learnt here."""
        if self.own is None or at > self.own.at:
            self.own = Envelope(value, at)

    def set_peers(self, envelopes: Mapping[str, Envelope]) -> None:
        """Replace the envelopes of the other replicas of the agent, by replica; that of one that is no more among them
        is kept as part of the own one."""
        gone = [each for peer, each in self._peers.items() if peer not in envelopes]
        if gone:
            self.own = largest([*gone] if self.own is None else [self.own, *gone])
        self._peers = dict(envelopes)

    def capacity(self) -> Capacity:
        """The learnt value within its bounds, else the declared one, else None."""
        learnt, declared = self._of_all(), self.declared
        if learnt is None:
            return Capacity(declared, UNKNOWN_CAPACITY if declared is None else DECLARED)
        low, high = (LOWEST, HIGHEST) if declared is None else (declared / SPREAD, declared * SPREAD)
        return Capacity(min(max(learnt.value, low), high), LEARNT, learnt.at)

    def _of_all(self) -> Envelope | None:
        peers = self._peers.values()
        return largest(peers if self.own is None else (self.own, *peers))

    def _before(self) -> Envelope | None:
        """What a new sample continues from."""
        own, of_all = self.own, self._of_all()
        if own is None or of_all is None or of_all.at - own.at > GAP_SECONDS:
            return of_all
        return own
