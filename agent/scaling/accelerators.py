"""The gauges of accelerators: per endpoint, and per exporter.

An accelerator's reading comes from its exporter, not from the model server: it is published while it is fresh by the
exporter's own limit, whatever the endpoint's health. `reading` decides that for the gauges and for `/v1/state`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from agent.accelerators import table
from agent.accelerators.combine import Accelerators
from agent.scaling.rollup import Current, Unknown
from agent.state.devices import ExporterView
from agent.state.freshness import why_not_fresh
from agent.state.snapshot import EndpointView
from exporters.catalog import accelerators as rows
from exporters.catalog.metric import Metric

BY_SIGNAL: Final[tuple[tuple[str, Metric], ...]] = (
    (table.UTILIZATION, rows.UTILIZATION),
    (table.MEMORY_USED, rows.MEMORY_USED),
    (table.MEMORY_TOTAL, rows.MEMORY_TOTAL),
    (table.POWER, rows.POWER),
    (table.TEMPERATURE, rows.TEMPERATURE),
    (table.ECC, rows.ECC),
)


class GaugeCollector(Protocol):
    """Collects the gauges of one set."""

    def known(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        """Add a number as of now."""
        ...

    def dated(self, metric: Metric, labels: tuple[str, ...], value: float, at: float) -> None:
        """Add a number as of some time."""
        ...

    def withhold(self, metric: Metric, labels: tuple[str, ...], reason: str) -> None:
        """Add a number that is not published, and why."""
        ...


def reading(accelerators: Accelerators, signal: str, now: float) -> Current | Unknown:
    """The reading of the endpoint's devices if it may be used at `now`, else why not."""
    found = accelerators.readings.get(signal)
    if found is None:
        return Unknown(accelerators.withheld.get(signal, "not_reported"))
    reason = why_not_fresh(found.at, accelerators.stale_after, now)
    return Unknown(reason) if reason else Current(found.value, found.at)


def of_endpoint(gauges: GaugeCollector, pool: str, view: EndpointView, now: float) -> None:
    """The gauges of one endpoint's accelerators."""
    for accelerators in view.accelerators:
        labels = (pool, view.address, accelerators.source)
        for signal, metric in BY_SIGNAL:
            found = reading(accelerators, signal, now)
            if isinstance(found, Unknown):
                gauges.withhold(metric, labels, found.reason)
            elif isinstance(found.value, float):
                gauges.dated(metric, labels, found.value, found.at)
        if not accelerators.devices and not accelerators.lost:
            for metric in (rows.DEVICES, rows.UNHEALTHY, rows.LOST, rows.AGE):
                gauges.withhold(metric, labels, next(iter(accelerators.withheld.values()), "no_accelerator"))
            continue
        gauges.known(rows.DEVICES, labels, len(accelerators.devices))
        gauges.known(rows.UNHEALTHY, labels, len({fault.device for fault in accelerators.faults}))
        gauges.known(rows.LOST, labels, len(accelerators.lost) + accelerators.missing)
        gauges.known(rows.AGE, labels, max(0.0, now - oldest(accelerators)))


def oldest(accelerators: Accelerators) -> float:
    """The time of the oldest of the readings: when it was requested, or sampled."""
    return min((found.at for found in accelerators.readings.values()), default=accelerators.at)


def of_exporters(gauges: GaugeCollector, exporters: Sequence[ExporterView], now: float) -> None:
    """The gauges of the exporters themselves."""
    for view in exporters:
        labels = (view.key.source, view.key.address)
        gauges.known(rows.EXPORTER_FRESH, labels, float(view.fresh(now)))
        if view.page_at is None:
            gauges.withhold(rows.EXPORTER_AGE, labels, "never_scraped")
            continue
        gauges.known(rows.EXPORTER_AGE, labels, max(0.0, now - view.page_at))
        for state, count in (
            ("joined", sum(map(len, view.joined.values()))),
            ("unmatched", len(view.unmatched)),
            ("ambiguous", len(view.ambiguous)),
        ):
            gauges.known(rows.EXPORTER_DEVICES, (*labels, state), count)
        for fault in view.faults:
            gauges.known(rows.DEVICE_UNHEALTHY, (*labels, fault.device, fault.reason), 1.0)
