"""When the next scrape of an endpoint is due.

Each endpoint has a phase within the interval, by a hash of its address: scrapes of a fleet are spread evenly, and an
endpoint has the same phase after a restart of the agent. Due times stay on this grid: a scrape that takes longer than
the interval skips slots, which are not caught up.
"""

from __future__ import annotations

import math
import zlib
from typing import Final

# The longest time between scrapes of a failed endpoint (or the interval, if that is longer): its return is seen soon.
MAX_RETRY_SECONDS: Final = 1.0
# A first scrape costs a millisecond: a new connection, and a page of unknown layout. A higher rate would exceed the CPU
# time, and scrapes would time out.
MAX_FIRST_SCRAPES_PER_SECOND: Final = 1000
# A first scrape that is this late is put off: the event loop is busy with others, and picks wait for each of them.
MAX_FIRST_SCRAPE_LATE_SECONDS: Final = 0.004
MAX_TIMES_PUT_OFF: Final = 8  # on a machine without CPU time to spare every scrape is late


def phase(address: str, turn: int = 0) -> float:
    """A number in [0, 1), constant for the address; `turn` selects another one."""
    digest = zlib.crc32(f"{turn}/{address}".encode())
    # CRC-32 is linear: addresses that differ in a digit differ in a pattern. A multiplicative hash spreads it.
    return ((digest * 0x9E3779B1) & 0xFFFFFFFF) / 4294967296.0


def first_due(address: str, interval: float, now: float) -> float:
    """The first point after `now` on the address's grid for this interval."""
    return next_due(phase(address) * interval, interval, now)


class StartupLimiter:
    """The times of the first scrapes of new endpoints: at once, but at most MAX_FIRST_SCRAPES_PER_SECOND.

    After that each endpoint keeps to its own grid.
    """

    def __init__(self) -> None:
        self._free_at = float("-inf")

    def reserve(self, now: float) -> float:
        """The time of the first scrape of one more endpoint."""
        at = max(now, self._free_at)
        self._free_at = at + 1 / MAX_FIRST_SCRAPES_PER_SECOND
        return at


def next_due(due: float, interval: float, now: float) -> float:
    """The first point after `now` on the grid through `due`."""
    return due + interval * (math.floor((now - due) / interval) + 1)


def retry_due(address: str, failures: int, interval: float, now: float) -> float:
    """When to scrape an endpoint again after this many failures in a row (at least one).

    The wait is one interval, doubles with each failure, and is at most MAX_RETRY_SECONDS (or the interval, if that is
    longer). It is shortened by up to a quarter, depending on the address, to spread a fleet that failed at once.
    """
    longest = max(interval, MAX_RETRY_SECONDS)
    wait = min(longest, interval * 2.0 ** min(failures - 1, 30))
    return now + wait * (1 - phase(address, failures) / 4)
