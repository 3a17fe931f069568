"""`/metrics`: the page for Prometheus, built in a thread."""

from __future__ import annotations

import asyncio

from aiohttp import web

from agent.instruments.hook import Instruments
from agent.serve.http.server import HttpRoute
from agent.serve.state.gauge_feed import GaugeFeed
from exporters.prometheus import PrometheusExporter


class MetricsPage:
    """The gauges of the state and the counters of the agent."""

    def __init__(self, gauges: GaugeFeed, exporter: PrometheusExporter, instruments: Instruments) -> None:
        self._gauges = gauges
        self._exporter = exporter
        self._instruments = instruments

    def routes(self) -> list[HttpRoute]:
        """The route. Its query is ignored: Prometheus may be configured to send one."""
        return [HttpRoute("/metrics", self._page)]

    async def _page(self, request: web.Request) -> web.Response:
        await self._gauges.latest()  # publishes to the exporter
        accept = request.headers.get("Accept", "")
        body, content_type = await asyncio.to_thread(self._exporter.page, self._instruments.registry, accept)
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})
