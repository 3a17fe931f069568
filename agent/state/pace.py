"""How fast a server's queue moves, learnt while it has one.

A queue is held up by prefill or by something else: a full batch of long answers, a full cache. The first is what
`agent.state.inflight` reckons with; the second shows only in how seldom requests end. While requests wait, each that
ends lets one in, so the wait of the last in the queue is its length over the rate at which requests ended.
"""

from __future__ import annotations

from typing import Final

HALF_LIFE_SECONDS: Final = 30.0  # how long ago a second of queueing counts half
STANDSTILL_SECONDS: Final = 5.0  # a queue in which nobody moves for less may be one long prefill


class QueuePace:
    """The learner of one endpoint; feed it each page in order of time, ask `wait_seconds`."""

    __slots__ = ("_at", "_ended", "_finished", "_queued", "_seconds")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all: another server answers now."""
        self._finished: float | None = None
        self._at = 0.0
        self._queued = False
        self._ended = self._seconds = 0.0

    def observe(self, finished: float, waiting: float, at: float) -> None:
        """Take in one page: requests ended so far and requests waiting, asked for at `at` (monotonic seconds)."""
        if self._finished is not None and finished < self._finished:
            self.forget()
        if self._finished is not None and self._queued and waiting > 0:
            passed = at - self._at
            fade = 0.5 ** (passed / HALF_LIFE_SECONDS)
            self._ended = self._ended * fade + finished - self._finished
            self._seconds = self._seconds * fade + passed
        self._finished, self._at, self._queued = finished, at, waiting > 0

    def wait_seconds(self, waiting: float) -> float | None:
        """Seconds until a request behind `waiting` others has its turn; None while too little of a queue was seen.

        Where none has ended in `STANDSTILL_SECONDS`, the wait is at least as long as the queue has stood still.
        """
        if self._ended < 1 and self._seconds < STANDSTILL_SECONDS:
            return None
        return waiting * self._seconds / max(1.0, self._ended)
