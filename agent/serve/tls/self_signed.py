"""A certificate that the agent signs itself: for clients that need TLS and do not verify, as gateways connect to
endpoint pickers. The only importer of `cryptography` for this, when it is configured."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from agent.serve.tls.files import CertificatePair, TlsProblem

LIFETIME: Final = timedelta(days=90)
RENEW_BEFORE_SECONDS: Final = 30 * 86400.0  # before its end
BACKDATED: Final = timedelta(hours=1)  # for clients whose clock is behind


def self_signed(hosts: Sequence[str], wall: float) -> CertificatePair:
    """A new certificate for these host names and IP addresses, and its key (ECDSA, P-256), from `wall` (seconds since
    1970). Raises TlsProblem without the package `cryptography`."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError as error:
        raise TlsProblem(
            "selfSigned needs the package cryptography: pip install 'inference-gateway-agent[tls]', "
            "or set certFile and keyFile"
        ) from error

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "inference-gateway-agent")])
    now = datetime.fromtimestamp(wall, UTC)
    alternatives: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            alternatives.append(x509.DNSName(host))
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    return CertificatePair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
