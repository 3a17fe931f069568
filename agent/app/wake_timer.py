"""One timer of the event loop that runs a function when it is due, for a component that says when that is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from agent.clock import Clock
from agent.events import Hook
from agent.events.process import TaskFailed

# After a run that has failed. What it left undone is due again by then.
RETRY_SECONDS: Final = 0.5


class WakeTimer:
    """Calls `run` with the time when it is due. A run that raises is counted as a failed task of this `name`, and
    repeated."""

    def __init__(self, name: str, run: Callable[[float], None], clock: Clock, hook: Hook) -> None:
        self._name = name
        self._run = run
        self._clock = clock
        self._hook = hook
        self._handle: asyncio.Handle | None = None
        self._stopped = False

    def wake(self, at: float) -> None:
        """Run at this time (monotonic seconds), in place of the time given before; soon where it has passed. Within the
        event loop; without effect after `stop`."""
        self._cancel()
        if self._stopped:
            return
        loop, delay = asyncio.get_running_loop(), at - self._clock.now()
        self._handle = loop.call_later(delay, self._due) if delay > 0 else loop.call_soon(self._due)

    def stop(self) -> None:
        """Do not run any more."""
        self._stopped = True
        self._cancel()

    def _cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> None:
        self._handle = None
        now = self._clock.now()
        try:
            self._run(now)
        except Exception as error:  # noqa: BLE001  a defect on one request must not hold up the others
            self._hook(TaskFailed(self._name, repr(error), RETRY_SECONDS))
            self.wake(now + RETRY_SECONDS)
