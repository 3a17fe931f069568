"""`admin`: the HTTP port for operators, Prometheus and gateways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.config.addresses import Address
from agent.config.options import option, section
from agent.config.tls import TlsConfig
from agent.config.values import Boolean, FilePath, Number, OneOf, Size, WordList

NO_AUTH: Final = "none"
KUBERNETES: Final = "kubernetes"
TOKEN_FILE: Final = "tokenFile"  # noqa: S105  the name of a mode


@dataclass(frozen=True, slots=True)
class AdminAuthConfig:
    """Who may read the admin port; `/healthz` and `/readyz` are answered to everybody."""

    mode: str = option(
        OneOf((NO_AUTH, KUBERNETES, TOKEN_FILE)),
        "who may read: everybody; whom the API server knows and allows (TokenReview, SubjectAccessReview); whose token "
        "is in a file",
        NO_AUTH,
        live=False,
    )
    token_file: str = option(
        FilePath(), 'lines `token,user,uid,"group1,group2"`, as for kube-apiserver', "", unset="none", live=False
    )
    audiences: tuple[str, ...] = option(
        WordList(), "tokens must be for one of these audiences", (), unset="that of the API server", live=False
    )


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """The admin port."""

    address: str = option(
        Address(any_port=True), "serves /metrics, /v1/..., /healthz and /readyz", "127.0.0.1:9090", live=False
    )
    insecure: bool = option(
        Boolean(),
        "allow an address other than loopback without TLS or without authentication",
        default=False,
        live=False,
    )
    max_watchers: int = option(Number(0, 10_000, whole=True), "concurrent readers of /v1/state/watch", 64, live=False)
    max_state_bytes: int = option(
        Size(1024, 1 << 30), "a larger /v1/state, or event of /v1/state/watch, is refused", 64 << 20, live=False
    )
    auth: AdminAuthConfig = section(AdminAuthConfig, "Who may read the admin port.")
    tls: TlsConfig = section(TlsConfig, "TLS of the port.")
