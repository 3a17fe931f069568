"""How fast an endpoint prefills, learnt from what its server reports.

The measure is uncached prompt tokens over the prefill time of the requests, as a ratio of decayed sums. It is low where
requests are prefilled together, because they count the same second several times; but tokens over wall time, the other
figure that a page gives, is far too high in the second in which a long prompt's tokens are counted all at once, and a
maximum of it learns that second (measured: twice the true rate on a replay of real traffic).

A rate that is wrong but equal for all endpoints of a pool hardly costs anything. Rates that differ among equal servers
do: who is thought to be fast is given more, and shows more. So an endpoint goes by the median of its pool, unless its
own rate is more than `OWN_FACTOR` away from it, which different hardware is and noise is not. A few prefills are noise
however far away: short prompts show less than long ones, and the first of all wait for what is loaded then (measured on
two equal vLLM servers, one asked with short prompts and one with long ones: 1,800 and 21,700 tokens/s). So an
endpoint's own rate is gone by only after `OWN_PREFILLS`.

Until `ENOUGH_PREFILLS` were seen, and where a server does not report what it takes, nothing is learnt. The result is
kept within bounds that the configuration gives.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Final

from agent.signals import PREFILL_SECONDS, PREFILLS, PREFIX_HITS, PROMPT_TOKENS, Value

# Tokens/s of uncached prefill: the published peak of Qwen3-32B on an H100 pair as the field's recipe has it
# (llm-d, 2026-08-17). A guess for whatever runs here, replaced as soon as the server has shown its own.
DEFAULT_RATE: Final = 15_928.0
ENOUGH_PREFILLS: Final = 20
HALF_LIFE_PREFILLS: Final = 200.0  # how many prefills ago a prefill counts half
OWN_PREFILLS: Final = 200  # one half-life: until then a rate speaks for its pool, not for its endpoint alone
OWN_FACTOR: Final = 3.0
# A learnt rate moves the work ahead only when it has changed by this much: less is noise, and each move is a new
# version.
RATE_CHANGE: Final = 0.02
# The pool's rate is told to all endpoints at once when it has changed by this much, and to each with its own next page
# when by less: a rate that one endpoint has and the others do not yet have tells equal servers apart.
POOL_RATE_CHANGE: Final = 0.1


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What the configuration says of the prefill rate, in tokens of uncached prompt per second.

    `fixed` switches learning off; otherwise a learnt rate is kept within `low` and `high`, and `default` stands until
    there is one.
    """

    fixed: float | None = None
    default: float = DEFAULT_RATE
    low: float = 100.0
    high: float = 1_000_000.0

    def choose(self, own: float | None, of_pool: float | None) -> tuple[float, str]:
        """The rate to reckon with, and where it comes from: `configured`, `learnt`, `pool` or `default`.

        `own` is what the endpoint has shown (None: too little), `of_pool` the median of what the pool's endpoints have.
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
    """The learnt rates of a pool's endpoints, and their median, which costs the same however many there are."""

    __slots__ = ("_sorted",)

    def __init__(self) -> None:
        self._sorted: list[float] = []

    def replace(self, old: float | None, new: float | None) -> None:
        """An endpoint's rate is another one; None: it has none. `old` is what was told of it last."""
        if old is not None:
            del self._sorted[bisect_left(self._sorted, old)]
        if new is not None:
            insort(self._sorted, new)

    @property
    def median(self) -> float | None:
        """The middle one, or the geometric mean of the two in the middle (a rate is as far from half of it as from
        twice of it); None where nobody has one."""
        count = len(self._sorted)
        if not count:
            return None
        half = count // 2
        return self._sorted[half] if count % 2 else sqrt(self._sorted[half - 1] * self._sorted[half])


class PrefillRate:
    """The learner of one endpoint; feed it each page's counters in order of time, ask `rate`."""

    __slots__ = ("_last", "_prefills", "_seconds", "_tokens")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all: another server answers now."""
        self._last: tuple[float, float, float] | None = None
        self._tokens = self._seconds = self._prefills = 0.0

    def observe(self, values: Mapping[str, Value]) -> bool:
        """Take in one page's counters; whether they taught anything. A page that lacks one of them does not."""
        prompt, seconds, prefills = values.get(PROMPT_TOKENS), values.get(PREFILL_SECONDS), values.get(PREFILLS)
        if not (isinstance(prompt, float) and isinstance(seconds, float) and isinstance(prefills, float)):
            return False
        hits = values.get(PREFIX_HITS)
        uncached = prompt - hits if isinstance(hits, float) else prompt
        last, self._last = self._last, (uncached, seconds, prefills)
        if last is None or last == self._last:
            return False
        tokens, spent, count = uncached - last[0], seconds - last[1], prefills - last[2]
        if spent < 0 or count < 0:  # a counter went back: another server, whose past we do not know
            self.forget()
            self._last = (uncached, seconds, prefills)
            return True
        # `tokens` may be negative for one page: hits are counted when a request is scheduled, prompt tokens when it
        # has been prefilled.
        fade = 0.5 ** (count / HALF_LIFE_PREFILLS)
        self._tokens = self._tokens * fade + tokens
        self._seconds = self._seconds * fade + spent
        self._prefills += count
        return True

    @property
    def rate(self) -> float | None:
        """Tokens/s of uncached prefill that this server has shown, or None while too little was seen."""
        if self._prefills < ENOUGH_PREFILLS or self._seconds <= 0:
            return None
        rate = self._tokens / self._seconds
        return rate if rate > 0 else None

    @property
    def proven(self) -> bool:
        """Whether enough was seen to tell this server from the others of its pool."""
        return self._prefills >= OWN_PREFILLS


def differ(new: float | None, old: float | None, by: float = RATE_CHANGE) -> bool:
    """Whether a rate has moved by more than noise, or `by` another share of it."""
    if new is None or old is None:
        return new is not old
    return abs(new - old) > by * old
