"""The admin address: metrics, the shared state endpoint, health, the last picks and the runbooks.

GET and HEAD only, and every error is JSON. HEAD answers as GET does, with the same head and no body; for the stream of
changes that is at once.

What is no HTTP at all (a TLS handshake, a line without end) is refused by the HTTP library in a line of plain text, and
writes nothing to the log, which is not a stranger's to fill.

`/healthz` answers 200 while the event loop turns. `/readyz` answers 200 once the agent has seen enough to pick: every
endpoint of every pool was asked at least once, whatever came of it. A pool that was ready stays ready: endpoints that
come later, or die, do not take the agent out of service, because it is then that the proxy needs an honest answer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from agent.clock import Clock
from agent.config.values import split_address
from agent.events import Hook
from agent.events.process import WatcherDropped
from agent.instruments.hook import Instruments
from agent.pick.decision import Pick
from agent.scaling.gauges import age
from agent.serve.admin.runbooks import pages
from agent.serve.state import documents as state_json
from agent.serve.state.api import StateApi, error, json_bytes, json_response
from agent.serve.state.watch import StateSource, WatchLimits
from agent.state.health import Health
from agent.state.snapshot import Snapshot
from exporters import EXPORTERS, make_exporter
from exporters.exporter import Exporter
from exporters.prometheus import PrometheusExporter

PICKS_KEPT: Final = 256
PICKS_SHOWN: Final = 20
ANSWERS_AT_A_TIME: Final = 64  # documents that are made or being read; the stream has its own limit
IDLE_SECONDS: Final = 75.0  # that a connection may be silent between two requests
_ALWAYS: Final = frozenset({"/healthz", "/readyz"})  # what a supervisor asks: small, and not to be refused to it
BODY_BYTES: Final = 1 << 16  # nobody has a reason to send one
_LOG: Final = logging.getLogger("igw.admin")
_HTTP_LOG: Final = logging.getLogger("igw.admin.http")
_HTTP_LOG.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))


class CannotListen(Exception):
    """The address cannot be listened on; the text says which and what to do."""


class AdminServer:
    """Serves what the agent knows. `set_pools` may be called again at any time; `picks` is fed by who picks."""

    def __init__(
        self,
        address: str,
        *,
        clock: Clock,
        instruments: Instruments,
        hook: Hook | None = None,
        limits: WatchLimits | None = None,
        not_ready: Callable[[], list[str]] = list,
        answers: int = ANSWERS_AT_A_TIME,
    ) -> None:
        """`not_ready` gives further reasons why the agent is not ready, none when it is.

        `answers` bounds the documents under way.
        """
        self._prometheus = PrometheusExporter()
        sending = [make_exporter(name) for name in EXPORTERS if name != self._prometheus.name]
        self.exporters: list[Exporter] = [self._prometheus, *sending]
        self.state = StateApi(clock, hook or instruments, limits, gauge_exporters=self.exporters)
        self.picks = RecentPicks(clock)
        self._address = address
        self._clock = clock
        self._instruments = instruments
        self._not_ready = not_ready
        self._hook: Hook = hook or instruments
        self.answering = 0  # documents that are being made or read now
        self._answers = answers
        self._looked_at: set[str] = set()
        self._runner: web.AppRunner | None = None

    def set_pools(self, sources: Sequence[StateSource]) -> None:
        """The pools to serve from now on."""
        self.state.set_sources(sources)
        self._looked_at &= {source.pool for source in sources}

    async def start(self) -> int:
        """Listen; returns the port. `CannotListen` when the address is taken or not ours."""
        host, port = split_address(self._address)
        app = web.Application(middlewares=[self._bounded, _errors_as_json], client_max_size=BODY_BYTES)
        routes = {
            "/": self._index,
            "/metrics": self._metrics,
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/v1/picks": self.picks.answer,
            "/runbooks/": self._runbooks,
            **self.state.handlers(),
        }
        self._paths = sorted(routes)
        routes["/runbooks/{name}"] = self._runbook
        app.add_routes([web.get(path, handler) for path, handler in routes.items()])
        app.on_shutdown.append(self._let_go)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_HTTP_LOG,
            shutdown_timeout=2.0,
            lingering_time=1.0,
            keepalive_timeout=IDLE_SECONDS,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
        except OSError as failed:
            await runner.cleanup()
            raise CannotListen(_why(self._address, failed)) from failed
        self._runner = runner
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Let the watchers go, finish what is being answered, close."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _let_go(self, app: web.Application) -> None:
        self.state.feed.close()

    @web.middleware
    async def _bounded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """So many documents at a time, and none that its reader does not take: each is in memory until it is read."""
        if self.answering >= self._answers and request.path not in _ALWAYS:
            self._hook(WatcherDropped("too_many"))
            message = f"{self._answers} answers are under way already; come back later"
            return error(503, message, "too_many_requests", headers={"Retry-After": "1"})
        counted = request.path != "/v1/state/watch"
        self.answering += counted
        try:
            response = await handler(request)
            if isinstance(response, web.Response):
                await self._send(request, response)
        finally:
            self.answering -= counted
        return response

    async def _send(self, request: web.Request, response: web.Response) -> None:
        """All of the answer, unless its reader leaves, which is its right, or does not take it in time."""
        try:
            async with asyncio.timeout(self.state.feed.limits.drain_seconds):
                await response.prepare(request)
                await response.write_eof()
            response.body = None  # an idle connection keeps its last answer
        except ConnectionResetError:
            return
        except TimeoutError:
            self._hook(WatcherDropped("slow"))
            if request.transport is not None:
                request.transport.abort()

    # -- handlers --------------------------------------------------------------------------------------------------

    async def _index(self, request: web.Request) -> web.Response:
        return json_response({"paths": self._paths})

    async def _metrics(self, request: web.Request) -> web.Response:
        await self.state.gauge_feed.latest()
        accept = request.headers.get("Accept", "")

        def render() -> tuple[bytes, str]:
            return self._prometheus.page(self._instruments.registry, accept)

        body, content_type = await asyncio.to_thread(render)
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    async def _health(self, request: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def _readiness(self, request: web.Request) -> web.Response:
        reasons = [*self._not_ready(), *self._unseen()]
        return json_response({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def _runbooks(self, request: web.Request) -> web.Response:
        return json_response({"runbooks": list(await asyncio.to_thread(pages))})

    async def _runbook(self, request: web.Request) -> web.Response:
        """One page as plain text, which every browser shows."""
        name = request.match_info["name"]
        text = (await asyncio.to_thread(pages)).get(name)
        if text is None:
            return error(404, f"there is no runbook {name[:128]!r}; GET /runbooks/ lists them", "no_such_runbook")
        return web.Response(text=text, content_type="text/plain", headers={"Cache-Control": "no-store"})

    def _unseen(self) -> list[str]:
        """Why pools that were never ready still are not."""
        reasons = []
        for snapshot in self.state.feed.snapshots(self._clock.now()):
            if snapshot.pool in self._looked_at:
                continue
            left = untried(snapshot)
            if left:
                total = len(snapshot.endpoints)
                reasons.append(f"pool {snapshot.pool}: {left} of {total} endpoints were not asked yet")
            else:
                self._looked_at.add(snapshot.pool)
        return reasons


def untried(snapshot: Snapshot) -> int:
    """Endpoints of which no scrape has ended yet, well or badly."""
    return sum(
        view.health is Health.UNKNOWN and view.page_at is None and view.failures == 0 for view in snapshot.endpoints
    )


class RecentPicks:
    """The last `limit` picks with their reasons, for `GET /v1/picks`, newest first; encoded only when somebody asks."""

    def __init__(self, clock: Clock, limit: int = PICKS_KEPT) -> None:
        self._clock = clock
        self._picks: deque[tuple[float, str, Pick]] = deque(maxlen=limit)

    def add(self, pool: str, pick: Pick, now: float) -> None:
        """Remember a pick."""
        self._picks.append((now, pool, pick))

    async def answer(self, request: web.Request) -> web.Response:
        """The newest picks as JSON, as many as `?limit=` says."""
        wanted = request.query.get("limit", str(PICKS_SHOWN))
        if not (wanted.isascii() and wanted.isdigit() and 1 <= int(wanted[:9]) <= PICKS_KEPT):
            message = f"limit is {wanted[:64]!r}: write a number from 1 to {PICKS_KEPT}"
            return error(400, message, "bad_limit", "limit")
        now, wall = self._clock.now(), self._clock.wall()
        newest = list(islice(reversed(self._picks), int(wanted)))

        def encode() -> bytes:
            picks = [_explained(pool, pick, age(at, now), wall) for at, pool, pick in newest]
            return orjson.dumps({"as_of": state_json.rfc3339(wall), "picks": picks})

        return json_bytes(await asyncio.to_thread(encode))


def _explained(pool: str, pick: Pick, old: float, wall: float) -> dict[str, Any]:
    candidates: list[dict[str, Any]] = [
        {
            "address": address,
            "total": pick.totals[place],
            "scores": {name: scores[place] for name, scores in pick.scores.items()},
        }
        for place, address in enumerate(pick.addresses)
    ]
    candidates.sort(key=lambda each: each["total"], reverse=True)
    return {
        "pool": pool,
        "request_id": state_json.printable(pick.request_id),
        "time": state_json.rfc3339(wall - old),
        "age_seconds": old,
        "endpoint": pick.endpoint,
        "decided_by": pick.decided_by,
        "left_warmest": pick.left_warmest,
        "prompt_tokens": pick.prompt_tokens,
        "hit_tokens": pick.hit_tokens,
        "best_hit_tokens": pick.best_hit_tokens,
        "state_version": pick.version,
        "candidates": candidates,
    }


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """No answer of ours is HTML or plain text, not even a refusal."""
    try:
        return await handler(request)
    except web.HTTPException as refused:
        headers = {"Allow": refused.headers["Allow"]} if "Allow" in refused.headers else None
        if refused.status == 404:
            return error(404, f"there is no {request.path[:128]!r} here; GET / lists what there is", "not_found")
        if refused.status == 405:
            message = f"{request.method[:16]} is not offered here, only GET and HEAD"
            return error(405, message, "method_not_allowed", headers=headers)
        return error(refused.status, refused.reason or "refused", "refused", headers=headers)
    except ConnectionResetError:
        raise
    except Exception:  # noqa: BLE001 - one bad answer must stop nothing else; the log has the trace
        _LOG.exception("an answer to %s failed", request.path[:128].encode("unicode_escape").decode())
        return error(500, "the agent failed to answer; its log says why", "internal_error")


def _why(address: str, failed: OSError) -> str:
    if failed.errno == errno.EADDRINUSE:
        return f"{address} is in use by another program: stop that one, or choose another admin address"
    if failed.errno == errno.EADDRNOTAVAIL:
        return f"{address} is no address of this machine: choose another admin address"
    if failed.errno in {errno.EACCES, errno.EPERM}:
        return f"{address} may not be used by this user: choose a port above 1023 as the admin address"
    return f"{address} cannot be listened on: {failed.strerror or failed}"
