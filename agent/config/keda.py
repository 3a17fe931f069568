"""`keda`: the gRPC port on which KEDA reads the agent as an external scaler."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.addresses import Address
from agent.config.options import option, section
from agent.config.tls import TlsConfig


@dataclass(frozen=True, slots=True)
class KedaConfig:
    """The external scaler of KEDA. Without `address` there is none."""

    address: str = option(
        Address(any_port=True),
        "where KEDA's triggers `external` and `external-push` find the agent (`scalerAddress`)",
        "",
        unset="none: no external scaler",
        live=False,
    )
    tls: TlsConfig = section(TlsConfig, "TLS of the port.")

    @property
    def enabled(self) -> bool:
        """Whether KEDA may call the agent."""
        return bool(self.address)
