"""Metrics and log lines of `agent.events.kubernetes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.events.kubernetes import (
    KubernetesWriteFailed,
    KubernetesWritten,
    ObjectProblemFound,
    ObjectProblemSolved,
)
from agent.instruments.event_log import EventLog
from agent.instruments.event_metrics import EventMetrics
from exporters.catalog import kubernetes as rows


class KubernetesInstruments:
    """The handlers of events about objects of a cluster."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        for what in ("event", "condition"):
            for result in ("ok", "forbidden", "refused", "failed"):
                metrics.child(rows.WRITES, what, result)
        self.counts: Mapping[type, Callable[[Any], None]] = {
            KubernetesWritten: self._count_written,
            KubernetesWriteFailed: self._count_failed,
            ObjectProblemFound: self._count_found,
            ObjectProblemSolved: self._count_solved,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            KubernetesWriteFailed: self._log_failed,
            ObjectProblemFound: self._log_found,
            ObjectProblemSolved: self._log_solved,
        }

    def _count_written(self, event: KubernetesWritten) -> None:
        self._metrics.count(rows.WRITES, event.what, "ok")

    def _count_failed(self, event: KubernetesWriteFailed) -> None:
        self._metrics.count(rows.WRITES, event.what, event.result)

    def _log_failed(self, event: KubernetesWriteFailed) -> None:
        due = self._log.failed(("kubernetes", event.what, event.result))
        if due:
            text = f"Kubernetes {event.what} about {event.object} not written: {event.detail}{due.times}"
            self._log.warning(text, reason=event.result)

    def _count_found(self, event: ObjectProblemFound) -> None:
        self._metrics.count(rows.OBJECT_PROBLEMS_FOUND, event.kind, event.reason)
        self._metrics.child(rows.OBJECT_PROBLEMS, event.kind, event.reason).inc()

    def _log_found(self, event: ObjectProblemFound) -> None:
        due = self._log.failed(("kubernetes", event.object, event.reason))
        if due:
            self._log.warning(f"{event.reason}: {event.message}{due.times}", reason=event.reason)

    def _count_solved(self, event: ObjectProblemSolved) -> None:
        self._metrics.child(rows.OBJECT_PROBLEMS, event.kind, event.reason).dec()

    def _log_solved(self, event: ObjectProblemSolved) -> None:
        self._log.info(f"{event.reason}: solved, {event.object}", reason=event.reason)
