"""What is published of accelerators: per endpoint, and per exporter.

A reading of an accelerator is its exporter's, not its server's: it counts while it is younger than the source's own
limit, whatever the endpoint's health. `reading` is the one place that says so, for gauges and for `/v1/state` alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from agent.accelerators import table
from agent.accelerators.combine import Accelerators
from agent.scaling.rollup import Current, Unknown
from agent.state.devices import ExporterView
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


class Maker(Protocol):
    """What collects gauges."""

    def known(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        """A number that is true now."""
        ...

    def dated(self, metric: Metric, labels: tuple[str, ...], value: float, at: float) -> None:
        """A number as of some time."""
        ...

    def withhold(self, metric: Metric, labels: tuple[str, ...], reason: str) -> None:
        """A number that is not published, and why."""
        ...


def reading(accelerators: Accelerators, signal: str, now: float) -> Current | Unknown:
    """The reading of the endpoint's devices if it may be acted on at `now`, else why not."""
    found = accelerators.readings.get(signal)
    if found is None:
        return Unknown(accelerators.withheld.get(signal, "not_reported"))
    return Unknown("stale") if now - found.at >= accelerators.stale_after else Current(found.value, found.at)


def of_endpoint(maker: Maker, pool: str, view: EndpointView, now: float) -> None:
    """The gauges of one endpoint's accelerators."""
    for accelerators in view.accelerators:
        labels = (pool, view.address, accelerators.source)
        for signal, metric in BY_SIGNAL:
            found = reading(accelerators, signal, now)
            if isinstance(found, Unknown):
                maker.withhold(metric, labels, found.reason)
            elif isinstance(found.value, float):
                maker.dated(metric, labels, found.value, found.at)
        if not accelerators.devices:
            for metric in (rows.DEVICES, rows.UNHEALTHY, rows.AGE):
                maker.withhold(metric, labels, next(iter(accelerators.withheld.values()), "no_accelerator"))
            continue
        maker.known(rows.DEVICES, labels, len(accelerators.devices))
        maker.known(rows.UNHEALTHY, labels, len(accelerators.faults))
        maker.known(rows.AGE, labels, max(0.0, now - oldest(accelerators)))


def oldest(accelerators: Accelerators) -> float:
    """When the oldest of the readings was asked for, or sampled."""
    return min((found.at for found in accelerators.readings.values()), default=accelerators.at)


def of_exporters(maker: Maker, exporters: Sequence[ExporterView], now: float) -> None:
    """The gauges of the exporters themselves."""
    for view in exporters:
        labels = (view.key.source, view.key.address)
        maker.known(rows.EXPORTER_FRESH, labels, float(view.fresh(now)))
        if view.page_at is None:
            maker.withhold(rows.EXPORTER_AGE, labels, "never_scraped")
            continue
        maker.known(rows.EXPORTER_AGE, labels, max(0.0, now - view.page_at))
        for word, count in (
            ("joined", sum(map(len, view.joined.values()))),
            ("unmatched", len(view.unmatched)),
            ("ambiguous", len(view.ambiguous)),
        ):
            maker.known(rows.EXPORTER_DEVICES, (*labels, word), count)
        for fault in view.faults:
            maker.known(rows.DEVICE_UNHEALTHY, (*labels, fault.device, fault.reason), 1.0)
