"""Who may read the metrics APIs: the right that RBAC has to grant follows from the question that is answered."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from agent.kube.authn.access import FORBIDDEN, UNAUTHENTICATED, UNAVAILABLE, Access
from agent.kube.authn.reviews import NonResource
from agent.serve.http.access import request_facts
from agent.serve.http.responses import HttpError
from agent.serve.metrics_api.paths import ApiRequest, parse_target
from agent.serve.metrics_api.status import REFUSED, RequestRefused

_QUESTION: Final = web.RequestKey("question", tuple)
_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
# What is wrong with a request is for those who may read discovery, which are all users.
_MALFORMED: Final = NonResource("/apis")


def question_of(request: web.Request, groups: frozenset[str]) -> ApiRequest:
    """The question of a request, parsed once. Raises RequestRefused."""
    found: ApiRequest | None = request.get(_QUESTION)
    if found is None:
        found = parse_target(request.raw_path, groups)
        request[_QUESTION] = found
    return found


class ApiAccess:
    """Refuses requests by the decisions of `access`."""

    def __init__(self, access: Access, groups: frozenset[str]) -> None:
        self._access = access
        self._groups = groups

    async def __call__(self, request: web.Request, path: str) -> None:
        """Return if the request may be answered. Raises HttpError."""
        malformed: RequestRefused | None = None
        try:
            attributes = question_of(request, self._groups).attributes
        except RequestRefused as refused:
            attributes, malformed = _MALFORMED, refused
        decision = await self._access.decide(request_facts(request), attributes)
        if decision.result == UNAUTHENTICATED:
            raise HttpError(401, REFUSED, decision.message, headers=_CHALLENGE)
        if decision.result == FORBIDDEN:
            raise HttpError(403, REFUSED, decision.message)
        if decision.result == UNAVAILABLE:
            raise HttpError(503, REFUSED, decision.message)
        if malformed is not None:
            raise HttpError(malformed.code, malformed.cause, str(malformed))
