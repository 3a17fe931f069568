"""The scrape loop and its budget as one component."""

from __future__ import annotations

from collections.abc import Callable

from agent.app.scrape_budget import ScrapeBudget
from agent.clock import Clock
from agent.config.config import Config
from agent.events import Hook
from agent.events.process import TaskFailed
from agent.scrape.loop import RETRY_SECONDS, ScrapeLoop
from agent.state.snapshot import Snapshot


class Scraping:
    """Scrapes the targets that pools and accelerators hand to `loop`.

    `snapshots` returns those of all pools at a time.
    """

    name = "scraping"

    def __init__(self, config: Config, clock: Clock, snapshots: Callable[[float], list[Snapshot]], hook: Hook) -> None:
        self.loop = ScrapeLoop(clock, lambda error: hook(TaskFailed(self.name, repr(error), RETRY_SECONDS)))
        self._config = config
        self._budget = ScrapeBudget(self.loop, clock, snapshots, hook)

    async def start(self) -> None:
        """Begin to apply the budget; the loop begins with its first target."""
        self._budget.change(self._config)

    async def apply(self, config: Config) -> None:
        """Another budget."""
        self._budget.change(config)

    def readiness(self) -> list[str]:
        """Always ready: a pool reports its own endpoints."""
        return []

    async def stop(self, grace: float) -> None:
        """Close every connection."""
        self._budget.stop()
        await self.loop.stop()
