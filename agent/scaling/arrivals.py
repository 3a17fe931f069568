"""The arrivals of a pool over the last hour, and the rate that is expected when a new replica is ready.

Arrivals are counted in steps of `STEP_SECONDS`. The expected rate is the mean of the last minute plus `trend` times the
lead: the time from the middle of that minute until a replica that is requested now serves. A trend
is the slope of a line through the steps of 2, 3, 5 or 10 minutes, the steepest of them, as far as it is more than
noise: `significance` standard errors are subtracted. The noise is estimated from the differences between successive
steps of the last hour, so it needs no model of the arrivals. A jump is not a trend: where one level before and one
after a step explain the window better than a line does, nothing shows that the growth continues. Falling rates have no
trend: a rate that was expected to fall and does not would cost requests, one that falls later costs little.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, islice, pairwise
from operator import mul
from typing import Final, NamedTuple

from agent.scaling.demand_history import ArrivalSpan

STEP_SECONDS: Final = (
    15.0  # the HPA computes as often (kube-controller-manager, --horizontal-pod-autoscaler-sync-period)
)
NOISE_STEPS: Final = 240  # differences from which the noise is estimated: an hour
MIN_NOISE_STEPS: Final = 20  # with fewer there is no estimate, and no trend
TREND_STEPS: Final = (8, 12, 20, 40)  # 2, 3, 5 and 10 minutes
SHORT_SECONDS: Final = 60.0
# Standard errors that are subtracted from a slope: one in forty slopes of pure noise is larger.
SIGNIFICANCE: Final = 2.0
# Variances by which two levels explain a window better than a line, where that is no chance.
JUMP: Final = 9.0
# The largest factor by which arrivals that are not known yet can increase a rate.
MAX_UNKNOWN: Final = 2.0
_SHORTEST_SECONDS: Final = 1e-3
_ROUNDING: Final = 1e-9
# The smallest part of the variance of a step, in requests: a pool without differences is no proof of no noise.
_MIN_VARIANCE: Final = 1.0


class ExpectedRate(NamedTuple):
    """Requests per second: the mean of the last minute, the trend in requests per second per second and the window that
    shows it (0: none), and `rate`, what is expected `lead` seconds after the middle of that minute. `noise` is the
    standard deviation of the rate of one step, 0 where too little was counted."""

    short: float
    trend: float
    trend_seconds: float
    noise: float
    lead: float
    rate: float

    def without_trend(self) -> ExpectedRate:
        """The same where no look-ahead is wanted: the rate is the mean of the last minute."""
        return self._replace(trend=0.0, trend_seconds=0.0, rate=self.short)


class _Line:
    """The weights of a least-squares slope over `steps` steps."""

    def __init__(self, steps: int) -> None:
        middle = (steps - 1) / 2
        self.steps = steps
        self.spread = sum((place - middle) ** 2 for place in range(steps))
        self.weights = tuple((place - middle) / self.spread for place in range(steps))


_LINES: Final = tuple(_Line(steps) for steps in TREND_STEPS)


class ArrivalHistory:
    """Arrivals by step. Intervals are recorded in any order, as long as they are younger than the history.

    An endpoint that was not seen for some time reports the arrivals of that time later, and `add` spreads them over it.
    Until then they are missing: `due` records for how many endpoint-seconds arrivals were expected, `seen` for how many
    they are known, and a rate counts the unknown ones like the mean of the known ones.

    Steps begin where the time plus `shift` is a multiple of their length: with the difference between the wall clock
    and the monotonic one, they are the same steps on all machines.
    """

    def __init__(self, shift: float = 0.0) -> None:
        self._shift = shift
        self._first: int | None = None  # the number of the oldest step
        self._steps: deque[list[float]] = deque()  # of each: arrivals, seconds seen, seconds due
        self._since = math.inf  # from here on arrivals are counted; shifted, as all times within
        self._seen_since = math.inf
        self._until = -math.inf

    def add(self, count: float, begin: float, end: float) -> None:
        """Record `count` arrivals, evenly spread over the time from `begin` to `end` (monotonic seconds). What is older
        than the history is left out; a negative count takes arrivals back."""
        begin, end = begin + self._shift, end + self._shift
        self._since, self._until = min(self._since, begin), max(self._until, end)
        self._spread(0, count, begin, end)

    def seen(self, endpoints: int, begin: float, end: float) -> None:
        """The arrivals at so many endpoints are known for this time."""
        self._seen_since = min(self._seen_since, begin + self._shift)
        self._spread(1, endpoints * (end - begin), begin + self._shift, end + self._shift)

    def due(self, endpoints: int, begin: float, end: float) -> None:
        """So many endpoints could receive requests in this time."""
        self._spread(2, endpoints * (end - begin), begin + self._shift, end + self._shift)

    @property
    def has_begun(self) -> bool:
        """Whether arrivals are counted, of held requests or at endpoints."""
        return self._since < math.inf

    @property
    def has_seen(self) -> bool:
        """Whether the arrivals at any endpoint are known."""
        return self._seen_since < math.inf

    def spans(self) -> list[ArrivalSpan]:
        """What is counted, by step, the oldest first."""
        found = []
        for step, each in enumerate(self._steps, self._first or 0):
            begin, end = max(self._since, step * STEP_SECONDS), min(self._until, (step + 1) * STEP_SECONDS)
            if begin < end:
                found.append(ArrivalSpan(begin - self._shift, end - self._shift, *each))
        return found

    def adopt(self, spans: Sequence[ArrivalSpan]) -> None:
        """Add what another observer has counted before this one saw its first arrivals. A gap of less than a step until
        then counts like the last span."""
        limit = self._seen_since if self.has_seen else self._since
        if not spans or limit == math.inf:
            return
        for place, span in enumerate(spans):
            begin, end = span.begin + self._shift, span.end + self._shift
            until = min(end, limit)
            if place == len(spans) - 1 and 0 < limit - end < STEP_SECONDS:
                until = limit
            if until <= begin or end <= begin:
                continue
            part = (until - begin) / (end - begin)
            for field, amount in enumerate((span.arrivals, span.seen, span.due)):
                self._spread(field, amount * part, begin, until)
            self._since, self._seen_since = min(self._since, begin), min(self._seen_since, begin)

    def _spread(self, field: int, amount: float, begin: float, end: float) -> None:
        if end <= begin:
            begin = end - _SHORTEST_SECONDS
        per_second = amount / (end - begin)
        newest = math.ceil(end / STEP_SECONDS) - 1
        for step in range(max(math.floor(begin / STEP_SECONDS), newest - NOISE_STEPS), newest + 1):
            low, high = max(begin, step * STEP_SECONDS), min(end, (step + 1) * STEP_SECONDS)
            found = self._step(step)
            if found is not None:
                found[field] += per_second * (high - low)

    def _step(self, step: int) -> list[float] | None:
        """The step of this number, None where it is older than the history."""
        steps, first = self._steps, self._first
        if first is None or step - first - len(steps) > NOISE_STEPS:  # of what was there nothing is left
            steps.clear()
            self._first = first = step
        if step < first:
            if first - step + len(steps) > NOISE_STEPS + 2:
                return None
            steps.extendleft([0.0, 0.0, 0.0] for _ in range(first - step))
            self._first = first = step
        while step >= first + len(steps):
            steps.append([0.0, 0.0, 0.0])
        while len(steps) > NOISE_STEPS + 2:
            steps.popleft()
            self._first = first = first + 1
        return steps[step - first]

    def mean(self, seconds: float, until: float) -> float | None:
        """Requests per second over the `seconds` before `until`, or over the part of them that is known; None where
        that is less than one step."""
        first, until = self._first, until + self._shift
        begin = max(until - seconds, self._since)
        if first is None or until - begin < STEP_SECONDS - _ROUNDING:
            return None
        total = 0.0
        for step in range(math.floor(begin / STEP_SECONDS), math.ceil(until / STEP_SECONDS)):
            if 0 <= step - first < len(self._steps):
                overlap = min(until, (step + 1) * STEP_SECONDS) - max(begin, step * STEP_SECONDS)
                filled = min(until, (step + 1) * STEP_SECONDS) - step * STEP_SECONDS  # the part of it that is over
                total += _count(self._steps[step - first]) * overlap / filled
        return max(0.0, total / (until - begin))

    def complete(self, until: float) -> list[float]:
        """The requests per second of the steps that ended by `until` and began after the first arrival was counted, the
        oldest first."""
        first, steps, until = self._first, self._steps, until + self._shift
        if first is None:
            return []
        begin = max(0, math.ceil(self._since / STEP_SECONDS - _ROUNDING) - first)
        end = math.floor(until / STEP_SECONDS + _ROUNDING) - first
        rates = [_count(each) / STEP_SECONDS for each in islice(steps, begin, max(begin, end))]
        rates.extend([0.0] * (min(end - begin, NOISE_STEPS) - len(rates)))  # nothing has arrived since
        return rates[-NOISE_STEPS - 1 :]


def _count(step: Sequence[float]) -> float:
    """The arrivals of a step, those included that are not known yet."""
    count, seen, due = step
    if due <= seen:
        return count
    return count * min(due / seen, MAX_UNKNOWN) if seen > 0 else count


def noise_of(rates: Sequence[float]) -> float | None:
    """The standard deviation of the rate of one step, from the differences between successive steps; None of too few.
    A difference of two equal and independent variables has twice their variance."""
    if len(rates) <= MIN_NOISE_STEPS:
        return None
    squares = sum((after - before) ** 2 for before, after in pairwise(rates))
    variance = squares / (2 * (len(rates) - 1))
    return math.sqrt(max(variance, _MIN_VARIANCE / STEP_SECONDS**2))


def slope_of(rates: Sequence[float], noise: float, significance: float = SIGNIFICANCE) -> tuple[float, float]:
    """The trend in requests per second per second, at least 0, and the seconds of the window that shows it."""
    best, seconds = 0.0, 0.0
    for line in _LINES:
        window = rates[-line.steps :]
        if len(window) < line.steps:
            break
        slope = sum(map(mul, line.weights, window))
        certain = (slope - significance * noise / math.sqrt(line.spread)) / STEP_SECONDS
        if certain > best and not is_jump(window, slope, line.spread, noise):
            best, seconds = certain, line.steps * STEP_SECONDS
    return best, seconds


def is_jump(window: Sequence[float], slope: float, spread: float, noise: float) -> bool:
    """Whether two levels explain the window better than a line of this slope, by more than noise: the sum of squared
    residuals is smaller by more than `JUMP` variances of a step. `spread` is the sum of the squared distances of the
    places from their middle."""
    count, sums = len(window), list(accumulate(window))
    total = sums[-1]
    by_line = slope * slope * spread + JUMP * noise * noise
    return any(
        (sums[left - 1] / left - (total - sums[left - 1]) / (count - left)) ** 2 * left * (count - left) / count
        > by_line
        for left in range(1, count)
    )


def expected(
    history: ArrivalHistory, until: float, lead: float, significance: float = SIGNIFICANCE
) -> ExpectedRate | None:
    """What is expected at `until`, up to which arrivals are counted (monotonic seconds); None before one step was."""
    short = history.mean(SHORT_SECONDS, until)
    if short is None:
        return None
    rates = history.complete(until)
    noise = noise_of(rates)
    trend, seconds = (0.0, 0.0) if noise is None else slope_of(rates, noise, significance)
    return ExpectedRate(short, trend, seconds, noise or 0.0, lead, short + trend * lead)
