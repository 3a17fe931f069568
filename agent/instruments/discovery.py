"""Metrics and log lines of `agent.events.discovery`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.events.discovery import SourceProblemFound, SourceProblemSolved
from agent.instruments.event_log import EventLog
from agent.instruments.event_metrics import EventMetrics
from exporters.catalog import discovery as rows


class DiscoveryInstruments:
    """The handlers of events of discovery."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self.counts: Mapping[type, Callable[[Any], None]] = {
            SourceProblemFound: self._count_found,
            SourceProblemSolved: self._count_solved,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            SourceProblemFound: self._log_found,
            SourceProblemSolved: self._log_solved,
        }

    def _count_found(self, event: SourceProblemFound) -> None:
        if not event.again:
            self._metrics.count(rows.PROBLEMS_FOUND, event.pool, event.reason)

    def _count_solved(self, event: SourceProblemSolved) -> None:
        """Nothing is counted: the gauge of the problems is computed from the state."""

    def _log_found(self, event: SourceProblemFound) -> None:
        # A message that changes within the minute, such as another number of pods, waits for the next line.
        due = self._log.failed(("discovery", event.pool, event.reason, not event.again))
        if due:
            self._log.warning(f"{event.reason}: {event.message}{due.times}", event.pool, reason=event.reason)

    def _log_solved(self, event: SourceProblemSolved) -> None:
        self._log.info(f"{event.reason}: solved", event.pool, reason=event.reason)
