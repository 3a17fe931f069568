"""The exporters run from the agent's start to its stop."""

from __future__ import annotations

import asyncio

from agent.app.exporting import Exporting
from agent.app.tasks import Tasks
from agent.events import ignore
from agent.instruments.hook import Instruments
from agent.serve.admin.server import AdminServer
from exporters import EXPORTERS
from exporters.gauge import GaugeSet
from tests.fakes.clock import ManualClock
from tests.waiting import eventually


class CountingExporter:
    """Counts its starts and ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = 0
        self.ended = 0

    def publish(self, gauges: GaugeSet) -> None:
        pass

    async def run(self) -> None:
        self.started += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += 1


async def test_every_exporter_runs_from_start_to_stop() -> None:
    tasks = Tasks(ManualClock(), ignore)
    exporters = [CountingExporter("a"), CountingExporter("b")]
    component = Exporting(exporters, tasks)
    await component.start()
    await eventually(lambda: [each.started for each in exporters] == [1, 1])
    assert component.readiness() == []
    await component.stop(0)
    await eventually(lambda: [each.ended for each in exporters] == [1, 1])
    await tasks.stop()
    assert [each.started for each in exporters] == [1, 1]


def test_the_admin_server_has_every_exporter_of_the_registry() -> None:
    server = AdminServer("127.0.0.1:0", clock=ManualClock(), instruments=Instruments(ManualClock()))
    assert {each.name for each in server.exporters} == EXPORTERS.keys()
