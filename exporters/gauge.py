"""A number that we publish, or the reason why we do not: what every exporter is given.

A gauge is finite by construction, so that no exit has to ask again; a number without fresh data is a `Withheld` and
has no value at all, so that no exit can turn it into a zero. Times are those of the giver's clock: `at` is when the
oldest reading behind the value was asked for, and `GaugeSet.at` the moment at which the set was made, so that
`set.at - gauge.at` is the age of a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple, Self

from exporters.metric import Metric


class NotFinite(ValueError):
    """A gauge was given NaN or an infinity: whoever computed it has to withhold it instead."""


class _Row(NamedTuple):
    metric: Metric
    labels: tuple[str, ...]
    value: float
    at: float


class Gauge(_Row):
    """One number: `labels` are the values of the metric's labels, in the catalogue's order; `at` is its sample time.

    `NotFinite` for NaN and the infinities; ValueError for a number of labels that is not the metric's.
    """

    __slots__ = ()

    def __new__(cls, metric: Metric, labels: tuple[str, ...], value: float, at: float) -> Self:
        """Refuse what is no gauge; there are thirty for each endpoint, so a tuple has to do."""
        if not isfinite(value):
            raise NotFinite(f"{metric.name}{list(labels)} is {value!r}: withhold it and say why")
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has the labels {list(metric.labels)}, not {list(labels)}")
        return tuple.__new__(cls, (metric, labels, value, at))


class Distribution(NamedTuple):
    """A histogram that a server keeps: cumulative `counts` beside their upper `bounds`, the infinite one left out.

    `total` is the count of all, `sum` their sum; `at` is its sample time.
    """

    metric: Metric
    labels: tuple[str, ...]
    bounds: Sequence[float]
    counts: Sequence[float]
    total: float
    sum: float
    at: float


class Withheld(NamedTuple):
    """A number that is not published, and why: one word of `REASONS`."""

    metric: Metric
    labels: tuple[str, ...]
    reason: str


REASONS = {
    "down": "the endpoint is down: its scrapes fail, its health path says no, or an accelerator of it is sick",
    "never_scraped": "no page was ever read from the endpoint",
    "no_accelerator": "no accelerator is known to be the endpoint's",
    "no_endpoints": "the pool is empty",
    "none_fresh": "no endpoint of the pool has a fresh reading",
    "not_reported": "the endpoint's pages never brought the signal",
    "nothing_counted": "a ratio of counters of which neither has grown in the window",
    "partial": "not every accelerator of the endpoint reports the signal",
    "stale": "the last reading is older than the staleness limit",
    "too_few_pages": "a rate needs two pages of one server that are some seconds apart",
}


class GaugeSet(NamedTuple):
    """Everything that there is to publish at `at`, and everything that is withheld."""

    at: float
    gauges: Sequence[Gauge]
    withheld: Sequence[Withheld]
    distributions: Sequence[Distribution] = ()
