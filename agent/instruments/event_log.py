"""The agent's log of events: a line at once for the first of its kind, then one line a minute with the count.

The first failure of a kind is written at once. Repeated failures are counted and written together after a minute, as
`57 of 60 scrapes failed in 60 s`, so that a dead endpoint or a broken client costs one line a minute. Requests that
succeed are not logged: they are in the metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Final, NamedTuple

from agent.clock import Clock

LOGGER: Final = "igw"
QUIET_SECONDS: Final = 60.0
MAX_KINDS: Final = 4096  # kinds of failure that are tracked; beyond it the oldest is dropped and may be logged again
DETAIL_LENGTH: Final = 300  # characters of text from outside in a line


class DueLine(NamedTuple):
    """A line for `failures` of `attempts` within `seconds`; (1, 1, 0.0) for the first failure of its kind."""

    failures: int
    attempts: int
    seconds: float

    @property
    def times(self) -> str:
        """` (12 times in 60 s)`, or nothing for a single failure."""
        return f" ({self.failures} times in {self.seconds:.0f} s)" if self.failures > 1 else ""

    @property
    def of_scrapes(self) -> str:
        """` (57 of 60 scrapes failed in 60 s)`, or nothing for a single attempt."""
        if self.attempts <= 1:
            return ""
        return f" ({self.failures} of {self.attempts} scrapes failed in {self.seconds:.0f} s)"


class _Streak:
    __slots__ = ("attempts", "failures", "logged_at")

    def __init__(self, now: float) -> None:
        self.logged_at = now
        self.failures = 0
        self.attempts = 0


class Repeats:
    """Decides which failures are logged. Pure: `now` is an argument."""

    def __init__(self, quiet_seconds: float = QUIET_SECONDS, max_kinds: int = MAX_KINDS) -> None:
        self._quiet = quiet_seconds
        self._max_kinds = max_kinds
        self._streaks: dict[Hashable, _Streak] = {}

    def succeeded(self, kind: Hashable) -> None:
        """Count a successful attempt, if an attempt of this kind has failed before."""
        streak = self._streaks.get(kind)
        if streak is not None:
            streak.attempts += 1

    def failed(self, kind: Hashable, now: float) -> DueLine | None:
        """Count a failure. The line to write, this failure included, or None while the kind is quiet."""
        streak = self._streaks.get(kind)
        if streak is None:
            while len(self._streaks) >= self._max_kinds:
                del self._streaks[next(iter(self._streaks))]
            self._streaks[kind] = _Streak(now)
            return DueLine(1, 1, 0.0)
        streak.failures += 1
        streak.attempts += 1
        passed = now - streak.logged_at
        if passed < self._quiet:
            return None
        due = DueLine(streak.failures, streak.attempts, passed)
        streak.logged_at, streak.failures, streak.attempts = now, 0, 0
        return due


class EventLog:
    """Writes to the logger `igw`. It never raises, and blocks no longer than the handler's write."""

    def __init__(self, clock: Clock, logger: logging.Logger | None = None) -> None:
        self._clock = clock
        self._logger = logger or logging.getLogger(LOGGER)
        self._repeats = Repeats()

    def succeeded(self, kind: Hashable) -> None:
        """As `Repeats.succeeded`."""
        self._repeats.succeeded(kind)

    def failed(self, kind: Hashable, at: float | None = None) -> DueLine | None:
        """As `Repeats.failed`, at this time or now."""
        return self._repeats.failed(kind, self._clock.now() if at is None else at)

    def info(self, text: str, pool: str = "", **fields: object) -> None:
        """One line, with the fields beside it where the format is JSON."""
        self._write(logging.INFO, text, pool, fields)

    def warning(self, text: str, pool: str = "", **fields: object) -> None:
        """As `info`, for what an operator should know."""
        self._write(logging.WARNING, text, pool, fields)

    def error(self, text: str, pool: str = "", **fields: object) -> None:
        """As `info`, for what an operator has to change."""
        self._write(logging.ERROR, text, pool, fields)

    def _write(self, level: int, text: str, pool: str, fields: dict[str, object]) -> None:
        if pool:
            fields["pool"] = pool
            text = f"pool {pool}: {text}"
        self._logger.log(level, "%s", text, extra={"fields": fields})


def shortened(text: str) -> str:
    """Text from outside as one printable line of at most DETAIL_LENGTH characters."""
    line = text[:DETAIL_LENGTH]
    if not line.isprintable():
        line = line.encode("unicode_escape").decode()
    return line if len(text) <= DETAIL_LENGTH and len(line) <= DETAIL_LENGTH else line[: DETAIL_LENGTH - 3] + "..."
