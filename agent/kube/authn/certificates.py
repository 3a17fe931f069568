"""Certificates of clients, verified against a bundle of certificate authorities. Pure: the time is an argument.

What Go's crypto/x509 requires of a client's certificate, and so what Kubernetes API servers require: each certificate
of the chain is valid at that time, each issuer is a CA that may sign certificates, and no certificate limits its use to
others than clients. A subject alternative name is not required: these certificates name users. RSA keys under 2,048
bits and SHA-1 signatures are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from agent.kube.authn.certificate_name import BadBundle, CertificateName, CertificateRefused

MAX_BUNDLE_BYTES: Final = 1 << 20
MAX_CHAIN_DEPTH: Final = 4  # intermediate authorities between a client and its root
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# What the library raises for bytes that are no valid certificate.
_MALFORMED: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_FOR_CLIENTS: Final = frozenset({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})


class CaBundle:
    """The certificate authorities of a PEM text. Raises BadBundle. `pem` is the text without what is beside them, and
    bundles are equal where it is."""

    def __init__(self, pem: bytes) -> None:
        if len(pem) > MAX_BUNDLE_BYTES:
            raise BadBundle(f"the bundle of certificates is over {MAX_BUNDLE_BYTES} bytes")
        blocks: Sequence[bytes] = _PEM.findall(pem)
        if not blocks:
            raise BadBundle("there is no certificate in PEM format")
        self._authorities = [_authority(number, block) for number, block in enumerate(blocks, 1)]
        self._store = Store(self._authorities)
        self.pem = b"\n".join(blocks) + b"\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CaBundle) and self.pem == other.pem

    def __hash__(self) -> int:
        return hash(self.pem)

    def __len__(self) -> int:
        return len(self._authorities)

    def verify(self, certificate: bytes, now: float, intermediates: Sequence[bytes] = ()) -> CertificateName:
        """The subject of a client's certificate in DER that one of the authorities has signed, valid at `now` (seconds
        since 1970). Raises CertificateRefused."""
        leaf = _read(certificate)
        others = [_read(each) for each in intermediates[:MAX_CHAIN_DEPTH]]
        at = datetime.fromtimestamp(now, UTC)
        if at < leaf.not_valid_before_utc:
            raise CertificateRefused(f"the client certificate is not valid before {leaf.not_valid_before_utc:{_TIME}}")
        if at > leaf.not_valid_after_utc:
            raise CertificateRefused(f"the client certificate expired at {leaf.not_valid_after_utc:{_TIME}}")
        verifier = (
            PolicyBuilder()
            .store(self._store)
            .time(at)
            .max_chain_depth(MAX_CHAIN_DEPTH)
            .extension_policies(ca_policy=_CA_POLICY, ee_policy=_CLIENT_POLICY)
            .build_client_verifier()
        )
        try:
            verifier.verify(leaf, others)
        except VerificationError as error:
            raise CertificateRefused(_reason(leaf, error)) from error
        except _MALFORMED as error:
            raise CertificateRefused(f"the client certificate is malformed: {error}") from error
        return _name_of(leaf)


def _authority(number: int, block: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(block)
    except _MALFORMED as error:
        raise BadBundle(f"certificate {number} of the bundle is malformed: {error}") from error


def _read(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(certificate)
    except _MALFORMED as error:
        raise CertificateRefused("the client certificate is malformed") from error


def _name_of(leaf: x509.Certificate) -> CertificateName:
    """Of several common names the last counts, as in Go."""
    try:
        names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        organisations = leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    except _MALFORMED as error:
        raise CertificateRefused("the subject of the client certificate is malformed") from error
    texts = [each.value if isinstance(each.value, str) else "" for each in names]
    groups = [each.value for each in organisations if isinstance(each.value, str)]
    return CertificateName(texts[-1] if texts else "", tuple(groups))


def _check_purpose(policy: Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    """A certificate without this extension is for any purpose."""
    if usage is not None and not _FOR_CLIENTS & set(usage):
        raise ValueError("not for clients")


def _check_signing(policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the issuer may not sign certificates")


def _check_authority(policy: Policy, certificate: x509.Certificate, basics: x509.BasicConstraints) -> None:
    if not basics.ca:
        raise ValueError("the issuer is no certificate authority")


_CLIENT_POLICY: Final = ExtensionPolicy.permit_all().may_be_present(
    x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _check_purpose
)
_CA_POLICY: Final = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _check_authority)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _check_signing)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _check_purpose)
)


def _reason(leaf: x509.Certificate, error: VerificationError) -> str:
    """Words for the failures that an operator can correct; the library's message for the others."""
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    except _MALFORMED:
        return "the extensions of the client certificate are malformed"
    if usage is not None and not _FOR_CLIENTS & set(usage):
        return "the client certificate is not for clients: its extended key usage lacks clientAuth"
    text = str(error)
    if "no interior errors" in text or "signature does not match" in text:  # no authority of this name, or of this key
        return "the client certificate is not signed by a trusted authority"
    if "not valid at validation time" in text:
        return "the authority that signed the client certificate has expired, or is not valid yet"
    return f"the client certificate is not trusted: {text.partition(' (encountered')[0][:200]}"
