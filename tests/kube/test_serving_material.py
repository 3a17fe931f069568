"""The agent's own serving CA: what is made, what is kept, and when it is replaced."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from agent.kube.serving_material import (
    MAX_AUTHORITIES,
    ServingMaterial,
    material_of,
    renewed,
    secret_data,
)
from agent.serve.tls.authority import server_names

NOW = datetime(2026, 9, 1, tzinfo=UTC)
NAMES = ("agent.llm.svc", "agent.llm.svc.cluster.local")


def after(material: ServingMaterial | None, days: float, names: tuple[str, ...] = NAMES) -> ServingMaterial | None:
    return renewed(material, names, (NOW + timedelta(days=days)).timestamp())


def made() -> ServingMaterial:
    found = after(None, 0)
    assert found is not None
    return found


def verifies(bundle: bytes, certificate: bytes, name: str, days: float) -> bool:
    """Whether a client that trusts the bundle accepts the certificate of a server with this name."""
    policy = PolicyBuilder().store(Store(x509.load_pem_x509_certificates(bundle))).time(NOW + timedelta(days=days))
    try:
        policy.build_server_verifier(x509.DNSName(name)).verify(x509.load_pem_x509_certificate(certificate), [])
    except x509.verification.VerificationError:
        return False
    return True


def test_the_first_certificate_is_verified_by_the_bundle_for_its_names_only() -> None:
    material = made()
    assert all(verifies(material.bundle, material.server.certificate, name, 0) for name in NAMES)
    assert not verifies(material.bundle, material.server.certificate, "other.llm.svc", 0)


def test_a_secret_holds_the_material() -> None:
    material = made()
    assert material_of(secret_data(material)) == material


@pytest.mark.parametrize("key", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
@pytest.mark.parametrize("value", [None, "%%%", "bm90IGEgY2VydGlmaWNhdGU="])
def test_a_secret_with_a_part_that_is_missing_or_no_certificate_holds_none(key: str, value: str | None) -> None:
    data = secret_data(made())
    if value is None:
        del data[key]
    else:
        data[key] = value
    assert (material_of(data) is None) is (value != "bm90IGEgY2VydGlmaWNhdGU=" or key.endswith(".crt"))


@pytest.mark.parametrize(("days", "changes"), [(0, False), (44, False), (46, True), (89, True), (200, True)])
def test_the_server_s_certificate_is_replaced_long_before_it_expires_by_the_same_authority(
    days: float, *, changes: bool
) -> None:
    material = made()
    following = after(material, days)
    assert (following is not None) is changes
    if following is not None:
        assert following.authority == material.authority
        assert verifies(material.bundle, following.server.certificate, NAMES[0], days)


def test_other_names_need_another_certificate() -> None:
    following = after(made(), 1, ("other.llm.svc",))
    assert following is not None
    assert server_names(following.server.certificate) == ("other.llm.svc",)


def test_the_authority_is_replaced_half_a_year_before_its_end_and_the_old_one_stays_trusted() -> None:
    material = made()
    following = after(material, 551)
    assert following is not None
    assert following.authority != material.authority
    assert verifies(following.bundle, following.server.certificate, NAMES[0], 551)
    renewed_before = after(material, 549)
    assert renewed_before is not None
    assert renewed_before.authority == material.authority
    assert verifies(following.bundle, renewed_before.server.certificate, NAMES[0], 551)


def test_a_bundle_forgets_authorities_that_have_expired_and_stays_bounded() -> None:
    material = made()
    for days in (551, 1102, 1653, 2204, 2755):
        following = after(material, days)
        assert following is not None
        material = following
        wall = NOW + timedelta(days=days)
        authorities = x509.load_pem_x509_certificates(material.bundle)
        assert len(authorities) <= MAX_AUTHORITIES
        assert all(each.not_valid_after_utc > wall for each in authorities)
    assert len(authorities) == 2
