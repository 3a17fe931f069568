"""Metrics and log lines of `agent.events.replicas`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.events.replicas import PeerChanged, PeerFailed, PeerRefused, PeersCounted
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from agent.state.replicas import REASONS, SELF, STATES
from exporters.catalog import replicas as rows

_STATES = tuple(sorted(set(STATES) - {SELF}))
_FAILURES = tuple(sorted(set(REASONS) - {"not_reached"}))
_REFUSALS = ("error", "malformed", "timeout", "too_many", "unauthenticated", "unresolved", "version")


class ReplicaInstruments:
    """The handlers of events of peers."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        for state in _STATES:
            metrics.child(rows.PEERS, state)
        for reason in _FAILURES:
            metrics.child(rows.PEER_FAILURES, reason)
        for reason in _REFUSALS:
            metrics.child(rows.CALLERS_REFUSED, reason)
        self.counts: Mapping[type, Callable[[Any], None]] = {
            PeerChanged: self._count_peers,
            PeersCounted: self._count_peers,
            PeerFailed: self._count_failed,
            PeerRefused: self._count_refused,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            PeerChanged: self._log_changed,
            PeerRefused: self._log_refused,
        }

    def _count_peers(self, event: PeerChanged | PeersCounted) -> None:
        for state in _STATES:
            self._metrics.child(rows.PEERS, state).set(event.counts.get(state, 0))

    def _count_failed(self, event: PeerFailed) -> None:
        self._metrics.count(rows.PEER_FAILURES, event.reason)

    def _count_refused(self, event: PeerRefused) -> None:
        self._metrics.count(rows.CALLERS_REFUSED, event.reason)

    def _log_changed(self, event: PeerChanged) -> None:
        who = f"replica {event.address}" + (f" ({shortened(event.name)})" if event.name else "")
        detail = shortened(event.detail)
        if event.state == "reporting":
            self._log.info(f"{who}: its reports arrive", replica=event.address)
        elif event.state == "left":
            self._log.info(f"{who} has stopped, and its part is over", replica=event.address)
        elif event.state == "silent":
            self._log.warning(
                f"{who} is silent, so what it does is unknown and sums over replicas are withheld: {detail}; "
                "if it is gone for good, take it out of replicas.peers or of the Service",
                replica=event.address,
                reason=event.reason,
            )
        elif event.state == "refused":
            self._log.error(
                f"{who} is refused, so what it does is unknown and sums over replicas are withheld: {detail}",
                replica=event.address,
                reason=event.reason,
            )

    def _log_refused(self, event: PeerRefused) -> None:
        due = self._log.failed(("replica", event.peer, event.reason))
        if due:
            who = shortened(event.peer) or "an unnamed caller"
            self._log.warning(f"replicas: {who} refused: {shortened(event.detail)}{due.times}", reason=event.reason)
