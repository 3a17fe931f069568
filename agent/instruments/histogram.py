"""Histograms that are counted for each request: three of the client library's cost as much as a pick.

`observe` finds the bucket by bisection and takes no lock: it is called from the event loop alone. A page that is
rendered in another thread meanwhile may show an observation in the buckets and not yet in the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_INFINITE: Final = "+Inf"


class Buckets:
    """The observations of one series: `counts` by bucket, the last one infinite, and their `sum`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value; one that equals the upper bound of a bucket is in it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class BucketHistogram(Collector):
    """One metric with its series, for a registry of the client library. Without labels it has one series from the
    start."""

    def __init__(self, name: str, help: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> None:
        self._name = name
        self._help = help
        self._names = labels
        self._bounds = buckets
        self._written = [*(_go(bound) for bound in buckets), _INFINITE]
        self._series: dict[tuple[str, ...], Buckets] = {}
        if not labels:
            self._series[()] = Buckets(buckets)

    def labels(self, *values: str) -> Buckets:
        """The series with these label values."""
        found = self._series.get(values)
        if found is None:
            if len(values) != len(self._names):
                raise ValueError(f"{self._name} has the labels {', '.join(self._names)}")
            found = self._series[values] = Buckets(self._bounds)
        return found

    def remove(self, *values: str) -> None:
        """Remove the series with these label values, if there is one."""
        self._series.pop(values, None)

    def clear(self) -> None:
        """Remove all series."""
        self._series.clear()

    def describe(self) -> Iterator[Family]:
        """The metric without series."""
        yield Family(self._name, self._help, "histogram")

    def collect(self) -> Iterator[Family]:
        """The metric with all series."""
        family = Family(self._name, self._help, "histogram")
        add = family.add_sample
        for values, series in tuple(self._series.items()):
            labels = dict(zip(self._names, values, strict=True))
            total = 0
            for bound, total in zip(self._written, accumulate(tuple(series.counts)), strict=True):
                add(f"{self._name}_bucket", {**labels, "le": bound}, total)
            add(f"{self._name}_count", labels, total)
            add(f"{self._name}_sum", labels, series.sum)
        yield family


def _go(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text
