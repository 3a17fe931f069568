"""The load of a pool from a snapshot: sums, means and deviations of the fresh readings, and the coverage of the pool.

A reading is published while its endpoint is healthy and the reading is fresh: `current` decides that for the gauges,
for `/v1/gauges` and for `/v1/state`. An endpoint without a current reading is left out of a mean, never counted as
zero; the coverage is the number of endpoints in it. Without any there is no mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import fsum, sqrt
from typing import Final, NamedTuple

from agent.signals import KV_USAGE, MODELS, RUNNING, WAITING, Histogram, Value
from agent.state.freshness import NOT_REPORTED, why_not_fresh
from agent.state.health import PICKED, Health
from agent.state.snapshot import EndpointView, Snapshot

# The reference's saturation detector: an endpoint is saturated at 5 waiting requests or at 80 % of its KV cache.
QUEUE_FULL: Final = 5.0
KV_FULL: Final = 0.8

# The list of models comes with a request of its own, less often than pages: current while the endpoint is picked.
_OWN_REQUEST: Final = frozenset({MODELS})


class Current(NamedTuple):
    """A value that may be used, and when it was requested (monotonic seconds)."""

    value: Value
    at: float


class Unknown(NamedTuple):
    """Why there is no such value: one of `exporters.gauge.REASONS`."""

    reason: str


_BY_HEALTH: Final = {
    Health.BLIND: Unknown("blind"),
    Health.DOWN: Unknown("down"),
    Health.FAILING: Unknown("failing"),
    Health.STALE: Unknown("stale"),
    Health.UNKNOWN: Unknown("never_scraped"),
}


def current(view: EndpointView, signal: str, now: float) -> Current | Unknown:
    """The endpoint's reading of the signal if it may be used at `now`, else why not."""
    unhealthy = _BY_HEALTH.get(view.health)
    if unhealthy is not None and not (signal in _OWN_REQUEST and view.health in PICKED):
        return unhealthy
    reading = view.reading(signal)
    if reading is None:
        return Unknown(NOT_REPORTED)
    reason = "" if signal in _OWN_REQUEST else why_not_fresh(reading.at, view.stale_after, now)
    return Unknown(reason) if reason else Current(reading.value, reading.at)


class DatedHistogram(NamedTuple):
    """A histogram that may be used, and when it was requested (monotonic seconds)."""

    value: Histogram
    at: float


def histogram(view: EndpointView, name: str, now: float) -> DatedHistogram | Unknown:
    """The histogram of this name on the endpoint's last page, or why there is none."""
    unhealthy = _BY_HEALTH.get(view.health)
    if unhealthy is not None:
        return unhealthy
    value, at = view.histograms.get(name), view.page_at
    if value is None or at is None:
        return Unknown(NOT_REPORTED)
    reason = why_not_fresh(at, view.stale_after, now)
    return Unknown(reason) if reason else DatedHistogram(value, at)


class DatedValue(NamedTuple):
    """A number, and the time of the oldest reading behind it (monotonic seconds)."""

    value: float
    at: float


def number(view: EndpointView, signal: str, now: float) -> DatedValue | Unknown:
    """As `current`, as a number: a set of names gives its size."""
    found = current(view, signal, now)
    if isinstance(found, Unknown):
        return found
    value = found.value
    return DatedValue(float(len(value)) if isinstance(value, frozenset) else value, found.at)


def saturation(view: EndpointView, now: float) -> DatedValue | Unknown:
    """max(waiting / 5, KV usage / 0.8) of the endpoint, not clamped; unknown where either is unknown."""
    waiting, usage = number(view, WAITING, now), number(view, KV_USAGE, now)
    if isinstance(waiting, Unknown):
        return waiting
    if isinstance(usage, Unknown):
        return usage
    return DatedValue(max(waiting.value / QUEUE_FULL, usage.value / KV_FULL), min(waiting.at, usage.at))


class Spread(NamedTuple):
    """One quantity over the endpoints of a pool, of which `known` of `total` have it.

    `deviation` is the sample standard deviation (0 for a single endpoint); `at` is the time of the oldest reading.
    """

    known: int
    total: int
    sum: float
    mean: float
    deviation: float
    at: float

    @property
    def coverage(self) -> float:
        """The share of the endpoints that have it, 0 to 1."""
        return self.known / self.total


class NoSpread(NamedTuple):
    """No endpoint has the quantity: `no_endpoints` or `none_fresh`, of `total` endpoints."""

    reason: str
    total: int


def spread(values: Iterable[DatedValue | Unknown]) -> Spread | NoSpread:
    """The spread of the known `values`, of which there is one for each endpoint of a pool."""
    total = 0
    numbers: list[float] = []
    oldest = float("inf")
    for value in values:
        total += 1
        if isinstance(value, DatedValue):
            numbers.append(value.value)
            oldest = min(oldest, value.at)
    if not numbers:
        return NoSpread("none_fresh" if total else "no_endpoints", total)
    known = len(numbers)
    whole = fsum(numbers)
    mean = whole / known
    variance = fsum((each - mean) ** 2 for each in numbers) / (known - 1) if known > 1 else 0.0
    return Spread(known, total, whole, mean, sqrt(variance), oldest)


class Load(NamedTuple):
    """A pool at `at`: its endpoints by health, the spread of its signals, and the requests there of the agent and its
    peers, `own_in_flight` those of the agent itself.

    `ready` is the number of endpoints in a state that is picked.
    """

    pool: str
    at: float
    endpoints: int
    by_health: Mapping[Health, int]
    ready: int
    signals: Mapping[str, Spread | NoSpread]
    saturation: Spread | NoSpread
    in_flight: int
    own_in_flight: int
    backlog_tokens: float
    backlog_seconds: float


POOL_SIGNALS: Final = (WAITING, RUNNING, KV_USAGE)


def count_by_health(views: Iterable[EndpointView]) -> dict[Health, int]:
    """The number of endpoints in each state, 0 included."""
    by_health = dict.fromkeys(Health, 0)
    for view in views:
        by_health[view.health] += 1
    return by_health


def rollup(snapshot: Snapshot, now: float) -> Load:
    """The load of the snapshot's pool at `now`."""
    views = snapshot.endpoints
    by_health = count_by_health(views)
    return Load(
        snapshot.pool,
        now,
        len(views),
        by_health,
        sum(count for health, count in by_health.items() if health in PICKED),
        {signal: spread(number(view, signal, now) for view in views) for signal in POOL_SIGNALS},
        spread(saturation(view, now) for view in views),
        sum(view.work.requests for view in views),
        sum(view.work.requests - view.work.of_peers for view in views),
        fsum(view.work.prefill_tokens(now) for view in views),
        fsum(view.work.prefill_seconds(now) for view in views),
    )
