"""The shared state endpoint: `GET /v1/state`, `/v1/state/watch`, `/v1/gauges` and their OpenAPI document.

A gateway reads `/v1/state` once or follows `/v1/state/watch`; both say the same, and enough to make the picker's
load-only choice without asking the picker. Documents are built from immutable snapshots in a thread, so that a fleet
of a thousand endpoints does not hold up the event loop; only taking the snapshot happens on it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from difflib import get_close_matches
from typing import Any, Final

import orjson
from aiohttp import web

from agent.clock import Clock
from agent.events import Hook
from agent.events.process import WatcherDropped
from agent.requests.rejections import error_body
from agent.scaling.gauges import gauge_set
from agent.serve.gauge_feed import GaugeFeed
from agent.serve.state import accelerators as device_json
from agent.serve.state import documents as state_json
from agent.serve.state.openapi import document as openapi_document
from agent.serve.state.watch import Feed, StateSource, Told, WatchLimits, event, parse_id
from agent.state.devices import ExporterView
from exporters.exporter import Exporter

PIECE_BYTES: Final = 1 << 16  # of a message that are written before the reader has to have taken the ones before
RETRY_SECONDS: Final = 5
STREAM_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer that no cache keeps."""
    return json_bytes(orjson.dumps(content), status, headers)


def json_bytes(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """The same, of what is JSON already."""
    return web.Response(
        body=body,
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def error(
    status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    """An error in the shape that OpenAI's clients know."""
    return json_bytes(error_body(status, message, param=param, code=code), status, headers)


class StateApi:
    """The handlers over one `Feed`. `epoch` tells one start of the agent from another; it is drawn anew each time."""

    def __init__(
        self,
        clock: Clock,
        hook: Hook,
        limits: WatchLimits | None = None,
        epoch: str = "",
        gauge_exporters: Sequence[Exporter] = (),
    ) -> None:
        self.feed = Feed(clock, epoch or secrets.token_hex(8), limits or WatchLimits())
        self._hook = hook
        self.exporters: Callable[[], Sequence[ExporterView]] = tuple  # what is known of accelerator exporters
        self.gauge_feed = GaugeFeed(self.feed.moment, self.feed.snapshots, lambda: self.exporters(), gauge_exporters)  # noqa: PLW0108 - replaced later

    def set_sources(self, sources: Sequence[StateSource]) -> None:
        """The pools from now on."""
        self.feed.set_sources(sources)

    def handlers(self) -> dict[str, Handler]:
        """Path -> handler; each answers GET and HEAD."""
        return {
            "/v1/state": self.state,
            "/v1/state/watch": self.watch,
            "/v1/gauges": self.gauges,
            "/v1/accelerators": self.accelerators,
            "/v1/openapi.json": self.openapi,
        }

    async def state(self, request: web.Request) -> web.Response:
        """The whole state, or one pool's with `?pool=`."""
        refused = self._refuse_query(request, "pool")
        if refused is not None:
            return refused
        moment = self.feed.moment()
        snapshots = self.feed.snapshots(moment.now, request.query.get("pool"))
        body = await self._encoded(Told(self.feed.version, snapshots, moment))
        return self._too_large(len(body), "pool" in request.query) or json_bytes(body)

    async def gauges(self, request: web.Request) -> web.Response:
        """Every gauge with its value or why it is withheld; `?pool=` and `?name=` choose among them."""
        refused = self._refuse_query(request, "pool", "name")
        if refused is not None:
            return refused
        name = request.query.get("name", "")
        if name and name not in state_json.GAUGE_NAMES:
            near = get_close_matches(name[:128], state_json.GAUGE_NAMES, 1, 0.7)
            which = f"did you mean {near[0]!r}?" if near else "/v1/gauges lists all that there are"
            return error(404, f"there is no gauge {name[:128]!r}; {which}", "no_such_gauge", "name")
        if "pool" not in request.query:
            dated = await self.gauge_feed.latest()
            return json_bytes(await asyncio.to_thread(lambda: orjson.dumps(state_json.gauges(*dated, name))))
        moment = self.feed.moment()
        snapshots = self.feed.snapshots(moment.now, request.query["pool"])

        def encode() -> bytes:
            return orjson.dumps(state_json.gauges(gauge_set(snapshots, moment.now), moment, name))

        return json_bytes(await asyncio.to_thread(encode))

    async def accelerators(self, request: web.Request) -> web.Response:
        """Every accelerator exporter, and whose its devices are."""
        refused = self._refuse_query(request)
        if refused is not None:
            return refused
        moment = self.feed.moment()
        views = self.exporters()
        header = {"as_of": state_json.rfc3339(moment.wall)}
        return json_bytes(
            await asyncio.to_thread(lambda: orjson.dumps(device_json.exporters(views, moment.now, header)))
        )

    async def openapi(self, request: web.Request) -> web.Response:
        """The schema of all of this."""
        return json_response(openapi_document())

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """The state and then its changes, as server-sent events, for as long as the reader keeps up."""
        refused = self._refuse_query(request, "since")
        if refused is not None:
            return refused
        known = request.headers.get("Last-Event-ID") or request.query.get("since") or ""
        seen = parse_id(known)
        if seen is None and not request.headers.get("Last-Event-ID") and known:
            return error(
                400, f"since is {known[:64]!r}: write the id of an event, <epoch>.<version>", "bad_since", "since"
            )
        if self.feed.closed:
            return error(503, "the agent is stopping", "stopping")
        if self.feed.watchers >= self.feed.limits.watchers:
            self._hook(WatcherDropped("too_many"))
            message = f"{self.feed.limits.watchers} readers watch already; read /v1/state instead, or come back later"
            return error(503, message, "too_many_watchers", headers={"Retry-After": str(RETRY_SECONDS)})
        if request.method == "HEAD":
            return web.Response(content_type="text/event-stream", headers=STREAM_HEADERS)
        awake = self.feed.join()
        try:
            return await self._follow(request, awake, seen)
        finally:
            self.feed.leave(awake)

    # -- within ----------------------------------------------------------------------------------------------------

    async def _follow(
        self, request: web.Request, awake: asyncio.Event, seen: tuple[str, int] | None
    ) -> web.StreamResponse:
        feed = self.feed
        told = feed.tell()
        first = b""
        if seen is not None and seen[0] == feed.epoch and feed.covers(seen[1]):
            position = seen[1]
        else:
            position = told.version
            first = event("state", feed.epoch, position, await self._encoded(told))
            refused = self._too_large(len(first))
            if refused is not None:
                return refused
        response = web.StreamResponse(headers=STREAM_HEADERS)
        response.content_type = "text/event-stream"
        stream = _Stream(request, response, feed.limits.drain_seconds)
        try:
            await response.prepare(request)
            await stream.send(first + b"retry: %d\n\n" % (RETRY_SECONDS * 1000))
            await self._send_changes(stream, awake, position)
        except ConnectionResetError:
            return response  # the reader has left, which is its right
        except _Slow as slow:
            self._hook(WatcherDropped(str(slow)))
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _send_changes(self, stream: _Stream, awake: asyncio.Event, position: int) -> None:
        feed = self.feed
        beat = True  # at once, so that who resumes an event of long ago knows what time it is
        while not feed.closed:
            awake.clear()
            missed = feed.history.after(position)
            if missed is None:
                raise _Slow("too_large" if position < feed.oversized else "slow")
            for message in missed:
                await stream.send(message.payload)
                position = message.version
            if missed:
                continue
            if beat:
                await stream.send(self._heartbeat())
            try:
                async with asyncio.timeout(feed.limits.heartbeat_seconds):
                    await awake.wait()
                beat = False
            except TimeoutError:
                beat = True

    def _heartbeat(self) -> bytes:
        """A comment: nothing has changed up to now."""
        now = state_json.header(self.feed.epoch, self.feed.told_version, self.feed.moment())
        return b": %s\n\n" % orjson.dumps(now)

    async def _encoded(self, told: Told) -> bytes:
        def encode() -> bytes:
            return orjson.dumps(state_json.state(self.feed.epoch, told.version, told.snapshots, told.moment))

        return await asyncio.to_thread(encode)

    def _too_large(self, size: int, one_pool: bool = False) -> web.Response | None:  # noqa: FBT001, FBT002
        """A refusal, counted, of a document that is over the limit: with what to ask for or to write instead."""
        limit = self.feed.limits.message_bytes
        if size <= limit:
            return None
        self._hook(WatcherDropped("too_large"))
        instead = "" if one_pool or len(self.feed.pools()) < 2 else "ask for one pool with /v1/state?pool=, or "
        message = f"the state is {size} bytes, over the limit of {limit}; {instead}raise admin.maxStateBytes"
        return error(503, message, "state_too_large")

    def _refuse_query(self, request: web.Request, *known: str) -> web.Response | None:
        """A refusal of a query that asks for what there is not, with what there is."""
        for key in request.query:
            if key not in known:
                return error(
                    400, f"there is no parameter {key[:64]!r} here, only {', '.join(known)}", "unknown_parameter", key
                )
        pool = request.query.get("pool")
        if pool is not None and pool not in self.feed.pools():
            message = f"there is no pool {pool[:64]!r}; the pools are: {', '.join(self.feed.pools())}"
            return error(404, message, "no_such_pool", "pool")
        return None


class _Slow(Exception):
    """The reader did not keep up; the text is the reason, one word."""


class _Stream:
    """Writes to one reader, in pieces, and no faster than it reads."""

    def __init__(self, request: web.Request, response: web.StreamResponse, drain_seconds: float) -> None:
        self._response = response
        self._drain_seconds = drain_seconds

    async def send(self, payload: bytes) -> None:
        """All of the payload; `_Slow` when the reader did not take enough of it in time."""
        try:
            async with asyncio.timeout(self._drain_seconds):
                for start in range(0, len(payload), PIECE_BYTES):
                    await self._response.write(payload[start : start + PIECE_BYTES])
        except TimeoutError:
            raise _Slow("slow") from None
