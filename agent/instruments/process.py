"""Metrics and log lines of `agent.events.process`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.events.process import Reloaded, TaskFailed, WatcherDropped
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from exporters.catalog import process as rows


class ProcessInstruments:
    """The handlers of events of the process."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        # Counters are 0 from the start, so that the first event is an increase.
        for result in ("ok", "failed"):
            metrics.child(rows.RELOADS, result)
        metrics.child(rows.RELOAD_GOOD).set(1)
        for reason in ("slow", "too_large", "too_many"):
            metrics.child(rows.WATCHERS_DROPPED, reason)
        self.counts: Mapping[type, Callable[[Any], None]] = {
            Reloaded: self._count_reloaded,
            TaskFailed: self._count_task_failed,
            WatcherDropped: self._count_watcher_dropped,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            Reloaded: self._log_reloaded,
            TaskFailed: self._log_task_failed,
            WatcherDropped: self._log_watcher_dropped,
        }

    def _count_reloaded(self, event: Reloaded) -> None:
        self._metrics.count(rows.RELOADS, "ok" if event.ok else "failed")
        self._metrics.child(rows.RELOAD_GOOD).set(event.ok or event.no_file)

    def _log_reloaded(self, event: Reloaded) -> None:
        if event.ok:
            self._log.info(f"configuration reloaded: {event.detail}")
        else:
            self._log.error(f"configuration not reloaded, the old one stays: {event.detail}")

    def _count_task_failed(self, event: TaskFailed) -> None:
        self._metrics.count(rows.TASK_FAILURES, event.task)

    def _log_task_failed(self, event: TaskFailed) -> None:
        due = self._log.failed(("task", event.task))
        if due:
            restart = f"; restarting in {event.backoff:g} s" if event.backoff else ""
            text = f"task {event.task} failed: {shortened(event.detail)}{restart}{due.times}"
            self._log.error(text, task=event.task)

    def _count_watcher_dropped(self, event: WatcherDropped) -> None:
        self._metrics.count(rows.WATCHERS_DROPPED, event.reason)

    def _log_watcher_dropped(self, event: WatcherDropped) -> None:
        due = self._log.failed(("watcher", event.reason))
        if due:
            self._log.warning(f"client of the admin address dropped: {event.reason}{due.times}")
