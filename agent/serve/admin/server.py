"""The admin address: metrics, the shared state endpoint, health, the last picks and the runbooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.clock import Clock
from agent.events import Hook
from agent.instruments.hook import Instruments
from agent.serve.admin import runbooks
from agent.serve.admin.health import HealthPages
from agent.serve.admin.metrics_page import MetricsPage
from agent.serve.admin.recent_picks import RecentPicks
from agent.serve.http.server import MAX_RESPONSES, Authorize, HttpServer
from agent.serve.state.api import StateApi
from agent.serve.state.watch import StateSource, WatchLimits
from agent.serve.tls.server import ServerTls
from exporters import EXPORTERS, make_exporter
from exporters.exporter import Exporter
from exporters.prometheus import PrometheusExporter


class AdminServer:
    """Serves the agent's state. `set_pools` may be called at any time; the pools add their picks to `picks`."""

    def __init__(
        self,
        address: str,
        *,
        clock: Clock,
        instruments: Instruments,
        hook: Hook | None = None,
        limits: WatchLimits | None = None,
        not_ready: Callable[[], list[str]] = list,
        max_responses: int = MAX_RESPONSES,
        authorize: Authorize | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        """`not_ready` returns the reasons why the agent is not ready; `max_responses` are in progress at a time.
        `authorize` decides about all requests but those for the health pages; None: all are answered."""
        hook = hook or instruments
        prometheus = PrometheusExporter()
        push = [make_exporter(name) for name in EXPORTERS if name != prometheus.name]
        self.exporters: list[Exporter] = [prometheus, *push]
        self.state = StateApi(clock, hook, limits, gauge_exporters=self.exporters)
        feed = self.state.feed
        self.picks = RecentPicks(clock, feed.pools)
        self.routes = [
            *MetricsPage(self.state.gauge_feed, prometheus, instruments).routes(),
            *HealthPages(not_ready).routes(),
            *self.picks.routes(),
            *runbooks.routes(),
            *self.state.routes(),
        ]
        self.http = HttpServer(
            address,
            self.routes,
            hook,
            tls=tls,
            address_name="admin address",
            max_responses=max_responses,
            write_seconds=feed.limits.drain_seconds,
            on_stop=feed.close,
            authorize=authorize,
        )

    def set_pools(self, sources: Sequence[StateSource]) -> None:
        """Replace the pools that are served."""
        self.state.set_sources(sources)

    async def start(self) -> int:
        """Listen; returns the port. `CannotListen` when the address is in use or cannot be used."""
        return await self.http.start()

    async def stop(self) -> None:
        """Disconnect the watchers, finish the responses in progress, close."""
        await self.http.stop()
