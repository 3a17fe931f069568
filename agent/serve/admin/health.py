"""`/healthz` and `/readyz`.

`/healthz` returns 200 while the event loop runs. `/readyz` returns 200 once the agent has scraped every endpoint of
every pool, successfully or not, and 503 with the reasons until then. A pool that was ready stays ready: new or failed
endpoints do not take the agent out of service, because the proxy needs its answers most at that time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from aiohttp import web

from agent.serve.http.responses import json_response
from agent.serve.http.server import HttpRoute
from agent.serve.state.schema import LivenessJson, ReadinessJson
from agent.state.health import Health
from agent.state.snapshot import Snapshot


def unscraped(snapshot: Snapshot) -> int:
    """The number of endpoints of which no scrape has ended yet, successfully or not."""
    return sum(
        view.health is Health.UNKNOWN and view.page_at is None and view.failures == 0 for view in snapshot.endpoints
    )


class HealthPages:
    """The two pages. `snapshots` returns those of all pools, `not_ready` further reasons why the agent is not ready."""

    def __init__(self, snapshots: Callable[[], Sequence[Snapshot]], not_ready: Callable[[], list[str]]) -> None:
        self._snapshots = snapshots
        self._not_ready = not_ready
        self._scraped: set[str] = set()  # pools of which every endpoint was scraped once

    def keep(self, pools: Collection[str]) -> None:
        """Forget every other pool."""
        self._scraped &= set(pools)

    def routes(self) -> list[HttpRoute]:
        """Both routes; they are answered however many responses are in progress."""
        return [
            HttpRoute("/healthz", self._liveness, always_answered=True),
            HttpRoute("/readyz", self._readiness, always_answered=True),
        ]

    async def _liveness(self, request: web.Request) -> web.Response:
        return json_response(LivenessJson("ok"))

    async def _readiness(self, request: web.Request) -> web.Response:
        reasons = [*self._not_ready(), *self._pools_not_ready()]
        return json_response(ReadinessJson(not reasons, reasons), 503 if reasons else 200)

    def _pools_not_ready(self) -> list[str]:
        reasons = []
        for snapshot in self._snapshots():
            if snapshot.pool in self._scraped:
                continue
            left = unscraped(snapshot)
            if left:
                total = len(snapshot.endpoints)
                reasons.append(f"pool {snapshot.pool}: {left} of {total} endpoints are not scraped yet")
            else:
                self._scraped.add(snapshot.pool)
        return reasons
