"""Metrics and log lines of `agent.events.accelerators`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from agent.events.accelerators import DeviceHealthChanged, DeviceLost, DevicesFailed, DevicesRead
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from exporters.catalog import accelerators as rows

RECOVERED: Final = "recovered"  # the reason of a change to healthy


class AcceleratorInstruments:
    """The handlers of accelerator events."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self.counts: Mapping[type, Callable[[Any], None]] = {
            DevicesRead: self._count_read,
            DevicesFailed: self._count_failed,
            DeviceHealthChanged: self._count_health_changed,
            DeviceLost: self._count_lost,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            DevicesRead: self._log_read,
            DevicesFailed: self._log_failed,
            DeviceHealthChanged: self._log_health_changed,
            DeviceLost: self._log_lost,
        }

    def _count_read(self, event: DevicesRead) -> None:
        self._metrics.count(rows.SCRAPES, event.source, "ok", "")
        for refused in event.refused:
            self._metrics.count(rows.VALUES_REFUSED, event.source, refused.signal, refused.reason)

    def _log_read(self, event: DevicesRead) -> None:
        """Only refused values are logged."""
        self._log.succeeded((event.source, event.exporter))
        for refused in event.refused:
            due = self._log.failed((event.source, event.exporter, refused.signal, refused.reason), event.at)
            if due:
                what = f"{event.source} exporter {event.exporter} reports {shortened(refused.text)}"
                text = f"{what} for {refused.signal}: {refused.reason}, value discarded{due.times}"
                self._log.warning(text, exporter=event.exporter, reason=refused.reason)

    def _count_failed(self, event: DevicesFailed) -> None:
        self._metrics.count(rows.SCRAPES, event.source, "failed", event.reason)

    def _log_failed(self, event: DevicesFailed) -> None:
        due = self._log.failed((event.source, event.exporter), event.at)
        if due:
            what = f"scrape of {event.source} exporter {event.exporter} failed"
            text = f"{what}: {event.reason}: {shortened(event.detail)}{due.of_scrapes}"
            self._log.warning(text, exporter=event.exporter, reason=event.reason)

    def _count_health_changed(self, event: DeviceHealthChanged) -> None:
        self._metrics.count(rows.HEALTH_CHANGES, event.source, event.reason or RECOVERED)

    def _log_health_changed(self, event: DeviceHealthChanged) -> None:
        write = self._log.warning if event.reason else self._log.info
        state = f"unhealthy ({event.reason}): {shortened(event.detail)}" if event.reason else "healthy again"
        text = f"accelerator {shortened(event.device)} of {event.source} exporter {event.exporter} is {state}"
        write(text, exporter=event.exporter, device=event.device, reason=event.reason)

    def _count_lost(self, event: DeviceLost) -> None:
        if event.lost:
            self._metrics.count(rows.LOST_TOTAL, event.pool, event.source)

    def _log_lost(self, event: DeviceLost) -> None:
        device = f"accelerator {shortened(event.device)} of {event.source} exporter {event.exporter}"
        if event.lost:
            text = (
                f"pool {event.pool}: {device}, seen with {event.address}, left the page: its last state stays in effect"
            )
            self._log.warning(text, exporter=event.exporter, device=event.device, server=event.address)
        else:
            text = f"pool {event.pool}: {device} is no longer missing at {event.address}"
            self._log.info(text, exporter=event.exporter, device=event.device, server=event.address)
