"""`admin`: the HTTP port for operators, Prometheus and gateways."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.addresses import Address
from agent.config.options import option, section
from agent.config.tls import TlsConfig
from agent.config.values import Number, Size


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """The admin port."""

    address: str = option(
        Address(any_port=True), "serves /metrics, /v1/..., /healthz and /readyz", "127.0.0.1:9090", live=False
    )
    max_watchers: int = option(Number(0, 10_000, whole=True), "concurrent readers of /v1/state/watch", 64, live=False)
    max_state_bytes: int = option(
        Size(1024, 1 << 30), "a larger /v1/state, or event of /v1/state/watch, is refused", 64 << 20, live=False
    )
    tls: TlsConfig = section(TlsConfig, "TLS of the port.")
