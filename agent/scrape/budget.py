"""How often each endpoint is asked when there may be only so many scrapes in a second. Pure.

Where all can be asked at the configured interval, they are. Where not, those that stand still make room first: they go
to longer intervals, up to the longest with which their readings stay fresh. Then those at work share what is left
evenly, up to the longest interval too. Readings stay fresh even where that costs more than the budget: a fleet that
large has outgrown it, which is told.

Intervals are averages, so that what comes together is held back by a gate: no span of time has more scrapes than the
budget has for it, and one more. A budget of CPU is one of scrapes that is found out: what the process used of late says
whether there may be more of them or fewer.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# The part of the budget that is given out: a gate that is asked for all that it lets through has a queue without end.
GIVEN_OUT: Final = 0.95
# By how much the rate moves at most from one look to the next: a second of something else does not make it silent.
_SLOWER: Final = 0.5
_FASTER: Final = 1.25


class Bounds(NamedTuple):
    """The shortest and the longest time between two scrapes of an endpoint, in seconds."""

    shortest: float
    longest: float


class Shared(NamedTuple):
    """The intervals in seconds of endpoints that are at work and of those that stand still."""

    busy: float
    idle: float


def share(busy: int, idle: int, per_second: float, bounds: Bounds) -> Shared:
    """The intervals of so many endpoints with `per_second` scrapes for all of them.

    They sum to no more than that, unless every endpoint is at the longest.
    """
    shortest, longest = bounds
    if (busy + idle) / shortest <= per_second:
        return Shared(shortest, shortest)
    if (busy + idle) / longest >= per_second:
        return Shared(longest, longest)
    for_busy = per_second - idle / longest
    if busy and busy / shortest >= for_busy:
        return Shared(busy / for_busy, longest)
    return Shared(shortest, idle / (per_second - busy / shortest))


def followed(per_second: float, used: float, cores: float, least: float, most: float) -> float:
    """The scrapes in a second for the time to come, where `used` cores were used at `per_second` and `cores` may be.

    Never below `least` nor above `most`. With a cost of `a + b * per_second` cores it settles where that is `cores`,
    without swinging: each step closes `b * per_second / cores` of the gap, which is at most all of it.
    """
    factor = cores / used if used > 0 else _FASTER
    return max(least, min(most, per_second * max(_SLOWER, min(_FASTER, factor))))


class Gate:
    """Lets `per_second` through in the order in which they ask. `passed`: how many it has let through or promised to.

    `latest` is how long after its last scrape an endpoint is let through all the same, in seconds.
    """

    def __init__(self, per_second: float, latest: float) -> None:
        self._gap = 1 / per_second
        self._free_at = float("-inf")
        self.latest = latest
        self.passed = 0

    def widen(self, per_second: float) -> None:
        """Another rate from now on."""
        self._gap = 1 / per_second

    def at(self, now: float, last: float) -> float:
        """When an endpoint may be asked whose last scrape began at `last`: now or later. Its place is taken by that."""
        at = max(now, self._free_at)
        # Who may not wait takes a place too, but a queue of those grows no longer than anybody waits in it.
        self._free_at = min(at + self._gap, now + self.latest)
        self.passed += 1
        return max(now, min(at, last + self.latest))
