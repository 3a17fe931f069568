"""Why a handshake failed: from what OpenSSL reports to a key of `agent.events.tls.REASONS`."""

from __future__ import annotations

import ssl
from typing import Final, NamedTuple

# The first bytes of every TLS connection: a handshake record of version 3.x.
TLS_HANDSHAKE: Final = b"\x16\x03"

_PLAINTEXT: Final = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL"})
_VERSION: Final = frozenset(
    {
        "NO_PROTOCOLS_AVAILABLE",
        "NO_SHARED_CIPHER",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "VERSION_TOO_LOW",
    }
)


class Failure(NamedTuple):
    """`reason` is a key of `agent.events.tls.REASONS`; `detail` is empty, or what OpenSSL adds to it."""

    reason: str
    detail: str = ""


def failure(error: ssl.SSLError, first: bytes) -> Failure:
    """Why a handshake failed; `first` are the first bytes that the client sent."""
    reason = error.reason or ""
    if first and not TLS_HANDSHAKE.startswith(first[:2]) and not first.startswith(TLS_HANDSHAKE):
        return Failure("plaintext")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failure("client_certificate", error.verify_message)
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Failure("no_client_certificate")
    if reason in _PLAINTEXT:
        return Failure("plaintext")
    if reason in _VERSION:
        return Failure("version", _words(reason))
    if "ALERT" in reason:
        return Failure("not_trusted", _words(reason))
    return Failure("protocol", _words(reason) or str(error))


def _words(reason: str) -> str:
    """`TLSV1_ALERT_UNKNOWN_CA` -> `tlsv1 alert unknown ca`."""
    return reason.lower().replace("_", " ")
