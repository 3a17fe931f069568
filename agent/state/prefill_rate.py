"""The prefill rate of an endpoint, estimated from its server's counters.

The estimate is uncached prompt tokens over the prefill time of the requests, as a ratio of decayed sums. vLLM counts
the prefill time of a request when it ends, and its prompt tokens when it is prefilled: while more and more requests
run, that difference makes the estimate too high (measured: three times the true rate in the first minute of a replay of
real traffic at more than the servers could do). So the tokens are those of the requests whose time is counted, where
the engine reports them. The estimate is too low where requests are prefilled together, because each counts the same
second. The alternative, tokens over wall time, is far too high in the second in which the tokens of a long prompt are
counted all at once, and a maximum over it keeps that second (measured: twice the true rate on a replay of real
traffic).

A second estimate comes from the first tokens: the tokens in the line when each request was sent, itself included, over
the time to its first token. It does not depend on how the server divides its time between requests. But it is too low
where requests wait for something else than prefill. So both are too low at worst, and the larger one is used, at most
`OWN_FACTOR` times the first. (On emulated servers that do 7,000 tokens/s and answer chats with 680 uncached tokens, the
first estimate is 4,500 to 5,500 and the second 6,000 to 6,700.)

A wrong rate that all endpoints of a pool share costs little. Different rates for equal servers cost more: the server
with the higher estimate gets more requests, which raises its estimate. So an endpoint uses the median of its pool,
unless its own rate is more than `OWN_FACTOR` away from it: different hardware is, noise is not. An estimate from few
prefills is noise however far away: short prompts show a lower rate than long ones, and the first prefills wait for
loading (measured on two equal vLLM servers, one with short prompts and one with long ones: 1,800 and 21,700 tokens/s).
So an endpoint's own rate is used only after `OWN_PREFILLS`.

Nothing is learnt until `ENOUGH_PREFILLS` were observed, nor from a server that lacks the counters. The configuration
bounds the result.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Final, NamedTuple

from agent.signals import PREFILL_SECONDS, PREFILLED_TOKENS, PREFILLS, PREFIX_HITS, PROMPT_TOKENS, Value

# Tokens/s of uncached prefill: the published peak of Qwen3-32B on an H100 pair as the field's recipe has it
# (llm-d, 2026-08-17). It is used until a server of the pool has shown another.
DEFAULT_RATE: Final = 15_928.0
ENOUGH_PREFILLS: Final = 20
HALF_LIFE_PREFILLS: Final = 200.0  # the age, in prefills, at which a prefill counts half
OWN_PREFILLS: Final = 200  # one half-life; with fewer, a rate counts for its pool only
OWN_FACTOR: Final = 3.0
# A learnt rate is applied only when it has changed by this much: less is noise, and each change is a new version.
RATE_CHANGE: Final = 0.02
# The pool's rate is applied to all endpoints at once when it has changed by this much, else to each with its next page:
# between a large change and the next page, equal servers would look different.
POOL_RATE_CHANGE: Final = 0.1


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The configured limits of the prefill rate, in tokens of uncached prompt per second.

    `fixed` switches learning off. Otherwise a learnt rate is kept within `low` and `high`, and `default` is used until
    there is one.
    """

    fixed: float | None = None
    default: float = DEFAULT_RATE
    low: float = 100.0
    high: float = 1_000_000.0

    def choose(self, own: float | None, of_pool: float | None) -> tuple[float, str]:
        """The rate to use, and its source: `configured`, `learnt`, `pool` or `default`.

        `own` is the endpoint's estimate (None: too few prefills), `of_pool` the median of its pool (None: unknown).
        """
        if self.fixed is not None:
            return self.fixed, "configured"
        if own is not None and (of_pool is None or not of_pool / OWN_FACTOR <= own <= of_pool * OWN_FACTOR):
            return self._bounded(own), "learnt"
        if of_pool is not None:
            return self._bounded(of_pool), "pool"
        return self._bounded(self.default), "default"

    def _bounded(self, rate: float) -> float:
        return min(self.high, max(self.low, rate))


class PoolRates:
    """The learnt rates of a pool's endpoints, sorted, so that their median costs the same for any number of them."""

    __slots__ = ("_sorted",)

    def __init__(self) -> None:
        self._sorted: list[float] = []

    def replace(self, old: float | None, new: float | None) -> None:
        """Replace an endpoint's rate `old`, which must be the last one that was set for it; None: it has none."""
        if old is not None:
            del self._sorted[bisect_left(self._sorted, old)]
        if new is not None:
            insort(self._sorted, new)

    @property
    def median(self) -> float | None:
        """The middle rate, or the geometric mean of the two in the middle (half a rate and twice a rate are equally
        far from it); None where there is none."""
        count = len(self._sorted)
        if not count:
            return None
        half = count // 2
        return self._sorted[half] if count % 2 else sqrt(self._sorted[half - 1] * self._sorted[half])


class LearntRate(NamedTuple):
    """What an estimator has learnt: uncached tokens, seconds and prefills, faded, and all prefills observed."""

    tokens: float
    seconds: float
    faded_prefills: float
    prefills: float


class PrefillRateEstimator:
    """The estimate for one endpoint. `observe` takes each page's counters, in order of time."""

    __slots__ = (
        "_backlogs",
        "_counted",
        "_faded_prefills",
        "_first_tokens",
        "_last",
        "_last_wait",
        "_prefills",
        "_seconds",
        "_tokens",
        "_uncached",
        "_wait",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over: another server responds now."""
        self._last: tuple[float, float, float] | None = None
        self._uncached: float | None = None
        self._counted = False  # the tokens in `_last` are those of the requests whose time is counted
        self._tokens = self._seconds = self._prefills = self._faded_prefills = 0.0
        self._backlogs = self._wait = self._first_tokens = 0.0
        self._last_wait: float | None = None

    @property
    def learnt(self) -> LearntRate:
        """What was learnt, for another replica."""
        return LearntRate(self._tokens, self._seconds, self._faded_prefills, self._prefills)

    def adopt(self, learnt: LearntRate) -> bool:
        """Continue from what another replica has learnt of this server, if it has observed more prefills; returns
        whether it has."""
        if learnt.prefills <= self._prefills:
            return False
        self._tokens, self._seconds, self._faded_prefills, self._prefills = learnt
        return True

    def observe(self, values: Mapping[str, Value]) -> bool:
        """Record one page's counters; returns whether the estimate may have changed. A page without one of them is
        ignored."""
        prompt, seconds, prefills = values.get(PROMPT_TOKENS), values.get(PREFILL_SECONDS), values.get(PREFILLS)
        if not (isinstance(prompt, float) and isinstance(seconds, float) and isinstance(prefills, float)):
            return False
        hits = values.get(PREFIX_HITS)
        self._uncached = prompt - hits if isinstance(hits, float) else prompt
        counted = values.get(PREFILLED_TOKENS)
        uncached = counted if isinstance(counted, float) else self._uncached
        last, self._last = self._last, (uncached, seconds, prefills)
        before, self._counted = self._counted, isinstance(counted, float)
        if last is None or last == self._last or before is not self._counted:
            return False
        tokens, spent, count = uncached - last[0], seconds - last[1], prefills - last[2]
        if spent < 0 or count < 0:  # a counter went back: another server
            self.reset()
            self._last = (uncached, seconds, prefills)
            return True
        # `tokens` may be negative for one page: hits are counted when a request is scheduled, prompt tokens after its
        # prefill.
        fade = 0.5 ** (count / HALF_LIFE_PREFILLS)
        self._tokens = self._tokens * fade + tokens
        self._seconds = self._seconds * fade + spent
        self._faded_prefills = self._faded_prefills * fade + count
        self._prefills += count
        return True

    def observe_first_tokens(self, count: int, backlogs: float, wait: float) -> None:
        """Record the first tokens since the page before: their count, the tokens in the line when their requests were
        sent, summed, and the page's sum of the times to first tokens in seconds."""
        last, self._last_wait = self._last_wait, wait
        if last is None or wait < last or not count:
            return
        fade = 0.5 ** (count / HALF_LIFE_PREFILLS)
        self._backlogs = self._backlogs * fade + backlogs
        self._wait = self._wait * fade + wait - last
        self._first_tokens += count

    def skip_first_tokens(self, wait: float) -> None:
        """Record a page whose first tokens are not known by request: its sum of the times to first tokens."""
        self._last_wait = wait

    @property
    def rate(self) -> float | None:
        """Tokens/s of uncached prefill of this server, or None after too few prefills."""
        if self._prefills < ENOUGH_PREFILLS or self._seconds <= 0:
            return None
        rate = self._tokens / self._seconds
        if self._first_tokens >= ENOUGH_PREFILLS and self._wait > 0:
            rate = max(rate, min(self._backlogs / self._wait, OWN_FACTOR * rate))
        return rate if rate > 0 else None

    @property
    def uncached_tokens(self) -> float | None:
        """Uncached prompt tokens that the server has prefilled so far; None where its pages do not report them."""
        return self._uncached

    @property
    def mean_tokens(self) -> float | None:
        """Uncached prompt tokens of this server's mean request, whoever sent it; None before its first prefill.

        Until prefills were observed, it is the mean since the server started, which the first page brings.
        """
        if self._faded_prefills >= 1 and self._tokens > 0:
            return self._tokens / self._faded_prefills
        if self._last is None or self._last[2] < 1 or self._last[0] <= 0:
            return None
        return self._last[0] / self._last[2]

    @property
    def proven(self) -> bool:
        """Whether enough prefills were observed to distinguish this server from the others of its pool."""
        return self._prefills >= OWN_PREFILLS


def differ(new: float | None, old: float | None, by: float = RATE_CHANGE) -> bool:
    """Whether a rate has changed by more than the part `by` of the old one; None is a rate of its own."""
    if new is None or old is None:
        return new is not old
    return abs(new - old) > by * old
