"""Load reports (ORCA) that arrive with responses: readings of the endpoint that answered."""

from __future__ import annotations

from collections.abc import Mapping

from agent.engine_specs import AUTO
from agent.engines import engine as table_of
from agent.engines.report import ReportRefused, read
from agent.engines.table import Engine
from agent.events import Hook
from agent.events.requests import Reported
from agent.requests.ticket import Ticket
from agent.state.inflight import TRANSIT_SECONDS
from agent.state.store import RoutingStore


class LoadReports:
    """Hands the reports of one pool to its store; `tables` are the engines that the configuration defines."""

    def __init__(self, store: RoutingStore, tables: Mapping[str, Engine], hook: Hook) -> None:
        self.tables = tables
        self._store = store
        self._hook = hook

    def reported(self, ticket: Ticket, report: str, served: str, now: float) -> None:
        """Record a report from `served`; one of another endpoint than the picked one is only counted."""
        if ticket.pick is None:
            return
        endpoint = ticket.pick.endpoint
        reason = ""
        if served != endpoint:
            reason = "another_server" if served else "unattributed"
        else:
            engine = self._store.engine(served)
            table = None if engine in {"", AUTO} else self.tables.get(engine) or table_of(engine)
            try:
                values = read(report, table.reports if table is not None else {})
            except ReportRefused as refused:
                reason = refused.reason
            else:
                # The server wrote it before it arrived, by at most the time that a request takes on its way.
                self._store.reported(ticket.work_id, values, now - TRANSIT_SECONDS, now)
        self._hook(Reported(self._store.pool, endpoint, reason))
