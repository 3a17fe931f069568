"""Metrics and log lines of `agent.events.tls`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from agent.events.tls import REASONS, CertificateInvalid, CertificateLoaded, CertificateNotLoaded, HandshakeFailed
from agent.instruments.event_log import EventLog, shortened
from agent.instruments.event_metrics import EventMetrics
from exporters.catalog import tls as rows


class TlsInstruments:
    """The handlers of events of TLS."""

    def __init__(self, metrics: EventMetrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self.counts: Mapping[type, Callable[[Any], None]] = {
            CertificateLoaded: self._count_loaded,
            CertificateNotLoaded: self._count_not_loaded,
            CertificateInvalid: self._count_nothing,
            HandshakeFailed: self._count_failed,
        }
        self.lines: Mapping[type, Callable[[Any], None]] = {
            CertificateLoaded: self._log_loaded,
            CertificateNotLoaded: self._log_not_loaded,
            CertificateInvalid: self._log_invalid,
            HandshakeFailed: self._log_failed,
        }

    def _count_loaded(self, event: CertificateLoaded) -> None:
        metrics = self._metrics
        for result in ("ok", "failed"):  # 0 from the first certificate on, so that the first failure is an increase
            metrics.child(rows.CERTIFICATE_LOADS, event.port, result)
        metrics.count(rows.CERTIFICATE_LOADS, event.port, "ok")
        metrics.child(rows.CERTIFICATE_START, event.port).set(event.valid_from)
        metrics.child(rows.CERTIFICATE_EXPIRY, event.port).set(event.valid_until)

    def _log_loaded(self, event: CertificateLoaded) -> None:
        until = datetime.fromtimestamp(event.valid_until, UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._log.info(f"port {event.port} serves TLS with {event.source}, valid until {until}", port=event.port)

    def _count_not_loaded(self, event: CertificateNotLoaded) -> None:
        self._metrics.count(rows.CERTIFICATE_LOADS, event.port, "failed")

    def _log_not_loaded(self, event: CertificateNotLoaded) -> None:
        self._log.error(f"certificate not replaced, the old one stays: {shortened(event.why)}", port=event.port)

    def _count_nothing(self, event: CertificateInvalid) -> None:
        """The dates are gauges."""

    def _log_invalid(self, event: CertificateInvalid) -> None:
        self._log.error(shortened(event.why), port=event.port)

    def _count_failed(self, event: HandshakeFailed) -> None:
        self._metrics.count(rows.HANDSHAKE_FAILURES, event.port, event.reason)

    def _log_failed(self, event: HandshakeFailed) -> None:
        if event.reason == "closed":  # load balancers check a port by opening a connection
            return
        due = self._log.failed(("handshake", event.port, event.reason))
        if due:
            detail = f" ({shortened(event.detail)})" if event.detail else ""
            client = f", client {event.client}" if event.client else ""
            text = f"connection to port {event.port} failed: {REASONS[event.reason]}{detail}{client}{due.times}"
            self._log.warning(text, port=event.port, reason=event.reason)
