"""A client's certificate names a user only if an authority of the bundle vouches for it at that time."""

from __future__ import annotations

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from agent.kube.authn.certificate_name import BadBundle, CertificateName, CertificateRefused
from agent.kube.authn.certificates import MAX_BUNDLE_BYTES, CaBundle
from tests.kube.authn.issuer import CLIENTS, HOUR, NOW, SERVERS, Issuer

CA = Issuer()
GOOD = CA.client("alice", groups=["dev", "ops"])


def refusal(certificate: bytes, bundle: CaBundle | None = None, now: float = NOW) -> str:
    """Why the certificate is refused."""
    with pytest.raises(CertificateRefused) as refused:
        (bundle or CA.bundle).verify(certificate, now)
    return str(refused.value)


def test_the_subject_of_a_certificate_of_the_authority_is_the_user_and_the_groups():
    assert CA.bundle.verify(GOOD, NOW) == CertificateName("alice", ("dev", "ops"))


def test_each_authority_of_a_bundle_counts():
    bundle = CaBundle(b"# rotated\n" + Issuer("old").pem + CA.pem + Issuer("ca").pem)
    assert len(bundle) == 3
    assert bundle.verify(GOOD, NOW).common_name == "alice"


def test_an_rsa_authority_is_accepted_and_one_with_a_short_key_is_not():
    strong, weak = Issuer(rsa_bits=2048), Issuer(rsa_bits=1024)
    assert strong.bundle.verify(strong.client("bob"), NOW).common_name == "bob"
    assert "weak" in refusal(weak.client("bob"), weak.bundle)


@pytest.mark.parametrize("purposes", [None, CLIENTS, (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,), SERVERS + CLIENTS])
def test_a_certificate_that_does_not_exclude_clients_is_accepted(purposes):
    assert CA.bundle.verify(CA.client("bob", purposes=purposes), NOW).common_name == "bob"


def test_a_certificate_for_servers_is_refused():
    assert "lacks clientAuth" in refusal(CA.client("bob", purposes=SERVERS))


def test_the_last_of_several_common_names_counts():
    assert CA.bundle.verify(CA.client("first", "last"), NOW).common_name == "last"


def test_a_certificate_without_a_common_name_has_an_empty_one():
    assert CA.bundle.verify(CA.client(groups=["dev"]), NOW) == CertificateName("", ("dev",))


def test_times_of_the_certificate_are_compared_with_now():
    assert refusal(GOOD, now=NOW + HOUR + 1).startswith("the client certificate expired at ")
    assert refusal(GOOD, now=NOW - HOUR - 1).startswith("the client certificate is not valid before ")
    assert CA.bundle.verify(GOOD, NOW + HOUR - 1)
    assert CA.bundle.verify(GOOD, NOW - HOUR + 1)


def test_an_authority_that_has_expired_vouches_for_nobody():
    old = Issuer(ends=NOW - 1)
    assert "has expired" in refusal(old.client("bob"), old.bundle)


def test_another_authority_is_not_the_right_one_even_under_its_name():
    assert refusal(Issuer("ca").client("alice")) == "the client certificate is not signed by a trusted authority"
    assert refusal(Issuer("other").client("alice")) == "the client certificate is not signed by a trusted authority"


@pytest.mark.parametrize(
    "issuer",
    [Issuer(basics=False, may_sign=None), Issuer(authority=False), Issuer(may_sign=False)],
    ids=["without basic constraints", "not an authority", "may not sign certificates"],
)
def test_a_certificate_that_is_no_authority_vouches_for_nobody(issuer):
    assert "not trusted" in refusal(issuer.client("bob"), issuer.bundle)


def test_a_client_cannot_sign_for_another_client():
    """Its own certificate as an intermediate makes no chain."""
    middle = Issuer("middle", authority=False, may_sign=None, signer=CA)
    with pytest.raises(CertificateRefused):
        CA.bundle.verify(middle.client("alice"), NOW, [middle.der])


def test_an_intermediate_authority_that_the_client_presents_completes_the_chain():
    middle = Issuer("middle", signer=CA)
    assert CA.bundle.verify(middle.client("alice"), NOW, [middle.der]).common_name == "alice"
    assert "not signed by" in refusal(middle.client("alice"))


def test_a_critical_extension_that_nobody_knows_is_refused():
    assert "critical" in refusal(CA.client("bob", critical="1.2.3.4"))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(st.data())
def test_a_changed_byte_never_makes_another_user(data):
    """A certificate with a changed byte is refused, or its subject is the one that was signed."""
    place = data.draw(st.integers(0, len(GOOD) - 1))
    changed = bytearray(GOOD)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        name = CA.bundle.verify(bytes(changed), NOW)
    except CertificateRefused:
        return
    assert name == CertificateName("alice", ("dev", "ops"))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_are_refused(data):
    assert refusal(data) == "the client certificate is malformed"


@given(st.floats(0, 4e9))
def test_a_certificate_is_accepted_exactly_within_its_times(now):
    try:
        accepted = bool(CA.bundle.verify(GOOD, now))
    except CertificateRefused:
        accepted = False
    assert accepted == (NOW - HOUR <= now <= NOW + HOUR)


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        (b"", "no certificate in PEM format"),
        (CA.der, "no certificate in PEM format"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1 of the bundle is malformed"),
        (CA.pem + CA.pem.replace(b"M", b"?", 5), "certificate 2 of the bundle is malformed"),
        (b" " * (MAX_BUNDLE_BYTES + 1), "is over"),
    ],
)
def test_a_bad_bundle_is_refused_with_the_reason(pem, message):
    with pytest.raises(BadBundle, match=message):
        CaBundle(pem)


def test_bundles_of_equal_text_are_equal():
    assert CA.bundle == CaBundle(CA.pem)
    assert CA.bundle != Issuer().bundle
    assert len({CA.bundle, CaBundle(CA.pem)}) == 1
