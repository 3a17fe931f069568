"""`/healthz` and `/readyz`.

`/healthz` returns 200 while the event loop runs. `/readyz` returns 200 while every component of the agent is ready, and
503 with the reasons otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from agent.serve.http.responses import json_response
from agent.serve.http.server import HttpRoute
from agent.serve.state.schema import LivenessJson, ReadinessJson


class HealthPages:
    """The two pages. `not_ready` returns the reasons why the agent is not ready, none when it is."""

    def __init__(self, not_ready: Callable[[], list[str]]) -> None:
        self._not_ready = not_ready

    def routes(self) -> list[HttpRoute]:
        """Both routes. They are answered to everybody, as a kubelet has no token, and however many responses are in
        progress."""
        return [
            HttpRoute("/healthz", self._liveness, always_answered=True, public=True),
            HttpRoute("/readyz", self._readiness, always_answered=True, public=True),
        ]

    async def _liveness(self, request: web.Request) -> web.Response:
        return json_response(LivenessJson("ok"))

    async def _readiness(self, request: web.Request) -> web.Response:
        reasons = self._not_ready()
        return json_response(ReadinessJson(not reasons, reasons), 503 if reasons else 200)
