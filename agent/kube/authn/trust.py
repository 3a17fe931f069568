"""Whom an aggregated API trusts: the ConfigMap with the API server's front proxy and client CA. Pure.

The keys are those of kube-system/extension-apiserver-authentication; lists are JSON in text. A key that is malformed
leaves the part of the trust that it belongs to as it was, and is a problem: an API server that is being changed must
not end all access, nor may a typing error widen it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from agent.kube.authn.certificate_name import BadBundle
from agent.kube.authn.certificates import CaBundle
from agent.kube.authn.identity import FrontProxyTrust, Trust

NAMESPACE: Final = "kube-system"
NAME: Final = "extension-apiserver-authentication"
CLIENT_CA: Final = "client-ca-file"
_PREFIX: Final = "requestheader-"
FRONT_PROXY_CA: Final = f"{_PREFIX}client-ca-file"
_LISTS: Final = msgspec.json.Decoder(tuple[str, ...])


class TrustUpdate(NamedTuple):
    """The trust from now on, and what is wrong with the ConfigMap, one sentence each."""

    trust: Trust
    problems: tuple[str, ...]


class _MalformedKey(ValueError):
    """A key of the ConfigMap cannot be read."""


def updated(last: Trust, data: Mapping[str, str]) -> TrustUpdate:
    """The trust that the ConfigMap's data declare, where `last` was in effect."""
    problems = []
    front_proxy, clients = last.front_proxy, last.clients
    try:
        front_proxy = _front_proxy(data)
    except _MalformedKey as error:
        problems.append(str(error))
    try:
        clients = _bundle(data, CLIENT_CA)
    except _MalformedKey as error:
        problems.append(str(error))
    return TrustUpdate(Trust(front_proxy, clients), tuple(problems))


def _front_proxy(data: Mapping[str, str]) -> FrontProxyTrust | None:
    authorities = _bundle(data, FRONT_PROXY_CA)
    if authorities is None:
        return None
    user_headers = _list(data, "username-headers")
    if not user_headers:
        raise _MalformedKey(f"{_PREFIX}username-headers names no header, so the front proxy could name no user")
    return FrontProxyTrust(
        authorities,
        frozenset(_list(data, "allowed-names")),
        user_headers,
        _list(data, "group-headers"),
        # An empty prefix would make an attribute of every header.
        tuple(prefix for prefix in _list(data, "extra-headers-prefix") if prefix),
        _list(data, "uid-headers"),
    )


def _bundle(data: Mapping[str, str], key: str) -> CaBundle | None:
    pem = data.get(key, "").strip()
    try:
        return CaBundle(pem.encode()) if pem else None
    except BadBundle as error:
        raise _MalformedKey(f"{key}: {error}") from error


def _list(data: Mapping[str, str], name: str) -> tuple[str, ...]:
    text = data.get(f"{_PREFIX}{name}", "")
    try:
        return _LISTS.decode(text) if text.strip() else ()
    except msgspec.DecodeError as error:
        raise _MalformedKey(f"{_PREFIX}{name} is not a list of texts in JSON: {error}") from error
