"""The agent's own metrics: what the catalogue counts from events, and the process metrics of the operating system."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from agent.instruments.histogram import BucketHistogram
from exporters.catalog import CATALOG
from exporters.catalog.metric import Metric


class EventMetrics:
    """A registry of one agent, with the names, labels and buckets of the catalogue."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._metrics = {row.name: self._make(row) for row in CATALOG.values() if row.origin == "events"}
        ProcessCollector(registry=self.registry)

    def child(self, row: Metric, *labels: str) -> Any:
        """The client library's counter or gauge, or our `Buckets`, for these label values."""
        metric = self._metrics[row.name]
        return metric.labels(*labels) if labels or row.type == "histogram" else metric

    def count(self, row: Metric, *labels: str) -> None:
        """Increment a counter by one."""
        self.child(row, *labels).inc()

    def remove(self, row: Metric, *labels: str) -> None:
        """Remove the series with these label values."""
        self._metrics[row.name].remove(*labels)

    def clear(self, row: Metric) -> None:
        """Remove all series of a metric."""
        self._metrics[row.name].clear()

    def _make(self, row: Metric) -> MetricWrapperBase | BucketHistogram:
        if row.type == "histogram":
            histogram = BucketHistogram(row.name, row.help, row.labels, row.buckets)
            self.registry.register(histogram)
            return histogram
        make = Counter if row.type == "counter" else Gauge
        return make(row.name, row.help, row.labels, registry=self.registry)
