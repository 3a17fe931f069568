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

HALF_LIFE_SECONDS: Final = 30.0  # the age at which a second of observation counts half

# Seconds that a request spends in the batch, until more is known: 211 tokens, the mean answer of the Azure 2023
# conversation trace (AzurePublicDataset), at 24 ms a token. So a batch of 8 drains 1.6 requests per second. A server
# that has ended more requests than that has the prior of what it ended.
PRIOR_RESPONSE_SECONDS: Final = 5.0
PRIOR_SECONDS: Final = 1.0  # of observed queue, as which the prior weighs

# Something else than prefill delays a queue where prefill takes less than this part of the time. The rest is the noise
# of two estimates.
PREFILL_SHARE: Final = 1 / 3


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


class DrainRate:
    """The drain rate of one endpoint. `observe` takes each page, in order of time."""

    __slots__ = (
        "_at",
        "_ended",
        "_finished",
        "_last",
        "_prefill_seconds",
        "_queued_ended",
        "_queued_seconds",
        "_seconds",
        "_waiting",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over: another server responds now."""
        self._finished: float | None = None
        self._last: TokensDone | None = None  # of the last page
        self._at = 0.0
        self._waiting = 0.0
        self._ended = self._seconds = 0.0
        self._queued_ended = self._queued_seconds = self._prefill_seconds = 0.0

    def observe(self, finished: float, waiting: float, at: float, tokens: TokensDone) -> None:
        """Record one page: requests ended so far and requests waiting, requested at `at` (monotonic seconds)."""
        last, before = self._finished, self._last
        if last is None or before is None:
            pass
        elif finished < last:
            self.reset()
        elif (
            finished != last
            or tokens.generated is None
            or tokens.generated != before.generated
            or tokens.prefilled != before.prefilled
        ):
            passed, ended = at - self._at, finished - last
            fade: float = 0.5 ** (passed / HALF_LIFE_SECONDS)
            self._ended = self._ended * fade + ended
            self._seconds = self._seconds * fade + passed
            if self._waiting > 0 and waiting > 0:
                if tokens.prefilled is None or before.prefilled is None:
                    prefilled = ended * tokens.mean_tokens
                else:
                    prefilled = tokens.prefilled - before.prefilled
                explained = max(0.0, prefilled / tokens.rate, tokens.busy_until - self._at)
                self._queued_ended = self._queued_ended * fade + ended
                self._queued_seconds = self._queued_seconds * fade + passed
                self._prefill_seconds = self._prefill_seconds * fade + min(passed, explained)
        self._finished, self._last, self._at, self._waiting = finished, tokens, at, waiting

    def rate(self, batch: float) -> float:
        """Requests per second that leave the queue while there is one; never 0. `batch` is the largest number of
        requests that the server was seen to run at once, 0 where that is unknown."""
        prior = max(batch, 1.0) / PRIOR_RESPONSE_SECONDS
        if self._seconds > 0:
            prior = max(prior, self._ended / self._seconds)
        return (prior * PRIOR_SECONDS + self._queued_ended) / (PRIOR_SECONDS + self._queued_seconds)

    def delay_seconds(self, batch: float, waiting: float, waiting_prefill: float, mean_prefill: float) -> float:
        """What each request of a queue adds to the wait of the next one: 0 where prefill explains the queue, because
        the backlog in tokens is its wait then.

        `batch` is as for `rate`. `waiting_prefill` are the seconds of prefill of the `waiting` requests, `mean_prefill`
        those of a mean request at this server. Prefill explains the queue where it took enough of the time of earlier
        queues, where it takes enough of the time of a mean request, or where the waiting requests have enough of it
        before them.
        """
        rate = self.rate(batch)
        if rate * mean_prefill >= PREFILL_SHARE or rate * waiting_prefill > PREFILL_SHARE * waiting:
            return 0.0
        if self._prefill_seconds > PREFILL_SHARE * (PRIOR_SECONDS + self._queued_seconds):
            return 0.0
        return 1.0 / rate
