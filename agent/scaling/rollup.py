"""From a snapshot to a pool's load: sums, means and spreads of what is known, and how much of the pool that is.

A reading counts while its endpoint is healthy and the reading is younger than the staleness limit; `current` is the
one place that says so, for gauges, for `/v1/gauges` and for `/v1/state` alike. An endpoint without a current reading is
left out of a mean, never taken as zero; the coverage says how many were. With nobody left there is no mean at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import fsum, sqrt
from typing import Final, NamedTuple

from agent.signals import KV_USAGE, MODELS, RUNNING, WAITING, Histogram, Value
from agent.state.health import Health
from agent.state.snapshot import EndpointView, Snapshot

# The reference's saturation detector: an endpoint is full at 5 waiting requests or at 80 % of its KV cache.
QUEUE_FULL: Final = 5.0
KV_FULL: Final = 0.8

# The list of models comes by a request of its own, far rarer than pages: it holds as long as its endpoint is healthy.
_OWN_REQUEST: Final = frozenset({MODELS})


class Current(NamedTuple):
    """A value that may be acted on, and when it was asked for (monotonic seconds)."""

    value: Value
    at: float


class Unknown(NamedTuple):
    """Why there is no such value: a word of `exporters.gauge.REASONS`."""

    reason: str


_BY_HEALTH: Final = {
    Health.DOWN: Unknown("down"),
    Health.STALE: Unknown("stale"),
    Health.UNKNOWN: Unknown("never_scraped"),
}
_NOT_REPORTED: Final = Unknown("not_reported")
_STALE: Final = Unknown("stale")


def current(view: EndpointView, signal: str, now: float) -> Current | Unknown:
    """The endpoint's reading of the signal if it may be acted on at `now`, else why not."""
    blind = _BY_HEALTH.get(view.health)
    if blind is not None:
        return blind
    reading = view.reading(signal)
    if reading is None:
        return _NOT_REPORTED
    if now - reading.at >= view.stale_after and signal not in _OWN_REQUEST:
        return _STALE
    return Current(reading.value, reading.at)


class Told(NamedTuple):
    """A histogram that may be acted on, and when it was asked for."""

    value: Histogram
    at: float


def histogram(view: EndpointView, name: str, now: float) -> Told | Unknown:
    """The histogram of this name on the endpoint's last page, or why there is none."""
    blind = _BY_HEALTH.get(view.health)
    if blind is not None:
        return blind
    value, at = view.histograms.get(name), view.page_at
    if value is None or at is None:
        return _NOT_REPORTED
    return _STALE if now - at >= view.stale_after else Told(value, at)


class Sample(NamedTuple):
    """A number that is known, and the age-giving time of the oldest reading behind it."""

    value: float
    at: float


def number(view: EndpointView, signal: str, now: float) -> Sample | Unknown:
    """Like `current`, as a number: a set of names counts as its size."""
    found = current(view, signal, now)
    if isinstance(found, Unknown):
        return found
    value = found.value
    return Sample(float(len(value)) if isinstance(value, frozenset) else value, found.at)


def saturation(view: EndpointView, now: float) -> Sample | Unknown:
    """max(waiting / 5, KV usage / 0.8) of the endpoint, not clamped; unknown where either of the two is."""
    waiting, usage = number(view, WAITING, now), number(view, KV_USAGE, now)
    if isinstance(waiting, Unknown):
        return waiting
    if isinstance(usage, Unknown):
        return usage
    return Sample(max(waiting.value / QUEUE_FULL, usage.value / KV_FULL), min(waiting.at, usage.at))


class Spread(NamedTuple):
    """One quantity over the endpoints of a pool that know it.

    `known` of `total` endpoints; `deviation` is the sample standard deviation (0 for a single endpoint); `at` is the
    time of the oldest reading in it.
    """

    known: int
    total: int
    sum: float
    mean: float
    deviation: float
    at: float

    @property
    def coverage(self) -> float:
        """Part of the endpoints that know it, 0 to 1."""
        return self.known / self.total


class NoSpread(NamedTuple):
    """Nobody knows the quantity: `no_endpoints` or `none_fresh`, of `total` endpoints."""

    reason: str
    total: int


def spread(samples: Iterable[Sample | Unknown]) -> Spread | NoSpread:
    """The spread of the known ones among `samples`, one for each endpoint of a pool."""
    total = 0
    values: list[float] = []
    oldest = float("inf")
    for sample in samples:
        total += 1
        if isinstance(sample, Sample):
            values.append(sample.value)
            oldest = min(oldest, sample.at)
    if not values:
        return NoSpread("none_fresh" if total else "no_endpoints", total)
    known = len(values)
    whole = fsum(values)
    mean = whole / known
    variance = fsum((value - mean) ** 2 for value in values) / (known - 1) if known > 1 else 0.0
    return Spread(known, total, whole, mean, sqrt(variance), oldest)


class Load(NamedTuple):
    """A pool at `at`: its endpoints by health, the spread of its signals, and the agent's own work there."""

    pool: str
    at: float
    endpoints: int
    by_health: Mapping[Health, int]
    signals: Mapping[str, Spread | NoSpread]
    saturation: Spread | NoSpread
    in_flight: int
    backlog_tokens: float
    backlog_seconds: float


POOL_SIGNALS: Final = (WAITING, RUNNING, KV_USAGE)


def rollup(snapshot: Snapshot, now: float) -> Load:
    """The load of the snapshot's pool at `now`."""
    views = snapshot.endpoints
    by_health = dict.fromkeys(Health, 0)
    for view in views:
        by_health[view.health] += 1
    return Load(
        snapshot.pool,
        now,
        len(views),
        by_health,
        {signal: spread(number(view, signal, now) for view in views) for signal in POOL_SIGNALS},
        spread(saturation(view, now) for view in views),
        sum(view.work.requests for view in views),
        fsum(view.work.prefill_tokens(now) for view in views),
        fsum(view.work.prefill_seconds(now) for view in views),
    )
