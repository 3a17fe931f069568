"""Who sends a request: the methods of Kubernetes API servers, in their order. Pure.

1. A client certificate that chains to the CA of the front proxy, with an allowed common name: the front proxy has
   authenticated the user, whose name and groups are in headers. Without a user name there, the next method counts.
2. A client certificate that chains to the CA of clients: the common name is the user, the organisations are the groups.
3. A bearer token, which a token file or the API server checks.

The first that succeeds decides. Identity headers are read in method 1 only: from others they are worth nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

from agent.kube.authn.certificate_name import CertificateName, CertificateRefused

if TYPE_CHECKING:
    from agent.kube.authn.certificates import CaBundle

FRONT_PROXY: Final = "front_proxy"
CLIENT_CERTIFICATE: Final = "client_certificate"
TOKEN: Final = "token"  # noqa: S105  the name of a method
NO_METHOD: Final = "none"
METHODS: Final = (FRONT_PROXY, CLIENT_CERTIFICATE, TOKEN, NO_METHOD)
MAX_TOKEN_LENGTH: Final = 16_384

Headers = Sequence[tuple[str, str]]
# Keys and values, sorted by key, so that equal identities are equal keys of a cache.
Extra = tuple[tuple[str, tuple[str, ...]], ...]


class UserIdentity(NamedTuple):
    """A user as RBAC knows it; `method` says how it was authenticated."""

    user: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Extra = ()
    method: str = TOKEN


class FrontProxyTrust(NamedTuple):
    """The front proxy: the CA of its certificate, the common names that it may have (empty: any), and its headers. A
    name of a user is the first value of the first of `user_headers` that has one."""

    authorities: CaBundle
    allowed_names: frozenset[str]
    user_headers: tuple[str, ...]
    group_headers: tuple[str, ...] = ()
    extra_prefixes: tuple[str, ...] = ()
    uid_headers: tuple[str, ...] = ()


class Trust(NamedTuple):
    """The authorities of trusted certificates; None: no certificate is trusted."""

    front_proxy: FrontProxyTrust | None = None
    clients: CaBundle | None = None

    @property
    def pem(self) -> bytes:
        """All authorities, whose clients a TLS port has to let in; which of them signed is then verified here."""
        front_proxy = self.front_proxy.authorities.pem if self.front_proxy is not None else b""
        return front_proxy + (self.clients.pem if self.clients is not None else b"")


class RequestFacts(NamedTuple):
    """What a request shows of its sender: the client certificate of its connection (DER), and its headers in order."""

    certificate: bytes | None
    headers: Headers


class NeedsTokenReview(NamedTuple):
    """The identity depends on a bearer token."""

    token: str

    def __repr__(self) -> str:
        return "NeedsTokenReview(...)"  # no token in a trace


class Anonymous(NamedTuple):
    """The request has no credentials."""


class CannotCheck(Exception):
    """Credentials cannot be checked now, which is neither a yes nor a no; the message says why, without a secret."""


class CredentialsRefused(NamedTuple):
    """What the request shows proves nothing; `reason` is a sentence without a secret."""

    method: str
    reason: str


def identify(
    facts: RequestFacts, trust: Trust, now: float
) -> UserIdentity | NeedsTokenReview | Anonymous | CredentialsRefused:
    """Who sends a request, at `now` (seconds since 1970)."""
    refused: CredentialsRefused | None = None
    if facts.certificate is not None:
        found = _by_certificate(facts.certificate, facts.headers, trust, now)
        if isinstance(found, UserIdentity):
            return found
        refused = found
    token = bearer_token(facts.headers)
    if isinstance(token, str):
        return NeedsTokenReview(token)
    return refused or token


def _by_certificate(
    certificate: bytes, headers: Headers, trust: Trust, now: float
) -> UserIdentity | CredentialsRefused:
    proxy, reason = trust.front_proxy, "no authority of client certificates is configured"
    if proxy is not None:
        try:
            name = proxy.authorities.verify(certificate, now)
        except CertificateRefused as error:
            reason = str(error)
        else:
            if not proxy.allowed_names or name.common_name in proxy.allowed_names:
                identity = header_identity(headers, proxy)
                if identity is not None:
                    return identity
                reason = "the front proxy names no user"
            else:
                reason = "the common name of the front proxy's certificate is not allowed"
    if trust.clients is not None:
        try:
            return _certificate_identity(trust.clients.verify(certificate, now))
        except CertificateRefused as error:
            # A certificate of the front proxy's CA is no client's, and the first reason says what is wrong with it.
            reason = reason if proxy is not None and "not signed by" in str(error) else str(error)
    return CredentialsRefused(CLIENT_CERTIFICATE, reason)


def _certificate_identity(name: CertificateName) -> UserIdentity:
    if not name.common_name:
        raise CertificateRefused("the client certificate has no common name, which would be the user")
    return UserIdentity(name.common_name, name.organisations, method=CLIENT_CERTIFICATE)


def header_identity(headers: Headers, proxy: FrontProxyTrust) -> UserIdentity | None:
    """The user that the front proxy names; None where it names none. The caller has verified the front proxy."""
    user = _first(headers, proxy.user_headers)
    if not user:
        return None
    groups = tuple(value for name in proxy.group_headers for value in _values(headers, name) if value)
    extra: dict[str, list[str]] = {}
    for prefix in proxy.extra_prefixes:
        for name, value in headers:
            if name.lower().startswith(prefix.lower()):
                key = unquote(name[len(prefix) :].lower())
                extra.setdefault(key, []).append(value)
    return UserIdentity(user, groups, _first(headers, proxy.uid_headers), extra_of(extra.items()), FRONT_PROXY)


def extra_of(items: Iterable[tuple[str, Sequence[str]]]) -> Extra:
    """Extra attributes as part of an identity."""
    return tuple(sorted((key, tuple(values)) for key, values in items))


def bearer_token(headers: Headers) -> str | Anonymous | CredentialsRefused:
    """The token of the Authorization header (RFC 6750); Anonymous without that header."""
    values = _values(headers, "authorization")
    if not values:
        return Anonymous()
    if len(values) > 1:
        return CredentialsRefused(TOKEN, "there are several Authorization headers; send one")
    scheme, _, token = values[0].strip().partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer":
        return CredentialsRefused(TOKEN, "the Authorization header is not of the scheme Bearer")
    if not token or len(token) > MAX_TOKEN_LENGTH or not all("!" <= character <= "~" for character in token):
        return CredentialsRefused(TOKEN, "the Authorization header has no token that is one word of ASCII characters")
    return token


def _values(headers: Headers, wanted: str) -> list[str]:
    wanted = wanted.lower()
    return [value for name, value in headers if name.lower() == wanted]


def _first(headers: Headers, names: Sequence[str]) -> str:
    return next((value for name in names for value in _values(headers, name)[:1] if value), "")
