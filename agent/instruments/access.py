"""Metrics and log lines of `agent.events.access`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from agent.events.access import AccessChecked, TokenFileProblem
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from exporters.catalog import access as rows

_ALLOWED: Final = "allowed"
_UNAVAILABLE: Final = "unavailable"


class AccessInstruments:
    """The handlers of events of access."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self.counts: Mapping[type, Callable[[Any], None]] = {
            AccessChecked: self._count_checked,
            TokenFileProblem: self._count_token_file_problem,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            AccessChecked: self._log_checked,
            TokenFileProblem: self._log_token_file_problem,
        }

    def _count_checked(self, event: AccessChecked) -> None:
        self._metrics.count(rows.ACCESS_CHECKS, event.method, event.result)

    def _log_checked(self, event: AccessChecked) -> None:
        """One line for each method and result, not for each request: refused clients must not fill the log."""
        if event.result == _ALLOWED:
            return
        due = self._log.failed(("access", event.method, event.result))
        if due:
            write = self._log.error if event.result == _UNAVAILABLE else self._log.warning
            detail = shortened(event.detail)
            write(f"request to the admin address refused: {event.result}, by {event.method}: {detail}{due.times}")

    def _count_token_file_problem(self, event: TokenFileProblem) -> None:
        self._metrics.count(rows.TOKEN_FILE_PROBLEMS)

    def _log_token_file_problem(self, event: TokenFileProblem) -> None:
        due = self._log.failed(("token file", event.detail))
        if due:
            self._log.warning(f"token file: {shortened(event.detail)}{due.times}")
