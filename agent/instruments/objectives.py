"""Metrics and log lines of `agent.events.objectives`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.events.objectives import FlowHeaderIgnored, UnknownObjective
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from exporters.catalog import objectives as rows


class ObjectiveInstruments:
    """The handlers of events about objectives and flow headers. A client may cause one with each request, so lines are
    written for the first of a kind only."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self.counts: Mapping[type, Callable[[Any], None]] = {
            UnknownObjective: self._count_unknown,
            FlowHeaderIgnored: self._count_ignored,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            UnknownObjective: self._log_unknown,
            FlowHeaderIgnored: self._log_ignored,
        }

    def _count_unknown(self, event: UnknownObjective) -> None:
        self._metrics.count(rows.UNKNOWN, event.pool)

    def _log_unknown(self, event: UnknownObjective) -> None:
        if not event.first:
            return
        more = "; further unknown ones are counted and not named" if event.last_named else ""
        self._log.warning(
            f"pool {event.pool}: a request names the objective {shortened(event.objective)!r}, which does not exist: "
            "its priority is 0; add it to objectives: or as an InferenceObjective, or correct the request's "
            f"x-llm-d-inference-objective{more}",
            pool=event.pool,
            objective=shortened(event.objective),
        )

    def _count_ignored(self, event: FlowHeaderIgnored) -> None:
        self._metrics.count(rows.IGNORED, event.pool, event.header, event.reason)

    def _log_ignored(self, event: FlowHeaderIgnored) -> None:
        due = self._log.failed(("flow-header", event.pool, event.header, event.reason))
        if due:
            self._log.warning(
                f"pool {event.pool}: the value of a request's {event.header} is not used: {event.reason}{due.times}",
                pool=event.pool,
                header=event.header,
                reason=event.reason,
            )
