"""The timer that runs a component when it is due."""

from __future__ import annotations

import asyncio

import pytest

from agent.app.wake_timer import RETRY_SECONDS, WakeTimer
from agent.events import Event
from agent.events.process import TaskFailed
from tests.fakes.simulated import LoopClock, SimulatedLoop


class Runs:
    """A timer on a simulated loop, the times at which it ran, and its events."""

    def __init__(self, failures: int = 0) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        self.loop = loop
        self.clock = LoopClock(loop)
        self.start = self.clock.now()
        self.times: list[float] = []
        self.events: list[Event] = []
        self._failures = failures
        self.timer = WakeTimer("flow-control/pool", self._run, self.clock, self.events.append)

    def wake(self, after: float) -> None:
        self.timer.wake(self.start + after)

    def _run(self, now: float) -> None:
        self.times.append(round(now - self.start, 6))
        if len(self.times) <= self._failures:
            raise ValueError("a defect")


@pytest.mark.simulated
async def test_it_runs_once_at_the_last_time_that_it_was_given() -> None:
    runs = Runs()
    runs.wake(5.0)
    runs.wake(2.0)
    runs.wake(3.0)
    await runs.loop.after(10.0)
    assert runs.times == [3.0]


@pytest.mark.simulated
async def test_a_time_that_has_passed_is_soon_and_not_within_the_call() -> None:
    runs = Runs()
    runs.wake(-1.0)
    assert runs.times == []
    await runs.loop.after(0.001)
    assert runs.times == [0.0]


@pytest.mark.simulated
async def test_a_run_that_fails_is_counted_and_repeated() -> None:
    runs = Runs(failures=2)
    runs.wake(1.0)
    await runs.loop.after(10.0)
    assert runs.times == [1.0, 1.0 + RETRY_SECONDS, 1.0 + 2 * RETRY_SECONDS]
    assert runs.events == [TaskFailed("flow-control/pool", "ValueError('a defect')", RETRY_SECONDS)] * 2


@pytest.mark.simulated
async def test_after_a_stop_nothing_runs() -> None:
    runs = Runs()
    runs.wake(1.0)
    runs.timer.stop()
    runs.wake(2.0)
    await runs.loop.after(10.0)
    assert runs.times == []
