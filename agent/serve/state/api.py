"""The shared state endpoint: `GET /v1/state`, `/v1/state/watch`, `/v1/flow`, `/v1/scaling`, `/v1/gauges`,
`/v1/accelerators` and their schema.

A gateway reads `/v1/state` once or follows `/v1/state/watch`. Both contain the same, and enough to make the picker's
load-only choice without a request to the picker. A document is built from immutable snapshots in a thread, so that a
fleet of a thousand endpoints does not block the event loop; only the snapshots are taken on it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Final

from aiohttp import web

from agent.clock import Clock
from agent.events import Hook
from agent.events.process import WatcherDropped
from agent.flow.report import FlowReport
from agent.scaling.autoscalers import AutoscalerReport
from agent.scaling.demand_gauges import DemandReport
from agent.scaling.gauges import gauge_set
from agent.serve.http.responses import HttpError, json_bytes
from agent.serve.http.server import HttpRoute, HttpStream
from agent.serve.state import documents, flow_documents, scaling_documents
from agent.serve.state.gauge_feed import GaugeFeed
from agent.serve.state.openapi import compact
from agent.serve.state.watch import Feed, FlowSource, PublishedState, StateSource, WatchLimits, event, parse_id
from agent.state.devices import ExporterView
from agent.state.replicas import ReplicasView
from agent.state.snapshot import Snapshot
from exporters.exporter import Exporter

RETRY_SECONDS: Final = 5
EVENT_STREAM: Final = "text/event-stream"
_STREAM_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def check_pool(pool: str | None, pools: Sequence[str]) -> None:
    """`HttpError` for the name of a pool that does not exist; None, which is no name, passes."""
    if pool is not None and pool not in pools:
        message = f"there is no pool {pool[:64]!r}; the pools are: {', '.join(pools)}"
        raise HttpError(404, "no_such_pool", message, param="pool")


class StateApi:
    """The routes over one `Feed`. `epoch` identifies one start of the agent; empty: a random one."""

    def __init__(
        self,
        clock: Clock,
        hook: Hook,
        limits: WatchLimits | None = None,
        epoch: str = "",
        gauge_exporters: Sequence[Exporter] = (),
    ) -> None:
        self.feed = Feed(clock, epoch or secrets.token_hex(8), limits or WatchLimits())
        self.exporters: Callable[[], Sequence[ExporterView]] = tuple  # the state of the accelerator exporters
        self.gauge_feed = GaugeFeed(
            self.feed.moment,
            self.feed.snapshots,
            self._devices,
            gauge_exporters,
            hook,
            self._unknown_peers,
            self._flow_reports,
            self._demand_reports,
            self._scaler_reports,
        )
        self._replicas: Callable[[], ReplicasView | None] = lambda: None
        self.demands: Callable[[], Sequence[DemandReport]] = tuple  # the demand of each pool
        self.scalers: Callable[[], Sequence[AutoscalerReport]] = tuple  # the HPAs of each pool
        self._hook = hook

    def set_replicas(self, view: Callable[[], ReplicasView | None]) -> None:
        """`view` returns this replica and its peers, None where there are none."""
        self._replicas = view

    def set_flows(self, reports: FlowSource) -> None:
        """`reports` returns the reports of the pools' flow control."""
        self.feed.flow_reports = reports

    def _unknown_peers(self) -> Sequence[str]:
        view = self._replicas()
        return () if view is None else view.unknown

    def _demand_reports(self) -> Sequence[DemandReport]:
        return self.demands()

    def _scaler_reports(self) -> Sequence[AutoscalerReport]:
        return self.scalers()

    def _flow_reports(self, now: float) -> Sequence[FlowReport]:
        return self.feed.flow_reports(now)

    def _devices(self) -> Sequence[ExporterView]:
        return self.exporters()

    def set_sources(self, sources: Sequence[StateSource]) -> None:
        """Replace the pools."""
        self.feed.set_sources(sources)

    def routes(self) -> list[HttpRoute]:
        """The routes of this API."""
        return [
            HttpRoute("/v1/state", self.state, ("pool",)),
            HttpRoute("/v1/state/watch", self.watch, ("since",), streamed=True),
            HttpRoute("/v1/gauges", self.gauges, ("pool", "name")),
            HttpRoute("/v1/flow", self.flow, ("pool",)),
            HttpRoute("/v1/scaling", self.scaling, ("pool",)),
            HttpRoute("/v1/accelerators", self.accelerators, ()),
            HttpRoute("/v1/replicas", self.replicas, ()),
            HttpRoute("/v1/openapi.json", self.openapi),
        ]

    async def state(self, request: web.Request) -> web.Response:
        """The whole state, or that of one pool with `?pool=`."""
        moment = self.feed.moment()
        snapshots = self._snapshots(request, moment.now)
        flows = self.feed.flows(moment.now, request.query.get("pool"))
        body = await self._encoded(PublishedState(self.feed.version, snapshots, moment, flows))
        self._check_size(len(body), one_pool="pool" in request.query)
        return json_bytes(body)

    async def gauges(self, request: web.Request) -> web.Response:
        """Every gauge with its value or the reason why it is withheld; `?pool=` and `?name=` select."""
        pool, name = request.query.get("pool"), request.query.get("name", "")
        check_pool(pool, self.feed.pools())
        if name and name not in documents.GAUGE_NAMES:
            near = get_close_matches(name[:128], documents.GAUGE_NAMES, 1, 0.7)
            hint = f"did you mean {near[0]!r}?" if near else "/v1/gauges lists all gauges"
            raise HttpError(404, "no_such_gauge", f"there is no gauge {name[:128]!r}; {hint}", param="name")
        if pool is None:
            dated = await self.gauge_feed.latest()
            return json_bytes(await asyncio.to_thread(lambda: documents.encode(documents.gauges(*dated, name))))
        moment = self.feed.moment()
        snapshots, unknown_peers = self.feed.snapshots(moment.now, pool), self._unknown_peers()
        flows = self.feed.flow_reports(moment.now, pool)
        demands = [each for each in self.demands() if each.pool == pool]
        scalers = [each for each in self.scalers() if each.pool == pool]

        def encode() -> bytes:
            gauges = gauge_set(snapshots, moment.now, (), unknown_peers, flows, demands, scalers)
            return documents.encode(documents.gauges(gauges, moment, name))

        return json_bytes(await asyncio.to_thread(encode))

    async def flow(self, request: web.Request) -> web.Response:
        """Flow control of every pool, or of one with `?pool=`: who waits, for what, and what would be refused now."""
        pool, moment = request.query.get("pool"), self.feed.moment()
        check_pool(pool, self.feed.pools())
        reports = self.feed.flow_reports(moment.now, pool, inputs=True)
        return json_bytes(await asyncio.to_thread(lambda: documents.encode(flow_documents.flow(reports, moment))))

    async def scaling(self, request: web.Request) -> web.Response:
        """The demand of every pool, or of one with `?pool=`: the number, its inputs, and the last hour."""
        pool, moment = request.query.get("pool"), self.feed.moment()
        check_pool(pool, self.feed.pools())
        reports = [each for each in self.demands() if pool in {None, each.pool}]
        return json_bytes(await asyncio.to_thread(lambda: documents.encode(scaling_documents.scaling(reports, moment))))

    async def accelerators(self, request: web.Request) -> web.Response:
        """Every accelerator exporter, and which endpoint its devices belong to."""
        moment, views = self.feed.moment(), self.exporters()
        return json_bytes(await asyncio.to_thread(lambda: documents.encode(documents.exporters(views, moment))))

    async def replicas(self, request: web.Request) -> web.Response:
        """What this replica of the agent is, and what is known of its peers."""
        return json_bytes(documents.encode(documents.replicas(self._replicas(), self.feed.moment())))

    async def openapi(self, request: web.Request) -> web.Response:
        """The OpenAPI document."""
        return json_bytes(compact())

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """The state and then its changes, as server-sent events, for as long as the reader keeps up."""
        header, since = request.headers.get("Last-Event-ID"), request.query.get("since")
        last_seen = parse_id(header or since or "")
        if last_seen is None and since and not header:
            message = f"since is {since[:64]!r}: write the id of an event, <epoch>.<version>"
            raise HttpError(400, "bad_since", message, param="since")
        if self.feed.closed:
            raise HttpError(503, "stopping", "the agent is stopping")
        if self.feed.watchers >= self.feed.limits.watchers:
            self._hook(WatcherDropped("too_many"))
            message = f"there are {self.feed.limits.watchers} watchers already; read /v1/state instead, or retry later"
            raise HttpError(503, "too_many_watchers", message, headers={"Retry-After": str(RETRY_SECONDS)})
        if request.method == "HEAD":
            return web.Response(content_type=EVENT_STREAM, headers=_STREAM_HEADERS)
        changed = self.feed.join()
        try:
            return await self._follow(request, changed, last_seen)
        finally:
            self.feed.leave(changed)

    # -- within ----------------------------------------------------------------------------------------------------

    async def _follow(
        self, request: web.Request, changed: asyncio.Event, last_seen: tuple[str, int] | None
    ) -> web.StreamResponse:
        feed = self.feed
        published = feed.publish()
        first = b""
        if last_seen is not None and last_seen[0] == feed.epoch and feed.covers(last_seen[1]):
            position = last_seen[1]
        else:
            position = published.version
            first = event("state", feed.epoch, position, await self._encoded(published))
            self._check_size(len(first))
        stream = HttpStream(request, EVENT_STREAM, _STREAM_HEADERS, feed.limits.drain_seconds)
        try:
            await stream.start()
            await stream.send(first + b"retry: %d\n\n" % (RETRY_SECONDS * 1000))
            await self._send_changes(stream, changed, position)
        except ConnectionResetError:
            pass  # the reader has left, which is not an error
        return stream.response

    async def _send_changes(self, stream: HttpStream, changed: asyncio.Event, position: int) -> None:
        feed = self.feed
        idle = True  # a heartbeat comes first, so that a reader that resumes from an old event learns the time
        while not feed.closed:
            changed.clear()
            missed = feed.history.after(position)
            if missed is None:
                raise stream.dropped("too_large" if position < feed.oversized else "slow")
            for each in missed:
                await stream.send(each.payload)
                position = each.version
            if missed:
                continue
            if idle:
                await stream.send(self._heartbeat())
            try:
                async with asyncio.timeout(feed.limits.heartbeat_seconds):
                    await changed.wait()
                idle = False
            except TimeoutError:
                idle = True

    def _heartbeat(self) -> bytes:
        """A comment: nothing has changed until now."""
        header = documents.header(self.feed.epoch, self.feed.published_version, self.feed.moment())
        return b": %s\n\n" % documents.encode(header)

    def _snapshots(self, request: web.Request, now: float) -> list[Snapshot]:
        """The snapshots that the request's `?pool=` selects."""
        pool = request.query.get("pool")
        check_pool(pool, self.feed.pools())
        return self.feed.snapshots(now, pool)

    async def _encoded(self, published: PublishedState) -> bytes:
        def encode() -> bytes:
            version, snapshots, moment, flows = published
            return documents.encode(documents.state(self.feed.epoch, version, snapshots, moment, flows))

        return await asyncio.to_thread(encode)

    def _check_size(self, size: int, *, one_pool: bool = False) -> None:
        """`HttpError`, counted, for a document over the limit; the message has what to request or configure instead."""
        limit = self.feed.limits.message_bytes
        if size <= limit:
            return
        self._hook(WatcherDropped("too_large"))
        instead = "" if one_pool or len(self.feed.pools()) < 2 else "request one pool with /v1/state?pool=, or "
        message = f"the state has {size} bytes, over the limit of {limit}; {instead}raise admin.maxStateBytes"
        raise HttpError(503, "state_too_large", message)
