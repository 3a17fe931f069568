"""The drain rate of a backlog: tokens per second that are dispatched while requests wait.

Time counts only while something waits, because the rate of an empty queue is that of the arrivals. The next dispatch is
counted as if it came now, so that the rate of a backlog that does not move falls with the time observed and is never 0.
"""

from __future__ import annotations

from typing import Final

HALF_LIFE_SECONDS: Final = 30.0  # the age at which a dispatch counts half
UNKNOWN: Final = float("inf")


class DispatchRate:
    """The rate of one backlog. `now` never goes back between calls."""

    __slots__ = ("_at", "_running", "_seconds", "_tokens")

    def __init__(self) -> None:
        self._at = 0.0
        self._running = False
        self._seconds = 0.0
        self._tokens = 0.0

    def start(self, now: float) -> None:
        """The first request waits."""
        if not self._running:
            self._running = True
            self._at = now

    def stop(self, now: float) -> None:
        """No request waits any more, or none can be dispatched."""
        if self._running:
            self._pass(now)
            self._running = False

    def dispatched(self, tokens: int, now: float) -> None:
        """A request of the backlog was dispatched."""
        if now > self._at:
            self._pass(now)
        self._tokens += tokens

    def per_second(self, next_tokens: float, now: float) -> float:
        """Tokens per second, with a next request of `next_tokens`; UNKNOWN before anything was observed."""
        if self._running:
            self._pass(now)
        return (self._tokens + next_tokens) / self._seconds if self._seconds > 0 else UNKNOWN

    def _pass(self, now: float) -> None:
        passed = now - self._at
        if passed > 0 and self._running:
            fade: float = 0.5 ** (passed / HALF_LIFE_SECONDS)
            self._seconds = self._seconds * fade + passed
            self._tokens *= fade
            self._at = now
