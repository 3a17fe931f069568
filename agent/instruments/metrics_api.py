"""Metrics and log lines of `agent.events.metrics_api`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from agent.events.metrics_api import MetricsAccessChecked, MetricsRead, TrustProblem
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from exporters.catalog import metrics_api as rows

_OK: Final = "ok"
_ALLOWED: Final = "allowed"
# The check of the sender has a line of its own, with the reason.
_REFUSED: Final = "refused"


class MetricsApiInstruments:
    """The handlers of events of the metrics APIs."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self.counts: Mapping[type, Callable[[Any], None]] = {
            MetricsRead: self._count_read,
            MetricsAccessChecked: self._count_checked,
            TrustProblem: self._count_trust_problem,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            MetricsRead: self._log_read,
            MetricsAccessChecked: self._log_checked,
            TrustProblem: self._log_trust_problem,
        }

    def _count_read(self, event: MetricsRead) -> None:
        self._metrics.count(rows.REQUESTS, event.result)
        if event.age_seconds is not None:
            self._metrics.child(rows.AGE, event.api).observe(event.age_seconds)

    def _log_read(self, event: MetricsRead) -> None:
        """One line for each result, not for each request: an autoscaler repeats its request every few seconds."""
        if event.result in {_OK, _REFUSED}:
            return
        due = self._log.failed(("metrics API", event.result))
        if due:
            self._log.warning(f"metrics API request refused: {event.result}: {shortened(event.detail)}{due.times}")

    def _count_checked(self, event: MetricsAccessChecked) -> None:
        self._metrics.count(rows.ACCESS_CHECKS, event.method, event.result)

    def _log_checked(self, event: MetricsAccessChecked) -> None:
        if event.result == _ALLOWED:
            return
        due = self._log.failed(("metrics API access", event.method, event.result))
        if due:
            detail = shortened(event.detail)
            self._log.warning(f"request to the metrics APIs {event.result}, by {event.method}: {detail}{due.times}")

    def _count_trust_problem(self, event: TrustProblem) -> None:
        self._metrics.count(rows.TRUST_PROBLEMS)

    def _log_trust_problem(self, event: TrustProblem) -> None:
        due = self._log.failed(("metrics API trust", event.detail))
        if due:
            self._log.warning(f"metrics API: {shortened(event.detail)}{due.times}")
