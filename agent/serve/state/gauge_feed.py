"""Gauge sets for all readers: `/metrics`, `/v1/gauges` and every exporter are given the same object.

Ages and the prefill backlog change with time, so a set is right for one instant only and is never kept for later
readers. It is shared by concurrent readers: one set is made at a time, and all readers that arrive meanwhile get the
next one. A reader therefore gets a set that is as new as its request, and any number of readers cost one set at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agent.events import Hook, ignore
from agent.events.process import TaskFailed
from agent.flow.report import FlowReport
from agent.scaling.autoscalers import AutoscalerReport
from agent.scaling.demand_gauges import DemandReport
from agent.scaling.gauges import gauge_set
from agent.serve.state.moment import Moment
from agent.state.devices import ExporterView
from agent.state.snapshot import Snapshot
from exporters.exporter import Exporter
from exporters.gauge import GaugeSet


class DatedGauges(NamedTuple):
    """A gauge set and its instant on all clocks; `moment.now` is `gauges.at`."""

    gauges: GaugeSet
    moment: Moment


class GaugeFeed:
    """Makes gauge sets from the newest snapshots, in a thread, and publishes each to the exporters.

    A set is made when it is read. An exporter that sends by itself needs a periodic job that calls `latest`.
    """

    def __init__(
        self,
        moment: Callable[[], Moment],
        snapshots: Callable[[float], Sequence[Snapshot]],
        devices: Callable[[], Sequence[ExporterView]],
        exporters: Sequence[Exporter] = (),
        hook: Hook = ignore,
        unknown_peers: Callable[[], Sequence[str]] = tuple,
        flows: Callable[[float], Sequence[FlowReport]] = lambda _: (),
        demands: Callable[[], Sequence[DemandReport]] = tuple,
        scalers: Callable[[], Sequence[AutoscalerReport]] = tuple,
    ) -> None:
        """`snapshots` gives those of all pools at a time, `devices` the accelerator exporters, `unknown_peers` the
        replicas whose part of a sum is unknown, `flows` the reports of flow control at a time,
        `demands` those of demand, `scalers` the HPAs of the pools."""
        self._demands = demands
        self._scalers = scalers
        self._flows = flows
        self._unknown_peers = unknown_peers
        self._hook = hook
        self._moment = moment
        self._snapshots = snapshots
        self._devices = devices
        self._exporters = tuple(exporters)
        self._next: asyncio.Task[DatedGauges] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def latest(self) -> DatedGauges:
        """The set of all pools, made no earlier than this call. A caller that is cancelled does not stop the others."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._make())
        return await asyncio.shield(self._next)

    async def _make(self) -> DatedGauges:
        async with self._one_at_a_time:
            self._next = None  # readers from here on get the following set
            moment = self._moment()
            snapshots, devices = self._snapshots(moment.now), self._devices()
            flows = self._flows(moment.now)
            gauges = await asyncio.to_thread(
                gauge_set,
                snapshots,
                moment.now,
                devices,
                self._unknown_peers(),
                flows,
                self._demands(),
                self._scalers(),
            )
            for exporter in self._exporters:
                try:
                    exporter.publish(gauges)
                except Exception as error:  # noqa: BLE001  the defect of one exporter must not fail the readers
                    self._hook(TaskFailed(f"exporter/{exporter.name}", f"publish: {error!r}", 0.0))
        return DatedGauges(gauges, moment)
