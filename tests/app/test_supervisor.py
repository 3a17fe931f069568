"""Components start in order, change as a whole, are supervised, and stop in reverse."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from agent.app.component import CannotStart
from agent.app.supervisor import Supervisor
from agent.app.tasks import FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, SETTLED_SECONDS, Tasks
from agent.config import from_flags
from agent.config.config import Config
from agent.events import Event
from agent.events.process import TaskFailed
from tests.fakes.clock import ManualClock
from tests.fakes.simulated import LoopClock, SimulatedLoop, simulate

OLD, NEW = from_flags(["127.0.0.1:1"]), from_flags(["127.0.0.1:2"])


class Part:
    """A component that records its calls in the list of all of them."""

    def __init__(self, name: str, calls: list[str], *, cannot: str = "", why: str = "") -> None:
        self.name = name
        self.config = OLD
        self.why = why
        self.hangs = False
        self.graces: list[float] = []
        self.defect: Exception | None = None  # of `apply` and `stop`
        self._calls = calls
        self._cannot = cannot

    async def start(self) -> None:
        self._calls.append(f"start {self.name}")
        if self._cannot == "start":
            raise CannotStart(f"{self.name} cannot start")

    async def apply(self, config: Config) -> None:
        self._calls.append(f"apply {self.name}")
        if self._cannot == "apply":
            raise CannotStart(f"{self.name} refuses")
        if self.defect is not None:
            raise self.defect
        self.config = config

    def readiness(self) -> list[str]:
        return [self.why] if self.why else []

    async def stop(self, grace: float) -> None:
        self._calls.append(f"stop {self.name}")
        self.graces.append(grace)
        if self.defect is not None:
            raise self.defect
        if self.hangs:
            await asyncio.Event().wait()


def supervised(*parts: Part) -> tuple[Supervisor, list[Event]]:
    events: list[Event] = []
    clock = ManualClock(0.0)
    return Supervisor(parts, Tasks(clock, events.append), clock, events.append), events


async def test_components_start_in_order_and_stop_in_reverse() -> None:
    calls: list[str] = []
    supervisor, _ = supervised(Part("a", calls), Part("b", calls))
    await supervisor.start()
    await supervisor.stop(3.0)
    assert calls == ["start a", "start b", "stop b", "stop a"]


async def test_if_one_cannot_start_the_started_ones_are_stopped_without_a_drain() -> None:
    calls: list[str] = []
    a = Part("a", calls)
    supervisor, _ = supervised(a, Part("b", calls, cannot="start"), Part("c", calls))
    with pytest.raises(CannotStart, match="b cannot start"):
        await supervisor.start()
    assert calls == ["start a", "start b", "stop b", "stop a"]
    assert a.graces == [0.0]


async def test_if_one_refuses_a_configuration_all_return_to_the_old_one() -> None:
    calls: list[str] = []
    parts = [Part("a", calls), Part("b", calls), Part("c", calls, cannot="apply")]
    supervisor, _ = supervised(*parts)
    await supervisor.start()
    with pytest.raises(CannotStart, match="c refuses"):
        await supervisor.apply(OLD, NEW)
    assert calls[3:] == ["apply a", "apply b", "apply c", "apply b", "apply a"]
    assert [part.config for part in parts] == [OLD, OLD, OLD]


async def test_a_component_with_a_defect_leaves_the_others_at_the_old_configuration_and_able_to_stop() -> None:
    calls: list[str] = []
    a, b = parts = Part("a", calls), Part("b", calls)
    supervisor, events = supervised(*parts)
    await supervisor.start()
    b.defect = KeyError("x")
    with pytest.raises(KeyError):
        await supervisor.apply(OLD, NEW)
    assert a.config is OLD
    await supervisor.stop(0.0)
    assert calls[-2:] == ["stop b", "stop a"]
    assert events == [TaskFailed("b", "it failed to stop: KeyError('x')", 0.0)]


async def test_readiness_is_that_of_all_components_while_the_agent_runs() -> None:
    calls: list[str] = []
    part = Part("a", calls, why="pool x: 1 of 2 endpoints were not scraped yet")
    supervisor, _ = supervised(part, Part("b", calls))
    assert supervisor.readiness() == ["the agent is starting"]
    await supervisor.start()
    assert supervisor.readiness() == ["pool x: 1 of 2 endpoints were not scraped yet"]
    part.why = ""
    assert supervisor.readiness() == []
    await supervisor.stop(0.0)
    assert supervisor.readiness() == ["the agent is stopping"]


def test_a_component_that_does_not_stop_is_reported_and_blocks_no_other() -> None:
    calls: list[str] = []
    events: list[Event] = []

    async def world(loop: SimulatedLoop) -> None:
        clock = LoopClock(loop)
        hanging = Part("b", calls)
        hanging.hangs = True
        supervisor = Supervisor([Part("a", calls), hanging], Tasks(clock, events.append), clock, events.append)
        await supervisor.start()
        await supervisor.stop(2.0)

    simulate({}, world)
    assert calls == ["start a", "start b", "stop b", "stop a"]
    assert events == [TaskFailed("b", "it did not stop within 7 s", 0.0)]


def test_a_task_that_dies_is_restarted_with_back_off_counted_and_keeps_the_agent_unready() -> None:
    events: list[Event] = []
    starts: list[float] = []
    failing: list[list[str]] = []

    async def world(loop: SimulatedLoop) -> None:
        tasks = Tasks(LoopClock(loop), events.append)

        async def work() -> None:
            starts.append(loop.time())
            if len(starts) < 4:
                raise OSError("no network")
            await asyncio.Event().wait()

        tasks.run("discovery/pool", work)
        for seconds in (FIRST_BACKOFF_SECONDS / 2, 10.0):
            await loop.after(seconds)
            failing.append(tasks.failing())
        await tasks.stop()

    simulate({}, world)
    waits = [later - earlier for earlier, later in pairwise(starts)]
    assert waits == pytest.approx([0.5, 1.0, 2.0])
    assert [event.backoff for event in events if isinstance(event, TaskFailed)] == [0.5, 1.0, 2.0]
    assert failing == [["task discovery/pool failed and waits for its restart: OSError('no network')"], []]


def test_the_back_off_has_a_limit_and_starts_again_after_a_long_run() -> None:
    events: list[Event] = []

    async def world(loop: SimulatedLoop) -> None:
        tasks = Tasks(LoopClock(loop), events.append)
        runs = [0.0] * 9 + [SETTLED_SECONDS, 0.0]

        async def work() -> None:
            if not runs:
                await asyncio.Event().wait()
            await loop.after(runs.pop(0))

        tasks.run("x", work)
        await loop.after(1000)
        await tasks.stop()

    simulate({}, world)
    backoffs = [event.backoff for event in events if isinstance(event, TaskFailed)]
    assert backoffs == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0.5, 1]
    assert max(backoffs) == MAX_BACKOFF_SECONDS


async def test_a_task_that_is_cancelled_is_not_restarted_and_not_counted() -> None:
    events: list[Event] = []
    tasks = Tasks(ManualClock(0.0), events.append)
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    task = tasks.run("x", work)
    await started.wait()
    task.cancel()
    await tasks.stop()
    assert (events, tasks.failing()) == ([], [])
