"""A certificate authority of the agent's own, and the certificates of servers that it signs (ECDSA, P-256)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.serve.tls.files import CertificatePair, TlsProblem

AUTHORITY_LIFETIME: Final = timedelta(days=730)
SERVER_LIFETIME: Final = timedelta(days=90)
_BACKDATED: Final = timedelta(hours=1)  # for clients whose clock is behind


def new_authority(wall: float) -> CertificatePair:
    """A new authority from `wall` (seconds since 1970)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("inference-gateway-agent serving CA")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _unsigned(name, name, key, wall, AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def signed_server(authority: CertificatePair, names: Sequence[str], wall: float) -> CertificatePair:
    """A certificate for a server with these DNS names. Raises TlsProblem where the authority cannot be read."""
    try:
        issuer = x509.load_pem_x509_certificate(authority.certificate)
        issuer_key = serialization.load_pem_private_key(authority.key, None)
    except (ValueError, TypeError) as error:
        raise TlsProblem(f"the serving CA cannot be read: {error}") from error
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise TlsProblem("the key of the serving CA is not one that the agent made")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _unsigned(_name(names[0][:64]), issuer.subject, key, wall, SERVER_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return _pair(certificate, key)


def server_names(certificate: bytes) -> tuple[str, ...]:
    """The DNS names of a server's certificate (PEM); none where it cannot be read."""
    try:
        found = x509.load_pem_x509_certificate(certificate)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return ()
    return tuple(names.get_values_for_type(x509.DNSName))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, wall: float, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(wall, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + lifetime)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> CertificatePair:
    return CertificatePair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
