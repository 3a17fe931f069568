"""A clock that the test advances."""

from __future__ import annotations

WALL_AT_ZERO = 1_790_000_000.0


class ManualClock:
    """A fake `agent.clock.Clock`, which only `advance` moves."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._set = 0.0

    def now(self) -> float:
        """Monotonic seconds."""
        return self._now

    def wall(self) -> float:
        """Seconds since 1970; advances with `now`."""
        return WALL_AT_ZERO + self._now + self._set

    def cpu(self) -> float:
        """Seconds of CPU: always 0."""
        return 0.0

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock forward by these seconds, or back if negative."""
        self._set += seconds

    def advance(self, seconds: float) -> None:
        """Advance both clocks."""
        self._now += seconds
