"""The only importer of `time`: two clocks, handed to whoever needs one.

Ages, dues and time-outs are taken from the monotonic clock, so that a step of the wall clock moves none of them; the
wall clock only labels what leaves the process (a sample's time stamp, a log line).
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What a part of the shell may ask of time."""

    def now(self) -> float:
        """Seconds on a clock that never steps; only differences mean anything."""
        ...

    def wall(self) -> float:
        """Seconds since 1970 in UTC, for people and other programs; never for an age."""
        ...

    def cpu(self) -> float:
        """Seconds of CPU that this process has used, user and system."""
        ...


class SystemClock:
    """The clocks of the operating system."""

    def now(self) -> float:
        """Seconds of CLOCK_MONOTONIC, the clock that asyncio and uvloop use too."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def cpu(self) -> float:
        """Seconds of CPU that this process has used, user and system."""
        return time.process_time()
