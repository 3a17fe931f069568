"""The ConfigMap of the API server declares whose certificates count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kube.authn.identity import FrontProxyTrust, Trust
from agent.kube.authn.trust import updated
from tests.kube.authn.issuer import Issuer

CA, PROXY_CA = Issuer("ca"), Issuer("front-proxy-ca")
DATA = {
    "client-ca-file": CA.pem.decode(),
    "requestheader-client-ca-file": PROXY_CA.pem.decode(),
    "requestheader-allowed-names": '["front-proxy-client"]',
    "requestheader-username-headers": '["X-Remote-User"]',
    "requestheader-group-headers": '["X-Remote-Group"]',
    "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
}
TRUST = Trust(
    FrontProxyTrust(
        PROXY_CA.bundle,
        frozenset({"front-proxy-client"}),
        ("X-Remote-User",),
        ("X-Remote-Group",),
        ("X-Remote-Extra-",),
    ),
    CA.bundle,
)


def without(*keys: str) -> dict[str, str]:
    return {key: value for key, value in DATA.items() if key not in keys}


def test_the_keys_of_the_config_map_are_the_trust():
    assert updated(Trust(), DATA) == (TRUST, ())


def test_an_api_server_without_a_front_proxy_or_client_ca_declares_none():
    assert updated(TRUST, without("requestheader-client-ca-file")) == (Trust(None, CA.bundle), ())
    assert updated(TRUST, without("client-ca-file")) == (Trust(TRUST.front_proxy, None), ())
    assert updated(TRUST, {}) == (Trust(), ())


def test_no_allowed_names_are_any_name():
    for data in (without("requestheader-allowed-names"), DATA | {"requestheader-allowed-names": "[]"}):
        front_proxy = updated(Trust(), data).trust.front_proxy
        assert front_proxy is not None
        assert front_proxy.allowed_names == frozenset()


def test_an_empty_prefix_of_extra_headers_is_ignored():
    front_proxy = updated(Trust(), DATA | {"requestheader-extra-headers-prefix": '["", "X-E-"]'}).trust.front_proxy
    assert front_proxy is not None
    assert front_proxy.extra_prefixes == ("X-E-",)


def test_a_uid_header_of_newer_api_servers_is_read():
    front_proxy = updated(Trust(), DATA | {"requestheader-uid-headers": '["X-Remote-Uid"]'}).trust.front_proxy
    assert front_proxy is not None
    assert front_proxy.uid_headers == ("X-Remote-Uid",)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("requestheader-allowed-names", "front-proxy-client", "is not a list of texts in JSON"),
        ("requestheader-allowed-names", '"front-proxy-client"', "is not a list of texts in JSON"),
        ("requestheader-allowed-names", "[1]", "is not a list of texts in JSON"),
        ("requestheader-username-headers", "[]", "names no header"),
        ("requestheader-group-headers", "[", "is not a list of texts in JSON"),
        ("requestheader-client-ca-file", "no PEM", "requestheader-client-ca-file: there is no certificate"),
        ("client-ca-file", "no PEM", "client-ca-file: there is no certificate in PEM format"),
    ],
)
def test_a_malformed_key_is_named_and_leaves_its_part_of_the_trust(key, value, message):
    trust, problems = updated(TRUST, DATA | {key: value})
    assert trust == TRUST
    (problem,) = problems
    assert key in problem
    assert message in problem
    before = updated(Trust(), DATA | {key: value}).trust
    assert (before.clients if key == "client-ca-file" else before.front_proxy) is None


def test_a_rotated_authority_replaces_the_old_one_beside_a_malformed_key():
    new = Issuer("new")
    trust, problems = updated(TRUST, DATA | {"client-ca-file": new.pem.decode(), "requestheader-allowed-names": "x"})
    assert trust == Trust(TRUST.front_proxy, new.bundle)
    assert len(problems) == 1


@given(st.dictionaries(st.sampled_from(sorted(DATA)), st.text(max_size=40)))
def test_any_text_is_a_trust_or_a_problem_and_never_more_than_is_declared(changed):
    trust, problems = updated(Trust(), DATA | changed)
    bundles = {None, TRUST.clients}
    assert trust.clients in bundles
    assert trust.front_proxy is None or trust.front_proxy.authorities == PROXY_CA.bundle
    assert all(isinstance(problem, str) for problem in problems)
