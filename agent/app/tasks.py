"""The long-running tasks of the components. A task that fails is counted and restarted after a back-off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from agent.clock import Clock
from agent.events import Hook
from agent.events.process import TaskFailed

FIRST_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 30.0
# A task that ran for this long before it failed starts with the first back-off again.
SETTLED_SECONDS: Final = 60.0

Work = Callable[[], Awaitable[None]]


class Task:
    """One running task; `cancel` ends it for good."""

    def __init__(self, name: str, running: asyncio.Task[None]) -> None:
        self.name = name
        self._running = running

    def cancel(self) -> None:
        """End the task."""
        self._running.cancel()

    async def ended(self) -> None:
        """End the task, and return when it has ended."""
        self._running.cancel()
        await asyncio.wait({self._running})


class Tasks:
    """Runs tasks that never return of their own accord: one that returns or raises is restarted."""

    def __init__(self, clock: Clock, hook: Hook) -> None:
        self._clock = clock
        self._hook = hook
        self._running: set[asyncio.Task[None]] = set()
        self._failing: dict[str, str] = {}

    def run(self, name: str, work: Work) -> Task:
        """Start `work`; each restart calls it again. `name` is unique among the running tasks, and a label value."""
        running = asyncio.get_running_loop().create_task(self._supervise(name, work), name=name)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return Task(name, running)

    def failing(self) -> list[str]:
        """The tasks that wait for their restart, one sentence each."""
        return [f"task {name} failed and waits for its restart: {why}" for name, why in sorted(self._failing.items())]

    async def stop(self) -> None:
        """End all tasks."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _supervise(self, name: str, work: Work) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        try:
            while True:
                began = self._clock.now()
                try:
                    await work()
                    why = "it returned"
                except Exception as error:  # noqa: BLE001  the defect of one task must not end the others
                    why = repr(error)
                if self._clock.now() - began >= SETTLED_SECONDS:
                    backoff = FIRST_BACKOFF_SECONDS
                self._failing[name] = why
                self._hook(TaskFailed(name, why, backoff))
                await asyncio.sleep(backoff)
                del self._failing[name]
                backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
        finally:
            self._failing.pop(name, None)
