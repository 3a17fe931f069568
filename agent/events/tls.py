"""TLS of the agent's ports: certificates, and connections that failed before their first request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

# Why a connection fails before its first request, with the remedy.
REASONS: Final[Mapping[str, str]] = {
    "plaintext": "the client does not use TLS on a TLS port: use https, or TLS in the client's cluster",
    "tls": "the client uses TLS on a plaintext port: connect without TLS, or configure tls for this port",
    "version": "the client and this port have no TLS version or cipher in common: upgrade it, or lower minVersion",
    "no_client_certificate": "the client sent no certificate, and clientCertificate is required",
    "client_certificate": "the certificate of the client is not accepted",
    "not_trusted": "the client does not accept the certificate of this port: give it the CA that signed it",
    "timeout": "the client did not complete the handshake in time",
    "too_many": "too many handshakes were in progress, and this was the oldest",
    "closed": "the client left during the handshake",
    "protocol": "the client broke the TLS protocol",
}


class CertificateLoaded(NamedTuple):
    """A port serves this certificate for new connections. The times are seconds since 1970; `source` says where it
    comes from."""

    port: str
    source: str
    valid_from: float
    valid_until: float


class CertificateNotLoaded(NamedTuple):
    """Changed files were refused, and the port keeps what it had; `why` has the file and the remedy."""

    port: str
    why: str


class CertificateInvalid(NamedTuple):
    """The certificate of a port is expired or not valid yet, so that clients that verify it cannot connect."""

    port: str
    why: str


class HandshakeFailed(NamedTuple):
    """A connection to a port failed before its first request. `reason`: a key of `REASONS`; `client`: an IP address."""

    port: str
    reason: str
    detail: str
    client: str
