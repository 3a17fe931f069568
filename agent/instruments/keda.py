"""Metrics and log lines of `agent.events.keda`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.events.keda import OK, PoolActivated, ScalerCalled, ScalerStreams
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from exporters.catalog import keda as rows


class KedaInstruments:
    """The handlers of events of the external scaler."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self.counts: Mapping[type, Callable[[Any], None]] = {
            ScalerCalled: self._count_call,
            PoolActivated: self._count_activated,
            ScalerStreams: self._count_streams,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            ScalerCalled: self._log_call,
            PoolActivated: self._log_activated,
        }

    def _count_call(self, event: ScalerCalled) -> None:
        self._metrics.count(rows.CALLS, event.pool, event.rpc, event.result)

    def _count_activated(self, event: PoolActivated) -> None:
        self._metrics.count(rows.ACTIVATIONS, event.pool)

    def _count_streams(self, event: ScalerStreams) -> None:
        self._metrics.child(rows.STREAMS).set(event.open)

    def _log_call(self, event: ScalerCalled) -> None:
        """One line for each pool and result, not for each call: KEDA repeats a call without an answer for ever."""
        if event.result == OK:
            return
        due = self._log.failed(("keda", event.pool, event.result))
        if due:
            what = f"{event.rpc} of ScaledObject {shortened(event.scaled_object)}" if event.rpc else "a connection"
            text = f"KEDA: {what} has no answer: {shortened(event.detail)}{due.times}"
            self._log.warning(text, pool=event.pool, reason=event.result)

    def _log_activated(self, event: PoolActivated) -> None:
        self._log.info(f"KEDA is sent that the pool is active; {event.held} requests are held", pool=event.pool)
