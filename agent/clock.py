"""The clocks of the agent: the only importer of `time`.

Ages, due times and time-outs use the monotonic clock, which is never set. Wall-clock time labels output: the time
stamp of a sample or of a log line. It is compared only with times that others have written: those of certificates.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The time of the process."""

    def now(self) -> float:
        """Monotonic seconds; only differences are meaningful."""
        ...

    def wall(self) -> float:
        """Seconds since 1970 in UTC, for output and for the validity of certificates; never used for an age."""
        ...

    def cpu(self) -> float:
        """Seconds of CPU time used by this process, user and system."""
        ...


class SystemClock:
    """The clocks of the operating system."""

    def now(self) -> float:
        """Seconds of CLOCK_MONOTONIC, which asyncio and uvloop use too."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def cpu(self) -> float:
        """Seconds of CPU time used by this process, user and system."""
        return time.process_time()


class SuspendClock(SystemClock):
    """As SystemClock, and `now` goes on while the machine is suspended, where the operating system has such a clock."""

    _ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now(self) -> float:
        """Seconds of CLOCK_BOOTTIME."""
        return time.clock_gettime(self._ID)
