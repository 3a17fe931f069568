"""Certificate authorities in memory, which sign certificates with any fault."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.kube.authn.certificates import CaBundle

NOW: Final = 1_790_000_000.0
CLIENTS: Final = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVERS: Final = (ExtendedKeyUsageOID.SERVER_AUTH,)
HOUR: Final = 3600.0


def name_of(common_names: Sequence[str], organisations: Sequence[str] = ()) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in organisations),
            *(x509.NameAttribute(NameOID.COMMON_NAME, each) for each in common_names),
        ]
    )


def usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, sign_certificates, False, False, False)


class Issuer:
    """An authority: `pem` and `bundle` are its certificate. `signer`: the authority above it."""

    def __init__(
        self,
        name: str = "ca",
        *,
        begins: float = NOW - HOUR,
        ends: float = NOW + HOUR,
        basics: bool = True,
        authority: bool = True,
        may_sign: bool | None = True,
        rsa_bits: int = 0,
        signer: Issuer | None = None,
    ) -> None:
        self.name = name_of([name])
        self.key: Any = (
            rsa.generate_private_key(65537, rsa_bits) if rsa_bits else ec.generate_private_key(ec.SECP256R1())
        )
        above = signer or self
        builder = self.unsigned(self.name, above.name, self.key, begins, ends)
        if basics:
            builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
        if may_sign is not None:
            builder = builder.add_extension(usage(sign_certificates=may_sign), critical=True)
        certificate = builder.sign(above.key, hashes.SHA256())
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.der = certificate.public_bytes(serialization.Encoding.DER)

    @property
    def bundle(self) -> CaBundle:
        return CaBundle(self.pem)

    def client(
        self,
        *common_names: str,
        groups: Sequence[str] = (),
        begins: float = NOW - HOUR,
        ends: float = NOW + HOUR,
        purposes: Sequence[x509.ObjectIdentifier] | None = CLIENTS,
        critical: str = "",
    ) -> bytes:
        """The certificate of a client, DER. `critical`: an extension of this OID that nobody knows."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self.unsigned(name_of(common_names, groups), self.name, key, begins, ends)
        if purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if critical:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(critical), b"\x05\x00")
            builder = builder.add_extension(unknown, critical=True)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    @staticmethod
    def unsigned(
        subject: x509.Name, issuer: x509.Name, key: Any, begins: float, ends: float
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.fromtimestamp(begins, UTC))
            .not_valid_after(datetime.fromtimestamp(ends, UTC) + timedelta(0))
        )
