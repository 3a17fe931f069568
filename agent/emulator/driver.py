"""The engine on a real event loop: one timer for a whole server, and a Waiter for each HTTP request.

The engine reports when its next event is due; one timer is set for that time, and the events go to the Waiters.
Requests that arrive in one iteration of the loop join the same step. The clock is CLOCK_MONOTONIC of `agent.clock`, as
uvloop's own time has a resolution of 1 ms. A late timer delays what is sent, but no time inside the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agent.clock import Clock
from agent.emulator.config import EmulatorConfig
from agent.emulator.engine import EngineSimulation
from agent.emulator.jobs import Finished, JobEvent, JobSpec

# Half of uvloop's timer resolution: a timer that rings early would have to be set again.
_TIMER_SLACK_SECONDS = 0.0005


class EngineStopped(Exception):
    """The engine failed or the server stops: no more events will come."""


class Waiter:
    """Where one HTTP request waits for the events of its one or more jobs."""

    __slots__ = ("_events", "_future", "_stopped", "ids")

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._events: list[JobEvent] = []
        self._future: asyncio.Future[None] | None = None
        self._stopped = False

    def put(self, event: JobEvent) -> None:
        """Add an event."""
        self._events.append(event)
        self._wake()

    def stop(self) -> None:
        """Make `take` raise EngineStopped once its events are taken."""
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def take(self) -> list[JobEvent]:
        """The events since the last call, at least one; EngineStopped if no more will come."""
        while not self._events:
            if self._stopped:
                raise EngineStopped
            self._future = asyncio.get_running_loop().create_future()
            await self._future
        events, self._events = self._events, []
        return events


class EngineDriver:
    """One engine, driven in real time."""

    def __init__(self, config: EmulatorConfig, clock: Clock) -> None:
        self._clock = clock
        self.engine = EngineSimulation(config, clock.now())
        self._waiters: dict[int, Waiter] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def submit(self, specs: Sequence[JobSpec]) -> Waiter:
        """Submit all jobs of a request; QueueFull or DoesNotFit, with none of them submitted, if one is refused."""
        waiter = Waiter()
        now = self._clock.now()
        try:
            for spec in specs:
                waiter.ids.append(self.engine.submit(now, spec))
                self._waiters[waiter.ids[-1]] = waiter
        except Exception:
            self.remove(waiter)
            raise
        self._set_timer(now)
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """Forget a Waiter and abort its jobs that have not finished."""
        now = self._clock.now()
        for job_id in waiter.ids:
            if self._waiters.pop(job_id, None) is not None:
                self.engine.abort(now, job_id)
        self._set_timer(now)

    def engine_changed(self) -> None:
        """The engine was put to sleep or woken up: deliver its events, and set the timer for the next one."""
        self._deliver()

    def stop_waiters(self) -> None:
        """Stop every Waiter: the engine failed or the server stops."""
        for waiter in list(self._waiters.values()):
            waiter.stop()

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, now: float) -> None:
        due = self.engine.next_event_at()
        if due is None:
            self.stop()
            return
        if self._timer is not None:
            if due == self._due:
                return
            self._timer.cancel()
        self._due = due
        delay = max(0.0, due - now + _TIMER_SLACK_SECONDS)
        self._timer = asyncio.get_running_loop().call_later(delay, self._deliver)

    def _deliver(self) -> None:
        self.stop()
        now = self._clock.now()
        for event in self.engine.advance(now):
            finished = isinstance(event, Finished)
            waiter = self._waiters.pop(event.id, None) if finished else self._waiters.get(event.id)
            if waiter is not None:
                waiter.put(event)
        self._set_timer(now)
