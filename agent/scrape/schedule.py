"""When the next scrape of an endpoint is due.

Start times are spread over the interval by a hash of the address, so that a fleet is asked evenly and an endpoint keeps
its place when the agent restarts. Due times stay on that grid: a scrape that took too long skips slots and never
catches up.
"""

from __future__ import annotations

import math
import zlib
from typing import Final

# A dead endpoint is asked less often, but a returned one must be seen soon: never rarer than this, or the interval.
BACKED_OFF_SECONDS: Final = 1.0
# A first scrape costs a millisecond: a connection, and a page of which nothing is known yet. More of them in a second
# than this would be late for want of CPU time, and time out.
FIRSTS_A_SECOND: Final = 1000


def place(address: str, turn: int = 0) -> float:
    """A number in [0, 1) that the address always has; another one for each `turn`."""
    digest = zlib.crc32(f"{turn}/{address}".encode())
    # CRC-32 is linear: addresses that differ in a digit differ in a pattern. A multiplicative hash on top spreads it.
    return ((digest * 0x9E3779B1) & 0xFFFFFFFF) / 4294967296.0


def first_due(address: str, interval: float, now: float) -> float:
    """The next point after `now` of the grid that the address has for this interval."""
    return next_due(place(address) * interval, interval, now)


class Firsts:
    """When new endpoints are asked for the very first time: at once, but no more than FIRSTS_A_SECOND in a second.

    From then on each keeps to its own grid.
    """

    def __init__(self) -> None:
        self._free_at = float("-inf")

    def at(self, now: float) -> float:
        """The time for one more endpoint."""
        at = max(now, self._free_at)
        self._free_at = at + 1 / FIRSTS_A_SECOND
        return at


def next_due(due: float, interval: float, now: float) -> float:
    """The first point of the grid through `due` that lies after `now`."""
    return due + interval * (math.floor((now - due) / interval) + 1)


def retry_due(address: str, failures: int, interval: float, now: float) -> float:
    """When to ask an endpoint again after so many failures in a row (at least one).

    The wait doubles with each failure from one interval on, up to BACKED_OFF_SECONDS (or the interval, where that is
    more), and is then shortened by up to a quarter by the address: a fleet that died together is not asked together.
    """
    most = max(interval, BACKED_OFF_SECONDS)
    wait = min(most, interval * 2.0 ** min(failures - 1, 30))
    return now + wait * (1 - place(address, failures) / 4)
