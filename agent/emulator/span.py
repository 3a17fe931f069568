"""A run of equal steps on the time line.

Step `b` lasts from boundary `b` to boundary `b + 1`. A boundary's time is always computed from the run's start, never
by adding steps up, so it is the same float however often somebody asked in between.
"""

from __future__ import annotations

import math


class Span:
    """Steps of `seconds` each, the first from boundary `first` at time `at`, alike until boundary `until`."""

    __slots__ = ("at", "first", "seconds", "until")

    def __init__(self, at: float) -> None:
        self.first = 0
        self.at = at
        self.seconds = 0.0
        self.until = 0

    def time(self, boundary: int) -> float:
        """When `boundary` is reached."""
        return self.at + (boundary - self.first) * self.seconds

    def by(self, now: float) -> int:
        """The last boundary that `now` has reached, at most `until`."""
        if self.seconds <= 0.0:
            return self.until
        boundary = min(self.until, self.first + int((now - self.at) / self.seconds))
        while boundary < self.until and self.time(boundary + 1) <= now:
            boundary += 1
        while boundary > self.first and self.time(boundary) > now:
            boundary -= 1
        return boundary

    def stop_at(self, now: float) -> None:
        """End the run at its first boundary after its start that is not before `now`, unless it ends earlier."""
        boundary = self.first + 1
        if self.seconds > 0.0:
            boundary = max(boundary, self.first + math.ceil((now - self.at) / self.seconds))
            while boundary > self.first + 1 and self.time(boundary - 1) >= now:
                boundary -= 1
            while self.time(boundary) < now:
                boundary += 1
        self.until = min(self.until, boundary)

    def restart(self, boundary: int, at: float) -> None:
        """A new run begins at `boundary`, reached at `at`."""
        self.first = boundary
        self.at = at
