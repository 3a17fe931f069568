"""A clock that a test moves by hand."""

from __future__ import annotations

WALL_AT_ZERO = 1_790_000_000.0


class ManualClock:
    """Both clocks of `agent.clock.Clock`; they stand still until `advance`."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._set = 0.0

    def now(self) -> float:
        """Monotonic seconds."""
        return self._now

    def wall(self) -> float:
        """Seconds since 1970, moving with `now`."""
        return WALL_AT_ZERO + self._now + self._set

    def cpu(self) -> float:
        """Seconds of CPU: none."""
        return 0.0

    def set_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock, forward by these seconds or back."""
        self._set += seconds

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
