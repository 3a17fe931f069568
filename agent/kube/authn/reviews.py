"""TokenReview (authentication.k8s.io/v1) and SubjectAccessReview (authorization.k8s.io/v1) as JSON. Pure.

The API server answers what it knows of a token, and whether a user may do something; the fields are those of
https://kubernetes.io/docs/reference/kubernetes-api/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from agent.kube.authn.identity import TOKEN, UserIdentity, extra_of
from agent.kube.cache import UnreadableAnswer

TOKEN_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105  a path
ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class NonResource(NamedTuple):
    """A path of a server that is no resource, and a verb, as `nonResourceURLs` of a ClusterRole names them."""

    path: str
    verb: str = "get"

    def __str__(self) -> str:
        return f'{self.verb} path "{self.path}"'


class Resource(NamedTuple):
    """A resource of an API group and a verb. `name` and `namespace` are empty for all of them."""

    verb: str
    group: str
    version: str
    resource: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        what = f'{self.verb} resource "{resource}" in API group "{self.group}"'
        return f'{what} in the namespace "{self.namespace}"' if self.namespace else what


Attributes = NonResource | Resource


class AccessAnswer(NamedTuple):
    """Whether the API server allows it, and its reason, which may be empty."""

    allowed: bool
    reason: str


class _UserInfo(Struct):
    username: str = ""
    uid: str = ""
    groups: list[str] | None = None
    extra: dict[str, list[str]] | None = None


class _TokenStatus(Struct):
    authenticated: bool = False
    user: _UserInfo = msgspec.field(default_factory=_UserInfo)
    audiences: list[str] | None = None
    error: str = ""


class _TokenReview(Struct):
    status: _TokenStatus


class _AccessStatus(Struct, rename="camel"):
    allowed: bool
    denied: bool = False
    reason: str = ""
    evaluation_error: str = ""


class _AccessReview(Struct):
    status: _AccessStatus


_TOKEN_REVIEW: Final = msgspec.json.Decoder(_TokenReview)
_ACCESS_REVIEW: Final = msgspec.json.Decoder(_AccessReview)


def token_review(token: str, audiences: Sequence[str]) -> bytes:
    """The request to check a token that must be for one of these audiences; without any, for the API server."""
    spec: dict[str, Any] = {"token": token}
    if audiences:
        spec["audiences"] = list(audiences)
    return _request("authentication.k8s.io/v1", "TokenReview", spec)


def reviewed_identity(answer: bytes, audiences: Sequence[str]) -> UserIdentity | str:
    """The identity of a reviewed token, or why it has none. Raises UnreadableAnswer.

    An API server that returns none of the requested audiences has not compared them, so the token may be meant for
    another server.
    """
    try:
        status = _TOKEN_REVIEW.decode(answer).status
    except msgspec.DecodeError as error:
        raise UnreadableAnswer(f"not a TokenReview: {error}") from error
    if not status.authenticated:
        return status.error or "the API server does not know the token"
    if audiences and not set(audiences) & set(status.audiences or ()):
        return f"the token is not for the audience {' or '.join(audiences)}"
    user = status.user
    if not user.username:
        return "the API server names no user"
    return UserIdentity(user.username, tuple(user.groups or ()), user.uid, extra_of((user.extra or {}).items()), TOKEN)


def access_review(identity: UserIdentity, attributes: Attributes) -> bytes:
    """The request whether an identity may do this."""
    spec: dict[str, Any] = {"user": identity.user, "groups": list(identity.groups)}
    if identity.uid:
        spec["uid"] = identity.uid
    if identity.extra:
        spec["extra"] = {key: list(values) for key, values in identity.extra}
    kind = "nonResourceAttributes" if isinstance(attributes, NonResource) else "resourceAttributes"
    spec[kind] = {name: value for name, value in attributes._asdict().items() if value}
    return _request("authorization.k8s.io/v1", "SubjectAccessReview", spec)


def access_answer(answer: bytes) -> AccessAnswer:
    """Whether it is allowed. Raises UnreadableAnswer."""
    try:
        status = _ACCESS_REVIEW.decode(answer).status
    except msgspec.DecodeError as error:
        raise UnreadableAnswer(f"not a SubjectAccessReview: {error}") from error
    return AccessAnswer(status.allowed and not status.denied, status.reason or status.evaluation_error)


def _request(version: str, kind: str, spec: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode({"apiVersion": version, "kind": kind, "spec": spec})
