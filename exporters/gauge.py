"""A number that is published, or the reason why it is withheld: what every exporter is given.

A gauge is finite by construction, so exporters need no check; a number without fresh data is a `Withheld`, which has no
value, so no exporter can turn it into a zero. Times are monotonic seconds of the agent's clock: `at` is when the oldest
reading behind the value was requested, and `GaugeSet.at` when the set was made, so `set.at - gauge.at` is an age.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple, Self

from exporters.catalog.metric import Metric


class NotFinite(ValueError):
    """A gauge was given NaN or an infinity; a number that cannot be computed is to be withheld instead."""


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
        """Check the arguments. A tuple, because there are about thirty gauges for each endpoint."""
        if not isfinite(value):
            raise NotFinite(f"{metric.name}{list(labels)} is {value!r}: withhold it with a reason")
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has the labels {list(metric.labels)}, not {list(labels)}")
        return tuple.__new__(cls, (metric, labels, value, at))


class Distribution(NamedTuple):
    """A histogram that a server keeps: cumulative `counts` for the upper `bounds`, without the infinite one.

    `total` is the number of observations, `sum` their sum; `at` is its sample time.
    """

    metric: Metric
    labels: tuple[str, ...]
    bounds: Sequence[float]
    counts: Sequence[float]
    total: float
    sum: float
    at: float


class Withheld(NamedTuple):
    """A number that is not published, and the reason: a key of `REASONS`. `detail` says what exactly is missing, where
    the reason leaves that open."""

    metric: Metric
    labels: tuple[str, ...]
    reason: str
    detail: str = ""


REASONS = {
    "blind": "the endpoint answers, and its page cannot be read or has no current data",
    "down": "the endpoint is down: its scrapes fail, its health probes fail, or an accelerator of it is unhealthy",
    "failing": "the endpoint is ejected because its requests fail",
    "flow_control_off": "flow control is switched off for the pool",
    "never_known": "the API server has never sent the pool's endpoints",
    "never_scraped": "no page was ever read from the endpoint",
    "no_accelerator": "no accelerator is matched with the endpoint",
    "no_arrivals": "no arrivals were counted for 15 s yet, or no server reports ended and running requests",
    "no_capacity": "no replica was saturated yet, and demand.capacity is not configured",
    "no_endpoints": "the pool is empty",
    "no_exporter": "no exporter of accelerators runs on the endpoint's node",
    "no_rate": "no request was dispatched from the queue yet, so that nothing shows how fast it drains",
    "no_status": "the controller of the HPA has not written the number or the condition",
    "none_fresh": "no endpoint of the pool has a fresh reading",
    "not_reported": "the endpoint has never reported the signal",
    "nothing_counted": "the ratio's denominator has not increased in the window",
    "partial": "not every accelerator of the endpoint reports the signal, or one of them is missing",
    "replica_unknown": "another replica of the agent is silent or refused, and the sum lacks its part",
    "share": "the endpoint uses a share of a card, and the signal is measured for the whole card",
    "stale": "the last reading is older than the staleness limit",
    "too_few_pages": "a rate needs two pages of one server that are some seconds apart",
}


class GaugeSet(NamedTuple):
    """Everything that is published at `at`, and everything that is withheld."""

    at: float
    gauges: Sequence[Gauge]
    withheld: Sequence[Withheld]
    distributions: Sequence[Distribution] = ()
