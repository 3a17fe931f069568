"""Metrics and log lines of `agent.events.leases`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.events.leases import LeaseChanged, LeaseFailed
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from exporters.catalog import leases as rows


class LeaseInstruments:
    """The handlers of events of a Lease."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self._held: set[str] = set()
        self.counts: Mapping[type, Callable[[Any], None]] = {
            LeaseChanged: self._count_changed,
            LeaseFailed: self._count_failed,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            LeaseChanged: self._log_changed,
            LeaseFailed: self._log_failed,
        }

    def _count_changed(self, event: LeaseChanged) -> None:
        for change in ("acquired", "lost", "released"):
            self._metrics.child(rows.CHANGES, event.lease, change)  # 0 from the start: the first one is an increase
        if event.released:
            self._metrics.remove(rows.HELD, event.lease)  # it is no candidate any more
        else:
            self._metrics.child(rows.HELD, event.lease).set(event.held)
        before = event.lease in self._held
        if event.held and not before:
            self._held.add(event.lease)
            self._metrics.count(rows.CHANGES, event.lease, "acquired")
        elif before and not event.held:
            self._held.discard(event.lease)
            self._metrics.count(rows.CHANGES, event.lease, "released" if event.released else "lost")

    def _log_changed(self, event: LeaseChanged) -> None:
        if event.held:
            text = f"this replica holds the Lease {event.lease}: it writes Kubernetes Events and conditions"
        elif event.released:
            text = f"this replica is no candidate for the Lease {event.lease} any more"
        elif event.holder:
            text = f"{shortened(event.holder)} holds the Lease {event.lease}: this replica writes no Kubernetes Events"
        else:
            text = f"no replica is known to hold the Lease {event.lease}: no Kubernetes Events are written"
        self._log.info(text, lease=event.lease, holder=event.holder)

    def _count_failed(self, event: LeaseFailed) -> None:
        self._metrics.count(rows.FAILURES, event.lease, event.reason)

    def _log_failed(self, event: LeaseFailed) -> None:
        due = self._log.failed(("lease", event.lease, event.reason))
        if due:
            text = f"the Lease {event.lease} cannot be used: {shortened(event.detail)}{due.times}"
            self._log.warning(text, lease=event.lease, reason=event.reason)
