"""Starts the components in their order, applies configurations to them, and stops them in reverse.

start     first to last; where one cannot start, those before it are stopped and the error is raised
apply     first to last; where one refuses, those before it go back to the configuration that they had
stop      last to first, within the drain time; a component that exceeds it is reported and left behind
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from agent.app.component import CannotStart, Component
from agent.app.tasks import Tasks
from agent.clock import Clock
from agent.config.config import Config
from agent.events import Hook
from agent.events.process import TaskFailed

# What a component may take to close beyond the drain time: connections and threads end in moments.
CLOSE_SECONDS: Final = 5.0


class Supervisor:
    """Runs `components`, of which a later one may rely on those before it, and the tasks that they started."""

    def __init__(self, components: Sequence[Component], tasks: Tasks, clock: Clock, hook: Hook) -> None:
        self._components = tuple(components)
        self._tasks = tasks
        self._clock = clock
        self._hook = hook
        self._started: list[Component] = []
        self._stopping = False
        self._changing = asyncio.Lock()  # a configuration is applied to components that have started

    @property
    def stopping(self) -> bool:
        """Whether a stop has begun."""
        return self._stopping

    async def start(self) -> None:
        """Start every component. Raises what one of them raises (CannotStart), with nothing left running."""
        try:
            async with self._changing:
                for component in self._components:
                    if self._stopping:
                        return
                    self._started.append(component)  # before it has started, so that a stop meanwhile reaches it
                    await component.start()
        except Exception:
            await self.stop(0.0)
            raise

    async def apply(self, old: Config, new: Config) -> None:
        """Change every component from `old` to `new`, once they have started. Raises what one of them raises, with all
        of them at `old`."""
        changed: list[Component] = []
        async with self._changing:
            try:
                for component in self._components:
                    changed.append(component)
                    await component.apply(new)
            except Exception:
                for component in reversed(changed[:-1]):
                    try:
                        await component.apply(old)
                    except CannotStart as error:  # the others go back all the same
                        self._hook(TaskFailed(component.name, f"it cannot go back: {error}", 0.0))
                raise

    def readiness(self) -> list[str]:
        """Why the agent is not ready, one sentence each."""
        if self._stopping:
            return ["the agent is stopping"]
        if len(self._started) < len(self._components):
            return ["the agent is starting", *(why for component in self._started for why in component.readiness())]
        return [*self._tasks.failing(), *(why for component in self._components for why in component.readiness())]

    async def stop(self, grace: float) -> None:
        """Stop every component that was started."""
        self._stopping = True
        until = self._clock.now() + grace
        for component in reversed(self._started):
            left = max(0.0, until - self._clock.now())
            try:
                async with asyncio.timeout(left + CLOSE_SECONDS):
                    await component.stop(left)
            except TimeoutError:
                self._hook(TaskFailed(component.name, f"it did not stop within {left + CLOSE_SECONDS:g} s", 0.0))
            except Exception as error:  # noqa: BLE001  the defect of one component must not keep the others running
                self._hook(TaskFailed(component.name, f"it failed to stop: {error!r}", 0.0))
        self._started.clear()
        await self._tasks.stop()
