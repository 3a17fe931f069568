"""The rate at which a server's queue drains, learnt while it has one.

A queue waits for prefill or for something else: a batch full of long responses, a full KV cache. The first is what
`agent.state.inflight` models; the second shows only in the rate at which requests end. While requests wait, each one
that ends admits one, so the wait of the last in the queue is the queue's length over that rate.
"""

from __future__ import annotations

from typing import Final

HALF_LIFE_SECONDS: Final = 30.0  # the age at which a second of queueing counts half
STANDSTILL_SECONDS: Final = 5.0  # a queue without progress for less than this may be one long prefill


class DrainRate:
    """The drain rate of one endpoint. `observe` takes each page, in order of time."""

    __slots__ = ("_at", "_ended", "_finished", "_queued", "_seconds")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over: another server responds now."""
        self._finished: float | None = None
        self._at = 0.0
        self._queued = False
        self._ended = self._seconds = 0.0

    def observe(self, finished: float, waiting: float, at: float) -> None:
        """Record one page: requests ended so far and requests waiting, requested at `at` (monotonic seconds)."""
        if self._finished is not None and finished < self._finished:
            self.reset()
        if self._finished is not None and self._queued and waiting > 0:
            passed = at - self._at
            fade = 0.5 ** (passed / HALF_LIFE_SECONDS)
            self._ended = self._ended * fade + finished - self._finished
            self._seconds = self._seconds * fade + passed
        self._finished, self._at, self._queued = finished, at, waiting > 0

    def wait_seconds(self, waiting: float) -> float | None:
        """Seconds until a request behind `waiting` others is scheduled; None while too little of a queue was observed.

        Where no request has ended within `STANDSTILL_SECONDS`, the wait is at least the time without progress.
        """
        if self._ended < 1 and self._seconds < STANDSTILL_SECONDS:
            return None
        return waiting * self._seconds / max(1.0, self._ended)
