"""The rate at which a server's queue drains, and whether prefill explains it.

A queue waits for prefill or for something else: a batch full of long responses, a full KV cache. The first is what
`agent.state.inflight` models in tokens; the second shows only in the rate at which requests end. While requests wait,
each one that ends admits one, so the last of a queue waits for its length over that rate.

Before a queue was observed, the rate is a prior: the batch over the time of a response. It weighs as much as
`PRIOR_SECONDS` of observed queue, so a few pages replace it, and a queue without progress gets slower with every page.
A page on which not even the generated tokens have moved shows neither progress nor a standstill: nothing was measured.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from agent.state.inflight import QueueEvidence

HALF_LIFE_SECONDS: Final = 30.0  # the age at which a second of observation counts half

# Seconds that a request spends in the batch, until more is known: 211 tokens, the mean answer of the Azure 2023
# conversation trace (AzurePublicDataset), at 24 ms a token. So a batch of 8 drains 1.6 requests per second. A server
# that has ended more requests than that has the prior of what it ended.
PRIOR_RESPONSE_SECONDS: Final = 5.0
PRIOR_SECONDS: Final = 1.0  # of observed queue, as which the prior weighs

# Something else than prefill delays a queue where prefill takes less than this part of the time. The rest is the noise
# of two estimates.
PREFILL_SHARE: Final = 1 / 3

# A request may wait for the end of a step; one that waits longer than this waits for something.
SHORTEST_WAIT_SECONDS: Final = 0.5


class TokensDone(NamedTuple):
    """The tokens of a server at a page, to find how much of a queue's time prefill explains.

    `generated` and uncached `prefilled` tokens are those so far (None: not reported). Prefill does `rate` tokens a
    second; a mean request has `mean_tokens`; `busy_until` is when the prefill that was known before the page is done
    (monotonic seconds).
    """

    generated: float | None
    prefilled: float | None
    rate: float
    mean_tokens: float
    busy_until: float

    def moved_since(self, before: TokensDone) -> bool:
        """Whether the server has done anything since, as far as it reports that."""
        return self.generated is None or self.generated != before.generated or self.prefilled != before.prefilled

    def prefill_seconds_since(self, before: TokensDone, ended: float) -> float:
        """The prefill since `before`; without a counter of it, that of the `ended` requests."""
        if self.prefilled is None or before.prefilled is None:
            return ended * self.mean_tokens / self.rate
        return (self.prefilled - before.prefilled) / self.rate


class DrainRate:
    """The drain rate of one endpoint. `observe` takes each page, in order of time."""

    __slots__ = (
        "_at",
        "_ended",
        "_finished",
        "_prefill_seconds",
        "_queue",
        "_queued_ended",
        "_queued_seconds",
        "_seconds",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over: another server responds now."""
        self._finished: float | None = None
        self._queue: TokensDone | None = None  # of the last page, if requests waited on it
        self._at = 0.0
        self._ended = self._seconds = 0.0
        self._queued_ended = self._queued_seconds = self._prefill_seconds = 0.0

    def observe(self, finished: float, at: float, queue: TokensDone | None) -> None:
        """Record one page: requests ended so far, requested at `at` (monotonic seconds), and the tokens where requests
        wait (None: none waits)."""
        last, before = self._finished, self._queue
        self._queue = queue
        if last is None or finished < last:
            if last is not None:
                self.reset()
            self._finished, self._at = finished, at
            return
        if queue is None or before is None or finished != last or queue.moved_since(before):
            since, ended = self._at, finished - last
            passed = at - since
            fade: float = 0.5 ** (passed / HALF_LIFE_SECONDS)
            self._ended = self._ended * fade + ended
            self._seconds = self._seconds * fade + passed
            if queue is not None and before is not None:
                explained = max(queue.prefill_seconds_since(before, ended), queue.busy_until - since)
                self._queued_ended = self._queued_ended * fade + ended
                self._queued_seconds = self._queued_seconds * fade + passed
                self._prefill_seconds = self._prefill_seconds * fade + min(passed, max(0.0, explained))
        self._finished, self._at = finished, at

    def rate(self, batch: float) -> float:
        """Requests per second that leave the queue while there is one; never 0. `batch` is the largest number of
        requests that the server was seen to run at once, 0 where that is unknown."""
        prior = max(batch, 1.0) / PRIOR_RESPONSE_SECONDS
        if self._seconds > 0:
            prior = max(prior, self._ended / self._seconds)
        return (prior * PRIOR_SECONDS + self._queued_ended) / (PRIOR_SECONDS + self._queued_seconds)

    def delay_seconds(
        self, batch: float, waiting: float, queue: QueueEvidence, mean_prefill: float, *, foreign: bool
    ) -> float:
        """What each request of a queue adds to the wait of the next one: 0 where prefill explains the queue, because
        the backlog in tokens is its wait then.

        `batch` is as for `rate`; `waiting` requests wait; `mean_prefill` is the prefill of the server's mean request in
        seconds. Prefill explains the queue where it took enough of the time of earlier queues, where it takes enough of
        the time of a mean request, or where the waiting requests have enough of it before them.

        Unless the batch is full of requests of others (`foreign`), the agent knows what it runs and its prefill. Then
        something else delays the queue only where that has shown: in earlier queues, or in a request that waits longer
        than the prefill before it took.
        """
        rate = self.rate(batch)
        if rate * mean_prefill >= PREFILL_SHARE or rate * queue.prefill_seconds > PREFILL_SHARE * waiting:
            return 0.0
        if self._prefill_seconds > PREFILL_SHARE * (PRIOR_SECONDS + self._queued_seconds):
            return 0.0
        if not foreign and self._queued_seconds < PRIOR_SECONDS:
            waited = queue.own_wait_seconds
            if waited < SHORTEST_WAIT_SECONDS or queue.explained_seconds >= PREFILL_SHARE * waited:
                return 0.0
        return 1.0 / rate
