"""The methods of authentication in their order: front proxy, client certificate, bearer token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kube.authn.identity import (
    CLIENT_CERTIFICATE,
    FRONT_PROXY,
    MAX_TOKEN_LENGTH,
    Anonymous,
    CredentialsRefused,
    FrontProxyTrust,
    NeedsTokenReview,
    RequestFacts,
    Trust,
    UserIdentity,
    identify,
)
from tests.kube.authn.issuer import HOUR, NOW, SERVERS, Issuer

PROXY_CA, CLIENT_CA, OTHER_CA = Issuer("front-proxy-ca"), Issuer("ca"), Issuer("other")
TRUST = Trust(
    FrontProxyTrust(
        PROXY_CA.bundle,
        frozenset({"front-proxy-client"}),
        ("X-Remote-User", "X-Forwarded-User"),
        ("X-Remote-Group",),
        ("X-Remote-Extra-",),
        ("X-Remote-Uid",),
    ),
    CLIENT_CA.bundle,
)
PROXY = PROXY_CA.client("front-proxy-client")
HEADERS = [
    ("x-remote-user", "alice"),
    ("X-Remote-Group", "dev"),
    ("X-Remote-Group", "ops"),
    ("X-Remote-Uid", "7"),
    ("X-Remote-Extra-Acme%2fProject", "p1"),
    ("X-Remote-Extra-acme%2Fproject", "p2"),
    ("Accept", "*/*"),
]
ALICE = UserIdentity("alice", ("dev", "ops"), "7", (("acme/project", ("p1", "p2")),), FRONT_PROXY)
BEARER = ("Authorization", "Bearer abc.def")


def identified(certificate, headers, trust=TRUST):
    return identify(RequestFacts(certificate, headers), trust, NOW)


def test_the_front_proxy_names_the_user_its_groups_its_uid_and_its_extra_attributes():
    assert identified(PROXY, HEADERS) == ALICE


def test_the_front_proxy_counts_before_a_token():
    assert identified(PROXY, [*HEADERS, BEARER]) == ALICE


def test_the_second_user_header_counts_where_the_first_has_no_value():
    found = identified(PROXY, [("X-Remote-User", ""), ("X-Forwarded-User", "bob")])
    assert found == UserIdentity("bob", method=FRONT_PROXY)


def test_any_common_name_is_allowed_where_none_is_listed():
    assert TRUST.front_proxy is not None
    trust = Trust(TRUST.front_proxy._replace(allowed_names=frozenset()))
    assert identified(PROXY_CA.client("anything"), HEADERS, trust) == ALICE


def test_a_client_certificate_names_the_user_and_the_groups():
    found = identified(CLIENT_CA.client("bob", groups=["dev"]), [])
    assert found == UserIdentity("bob", ("dev",), method=CLIENT_CERTIFICATE)


def test_a_client_certificate_without_a_common_name_names_nobody():
    assert identified(CLIENT_CA.client(groups=["dev"]), []) == CredentialsRefused(
        CLIENT_CERTIFICATE, "the client certificate has no common name, which would be the user"
    )


# The list of an attacker: each has the identity headers, and no right to send them.
ATTACKS = {
    "no certificate": None,
    "wrong authority": OTHER_CA.client("front-proxy-client"),
    "wrong authority of the right name": Issuer("front-proxy-ca").client("front-proxy-client"),
    "right authority, wrong name": PROXY_CA.client("somebody"),
    "right authority, no name": PROXY_CA.client(),
    "expired": PROXY_CA.client("front-proxy-client", ends=NOW - 1),
    "not yet valid": PROXY_CA.client("front-proxy-client", begins=NOW + 1),
    "for servers": PROXY_CA.client("front-proxy-client", purposes=SERVERS),
    "malformed": PROXY[:-9],
    "empty": b"",
    "the authority's own": PROXY_CA.der,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_identity_headers_of_anybody_else_are_worth_nothing(attack):
    found = identified(ATTACKS[attack], HEADERS)
    assert isinstance(found, Anonymous if ATTACKS[attack] is None else CredentialsRefused)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_token_is_checked_where_the_certificate_proves_nothing(attack):
    assert identified(ATTACKS[attack], [*HEADERS, BEARER]) == NeedsTokenReview("abc.def")


def test_headers_beside_a_client_certificate_change_nothing():
    certificate = CLIENT_CA.client("bob")
    forged = [*HEADERS, ("X-Remote-Group", "system:masters")]
    assert identified(certificate, forged) == identified(certificate, [])


def test_a_client_that_is_named_like_the_front_proxy_is_a_client():
    found = identified(CLIENT_CA.client("front-proxy-client"), HEADERS)
    assert found == UserIdentity("front-proxy-client", method=CLIENT_CERTIFICATE)


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (PROXY_CA.client("somebody"), "the common name of the front proxy's certificate is not allowed"),
        (OTHER_CA.client("x"), "the client certificate is not signed by a trusted authority"),
        (PROXY, "the front proxy names no user"),
    ],
)
def test_the_reason_of_a_refusal_says_what_is_wrong_with_the_certificate(certificate, reason):
    assert identified(certificate, []) == CredentialsRefused(CLIENT_CERTIFICATE, reason)


def test_where_no_authority_is_configured_no_certificate_counts():
    assert identified(PROXY, HEADERS, Trust()) == CredentialsRefused(
        CLIENT_CERTIFICATE, "no authority of client certificates is configured"
    )
    assert identified(PROXY, [BEARER], Trust()) == NeedsTokenReview("abc.def")


def test_one_authority_for_both_is_the_front_proxy_first():
    """A CA in both bundles, which Kubernetes advises against: headers count for allowed names only."""
    assert TRUST.front_proxy is not None
    trust = Trust(TRUST.front_proxy, PROXY_CA.bundle)
    assert identified(PROXY, HEADERS, trust) == ALICE
    assert identified(PROXY_CA.client("bob"), HEADERS, trust) == UserIdentity("bob", method=CLIENT_CERTIFICATE)


@pytest.mark.parametrize("value", ["Bearer abc.def", "bearer abc.def", "BEARER   abc.def  "])
def test_the_token_of_the_authorization_header_is_found(value):
    assert identified(None, [("AUTHORIZATION", value)]) == NeedsTokenReview("abc.def")


@pytest.mark.parametrize(
    "values",
    [
        ["Basic YTpi"],
        ["Bearer"],
        ["Bearer "],
        [""],
        ["Bearer a b"],
        ["Bearer \u00e4"],
        ["Bearer a\tb"],
        ["Bearer " + "a" * (MAX_TOKEN_LENGTH + 1)],
        ["Bearer a", "Bearer b"],
    ],
)
def test_an_authorization_header_without_one_token_is_refused(values):
    found = identified(None, [("Authorization", value) for value in values])
    assert isinstance(found, CredentialsRefused)
    assert "YTpi" not in found.reason


def test_no_header_is_anonymous():
    assert identified(None, [("Accept", "*/*")]) == Anonymous()


def test_a_tls_port_has_to_let_in_the_clients_of_all_authorities():
    assert Trust().pem == b""
    assert TRUST.pem == PROXY_CA.pem + CLIENT_CA.pem
    assert Trust(clients=CLIENT_CA.bundle).pem == CLIENT_CA.pem


def test_a_token_is_in_no_trace():
    assert "abc.def" not in repr(NeedsTokenReview("abc.def"))


NAMES = st.sampled_from(
    ["X-Remote-User", "x-remote-group", "X-Remote-Extra-scopes", "X-Remote-Uid", "X-Forwarded-User", "Accept", "Host"]
)
TEXTS = st.text(max_size=20)


@given(st.lists(st.tuples(NAMES, TEXTS)), st.sampled_from([*ATTACKS, "a client"]))
def test_no_headers_give_an_identity_without_the_front_proxy(headers, attack):
    certificate = BOB if attack == "a client" else ATTACKS[attack]
    found = identified(certificate, headers)
    if attack == "a client":
        assert found == UserIdentity("bob", method=CLIENT_CERTIFICATE)
    else:
        assert isinstance(found, Anonymous | CredentialsRefused)


BOB = CLIENT_CA.client("bob")


@given(st.lists(st.tuples(NAMES, TEXTS)))
def test_the_front_proxy_gives_an_identity_exactly_when_it_names_a_user(headers):
    found = identified(PROXY, headers)
    users = [next((value for key, value in headers if key.lower() == name), "") for name in USER_HEADERS]
    if any(users):
        assert isinstance(found, UserIdentity)
        assert found.user == next(filter(None, users))
        assert hash(found) == hash(identified(PROXY, headers))
    else:
        assert isinstance(found, CredentialsRefused)


USER_HEADERS = ("x-remote-user", "x-forwarded-user")


def test_times_are_compared_at_each_request():
    facts = RequestFacts(PROXY, HEADERS)
    assert identify(facts, TRUST, NOW) == ALICE
    assert isinstance(identify(facts, TRUST, NOW + HOUR + 1), CredentialsRefused)
