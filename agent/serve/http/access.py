"""Who may read the routes of an HTTP server: the facts of a request, and the refusal of one that may not be answered.

A request is decided before its handler runs. A stream is decided when it begins and lasts until it ends.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from agent.kube.authn.access import FORBIDDEN, UNAUTHENTICATED, UNAVAILABLE, Access
from agent.kube.authn.identity import RequestFacts
from agent.kube.authn.reviews import NonResource
from agent.serve.http.responses import HttpError
from agent.serve.tls.server import peer_certificate

RETRY_SECONDS: Final = 1
_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}


class PathAccess:
    """Refuses requests for paths by the decisions of `access`. HEAD needs the verb of GET."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def __call__(self, request: web.Request, path: str) -> None:
        """Return if the request for this path may be answered. Raises HttpError."""
        decision = await self._access.decide(request_facts(request), NonResource(path))
        if decision.result == UNAUTHENTICATED:
            raise HttpError(401, "unauthenticated", decision.message, headers=_CHALLENGE)
        if decision.result == FORBIDDEN:
            raise HttpError(403, "forbidden", decision.message)
        if decision.result == UNAVAILABLE:
            headers = {"Retry-After": str(RETRY_SECONDS)}
            raise HttpError(503, "cannot_authenticate", decision.message, headers=headers)


def request_facts(request: web.Request) -> RequestFacts:
    """What a request shows of its sender."""
    certificate = peer_certificate(request.transport) if request.transport is not None else None
    return RequestFacts(certificate, list(request.headers.items()))
