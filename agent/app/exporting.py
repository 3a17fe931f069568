"""The exporters as a component: each runs as a task for as long as the agent does."""

from __future__ import annotations

from collections.abc import Sequence

from agent.app.tasks import Task, Tasks
from agent.config.config import Config
from exporters.exporter import Exporter


class Exporting:
    """Runs exporters; gauge sets are published to them by `agent.serve.state.gauge_feed`."""

    name = "exporters"

    def __init__(self, exporters: Sequence[Exporter], tasks: Tasks) -> None:
        self._exporters = tuple(exporters)
        self._tasks = tasks
        self._running: list[Task] = []

    async def start(self) -> None:
        """Start every exporter."""
        self._running = [self._tasks.run(f"exporter/{each.name}", each.run) for each in self._exporters]

    async def apply(self, config: Config) -> None:
        """Nothing: exporters have no options."""

    def readiness(self) -> list[str]:
        """Nothing of its own: an exporter that fails is a failed task, which `/readyz` names until it has restarted."""
        return []

    async def stop(self, grace: float) -> None:
        """End every exporter."""
        for task in self._running:
            task.cancel()
        self._running = []
