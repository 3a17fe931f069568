"""Metrics of TLS: the certificates of the agent's ports, and connections that failed before their first request."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Rows

ROWS: Final = Rows()

CERTIFICATE_START: Final = ROWS.add(
    "igw_tls_certificate_start_time_seconds",
    "gauge",
    "seconds since 1970",
    "port",
    "events",
    "When the certificate of a port begins to be valid",
)
CERTIFICATE_EXPIRY: Final = ROWS.add(
    "igw_tls_certificate_expiry_time_seconds",
    "gauge",
    "seconds since 1970",
    "port",
    "events",
    "When the certificate of a port expires",
)
CERTIFICATE_LOADS: Final = ROWS.counter(
    "igw_tls_certificate_loads_total",
    "loads",
    "port result",
    "Certificates of a port that were read from their files or self-signed, by result (ok, failed)",
)
HANDSHAKE_FAILURES: Final = ROWS.counter(
    "igw_tls_handshake_failures_total",
    "connections",
    "port reason",
    "Connections to a port that failed before their first request, by reason",
)
