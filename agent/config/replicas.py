"""`replicas`: several agents that serve the same pools, and report to each other what only one of them knows."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.addresses import Address, AddressList, HostName
from agent.config.options import option
from agent.config.values import Duration, FilePath, Name


@dataclass(frozen=True, slots=True)
class ReplicasConfig:
    """How the replicas of the agent find and reach each other. Without `address` there are none."""

    address: str = option(
        Address(any_port=True),
        "where this agent serves its peers; off loopback `tokenFile` or TLS is required",
        "",
        unset="none: this agent is the only one",
        live=False,
    )
    peers: tuple[str, ...] = option(
        AddressList(), "the addresses of all replicas; this agent's own may be among them", (), unset="none", live=False
    )
    service: str = option(
        Address(),
        "instead of `peers`: a name that resolves to the addresses of all replicas, such as a headless Service; "
        "resolved every `reload.interval`",
        "",
        unset="none",
        live=False,
    )
    name: str = option(Name(), "this replica's name in logs and at its peers", "", unset="the host name", live=False)
    token_file: str = option(
        FilePath(), "a secret that all replicas have; it is proven and never sent", "", unset="none", live=False
    )
    ca_file: str = option(FilePath(), "TLS: the CA certificates of all replicas (PEM)", "", unset="no TLS", live=False)
    cert_file: str = option(FilePath(), "TLS: this replica's certificate (PEM)", "", unset="none", live=False)
    key_file: str = option(FilePath(), "TLS: the key of the certificate (PEM)", "", unset="none", live=False)
    server_name: str = option(
        HostName(), "TLS: the name in the peers' certificates", "", unset="the host of a peer's address", live=False
    )
    stale_after: float = option(
        Duration(1.5, 60), "a peer without a report for so long is silent: its part is unknown", 3.0, live=False
    )

    @property
    def enabled(self) -> bool:
        """Whether there may be other replicas."""
        return bool(self.address)
