"""The certificates and keys of a control plane: its two authorities, and what they have signed.

The authority of `ca.crt` signs the server and the clients. That of `front-proxy-ca.crt` signs the one client that the
API server is towards an aggregated API, which trusts the user names in that client's headers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_FOR = timedelta(days=1)
SKEW = timedelta(hours=1)  # the clock may be set back while the tests run


_BOTH = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


class KeyPair(NamedTuple):
    """The files of a certificate and its private key, both PEM."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority that writes what it signs into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        now = datetime.now(UTC)
        certificate = (
            _unsigned(self._name, self._name, self._key.public_key(), now)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = folder / f"{name}.crt"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str, addresses: Sequence[str], names: Sequence[str] = ()) -> KeyPair:
        """A certificate for a server at these IP addresses and DNS names."""
        return self._sign(name, _name(name), [ExtendedKeyUsageOID.SERVER_AUTH], _alternatives(addresses, names))

    def peer(self, name: str, addresses: Sequence[str], names: Sequence[str] = ()) -> KeyPair:
        """As `server`, for a program that is a client with the same certificate."""
        return self._sign(name, _name(name), _BOTH, _alternatives(addresses, names))

    def client(self, name: str, user: str, groups: Sequence[str] = (), *, shift: timedelta = timedelta()) -> KeyPair:
        """A certificate for a client that the API server knows as `user` in these groups. It is valid as long as the
        others, and `shift` later."""
        return self._sign(name, _name(user, groups), [ExtendedKeyUsageOID.CLIENT_AUTH], [], shift)

    def _sign(
        self,
        name: str,
        subject: x509.Name,
        purposes: Sequence[x509.ObjectIdentifier],
        alternatives: Sequence[x509.GeneralName],
        shift: timedelta = timedelta(),
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC) + shift
        builder = (
            _unsigned(subject, self._name, key.public_key(), now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        pair = KeyPair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        certificate = builder.sign(self._key, hashes.SHA256())
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        _write_key(pair.key, key)
        return pair


def signing_key(folder: Path, name: str) -> KeyPair:
    """A key pair without a certificate, for ServiceAccount tokens: the public key is in place of the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    pair = KeyPair(folder / f"{name}.pub", folder / f"{name}.key")
    pair.certificate.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    _write_key(pair.key, key)
    return pair


def _alternatives(addresses: Sequence[str], names: Sequence[str]) -> list[x509.GeneralName]:
    return [
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
        *(x509.DNSName(name) for name in names),
    ]


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    # The classic format for elliptic curves, which every program that reads it knows.
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


def _name(common_name: str, organisations: Sequence[str] = ()) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organisations),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + VALID_FOR)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
