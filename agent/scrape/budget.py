"""The scrape interval of each endpoint when the number of scrapes per second is limited. Pure.

If the budget allows it, every endpoint has the configured interval. If not, the intervals of idle endpoints are
extended first, up to the longest interval that keeps readings fresh. Then the busy endpoints share the rest evenly, up
to the longest interval too. Readings stay fresh even where this exceeds the budget: such a fleet is too large for it,
which the agent reports.

Intervals are averages. A RateLimiter delays scrapes that are due at the same time: no span of time has more than one
scrape above the budget. A budget of CPU time is a budget of scrapes whose rate is adjusted to the CPU time that the
process recently used.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# The share of the rate that intervals may add up to: at full utilization the queue of a rate limiter has no bound.
ALLOCATED_SHARE: Final = 0.95
# The largest change of the rate in one step, so that a short burst of other work does not stop the scrapes.
_MAX_DECREASE: Final = 0.5
_MAX_INCREASE: Final = 1.25


class Bounds(NamedTuple):
    """The shortest and the longest time between two scrapes of an endpoint, in seconds."""

    shortest: float
    longest: float


class Intervals(NamedTuple):
    """The scrape intervals of busy and of idle endpoints, in seconds."""

    busy: float
    idle: float


def share(busy: int, idle: int, per_second: float, bounds: Bounds) -> Intervals:
    """The intervals of this many busy and idle endpoints, with `per_second` scrapes for all of them.

    The sum of their rates is at most that, unless every endpoint has the longest interval.
    """
    shortest, longest = bounds
    if (busy + idle) / shortest <= per_second:
        return Intervals(shortest, shortest)
    if (busy + idle) / longest >= per_second:
        return Intervals(longest, longest)
    for_busy = per_second - idle / longest
    if busy and busy / shortest >= for_busy:
        return Intervals(busy / for_busy, longest)
    return Intervals(shortest, idle / (per_second - busy / shortest))


def adjusted_rate(per_second: float, used: float, cores: float, minimum: float, maximum: float) -> float:
    """The next scrapes per second, if `used` cores were used at `per_second` and `cores` is the budget.

    With a cost of `a + b * per_second` cores it converges to a cost of `cores` without oscillation: each step closes
    `b * per_second / cores` of the gap, which is at most all of it.
    """
    factor = cores / used if used > 0 else _MAX_INCREASE
    return max(minimum, min(maximum, per_second * max(_MAX_DECREASE, min(_MAX_INCREASE, factor))))


class RateLimiter:
    """Admits `per_second` scrapes, in the order of their requests. `admitted` counts them.

    `max_gap`: a scrape is admitted this many seconds after the endpoint's last one, whatever the rate.
    """

    def __init__(self, per_second: float, max_gap: float) -> None:
        self._gap = 1 / per_second
        self._free_at = float("-inf")
        self.max_gap = max_gap
        self.admitted = 0

    def set_rate(self, per_second: float) -> None:
        """Change the rate."""
        self._gap = 1 / per_second

    def reserve(self, now: float, last: float) -> float:
        """The time (now or later) at which an endpoint may be scraped whose last scrape began at `last`; reserves
        it."""
        at = max(now, self._free_at)
        # A scrape that may not wait takes a slot too, but never delays the following ones by more than max_gap.
        self._free_at = min(at + self._gap, now + self.max_gap)
        self.admitted += 1
        return max(now, min(at, last + self.max_gap))
