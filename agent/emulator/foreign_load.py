"""Requests that reach a server past the gateway under test, as another gateway's do: a constant number of them.

They are jobs of the same engine as all others: they hold its slots and blocks, delay its steps, and are on its page.
When one ends, the next one takes its place at the end of the queue.
"""

from __future__ import annotations

import asyncio
from typing import Final

from agent.emulator.driver import EngineDriver, EngineStopped
from agent.emulator.jobs import Finished, JobSpec, QueueFull

PROMPT_TOKENS: Final = 128


class ForeignLoad:
    """The foreign requests of one server."""

    def __init__(self, driver: EngineDriver) -> None:
        self._driver = driver
        self._tasks: list[asyncio.Task[None]] = []

    def set(self, requests: int, answer_tokens: int) -> None:
        """Keep this number of requests at the server, with answers of this length. Those of before are aborted.
        DoesNotFit, with none of them left, if the server could never run such a request."""
        self.stop()
        spec = JobSpec(PROMPT_TOKENS, max(1, answer_tokens))
        if requests:
            spec.check(self._driver.engine.config)
        self._tasks = [asyncio.get_running_loop().create_task(self._repeat(spec)) for _ in range(requests)]

    def stop(self) -> None:
        """Abort all of them."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def _repeat(self, spec: JobSpec) -> None:
        """Send a request again whenever it has ended; a queue that is full ends it for good."""
        while True:
            try:
                waiter = self._driver.submit([spec])
            except QueueFull:
                return
            try:
                while not any(isinstance(event, Finished) for event in await waiter.take()):
                    pass
            except EngineStopped:
                return
            finally:
                self._driver.remove(waiter)
