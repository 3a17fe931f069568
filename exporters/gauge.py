"""A number that we publish, or the reason why we do not: what every exporter is given.

A gauge is finite by construction, so that no exit has to ask again; a number without fresh data is a `Withheld` and
has no value at all, so that no exit can turn it into a zero. Times are those of the giver's clock: `at` is when the
oldest reading behind the value was asked for, and `GaugeSet.at` the moment at which the set was made, so that
`set.at - gauge.at` is the age of a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from exporters.metric import Metric


class NotFinite(ValueError):
    """A gauge was given NaN or an infinity: whoever computed it has to withhold it instead."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """One number: `labels` are the values of the metric's labels, in the catalogue's order; `at` is its sample time.

    `NotFinite` for NaN and the infinities; ValueError for a number of labels that is not the metric's.
    """

    metric: Metric
    labels: tuple[str, ...]
    value: float
    at: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise NotFinite(f"{self.metric.name}{list(self.labels)} is {self.value!r}: withhold it and say why")
        if len(self.labels) != len(self.metric.labels):
            raise ValueError(f"{self.metric.name} has the labels {list(self.metric.labels)}, not {list(self.labels)}")


class Withheld(NamedTuple):
    """A number that is not published, and why: one word of `REASONS`."""

    metric: Metric
    labels: tuple[str, ...]
    reason: str


REASONS = {
    "down": "the endpoint refuses, drops or fails its scrapes",
    "never_scraped": "no page was ever read from the endpoint",
    "no_endpoints": "the pool is empty",
    "none_fresh": "no endpoint of the pool has a fresh reading",
    "not_reported": "the endpoint's pages never brought the signal",
    "stale": "the last reading is older than the staleness limit",
}


class GaugeSet(NamedTuple):
    """Everything that there is to publish at `at`, and everything that is withheld."""

    at: float
    gauges: Sequence[Gauge]
    withheld: Sequence[Withheld]
