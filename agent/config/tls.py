"""`tls` of a section with a port: the certificate that the port serves, and whether clients need one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.config.options import option
from agent.config.values import Boolean, FilePath, OneOf

TLS_VERSIONS: Final = ("TLSv1.2", "TLSv1.3")


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """TLS of a port. Without a certificate the port speaks plaintext. The content of the files may change at any
    time, their paths need a restart."""

    cert_file: str = option(
        FilePath(), "the port's certificate (PEM), its own first, then those that signed it", "", unset="none",
        live=False,
    )  # fmt: skip
    key_file: str = option(FilePath(), "the key of the certificate (PEM, not encrypted)", "", unset="none", live=False)
    self_signed: bool = option(
        Boolean(),
        "serve a certificate that the agent signs itself, another one at each start, which clients cannot verify",
        default=False,
        live=False,
    )
    client_ca_file: str = option(
        FilePath(), "CA certificates (PEM) that sign the certificates of clients", "", unset="none", live=False
    )
    client_certificate: str = option(
        OneOf(("required", "optional")),
        "with `clientCaFile`: whether a client without a certificate is refused",
        "required",
        live=False,
    )
    min_version: str = option(OneOf(TLS_VERSIONS), "the oldest version of TLS that is accepted", "TLSv1.2", live=False)

    @property
    def enabled(self) -> bool:
        """Whether the port serves TLS."""
        return bool(self.cert_file) or self.self_signed
