"""Periodic jobs on APScheduler, as one component."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from apscheduler.events import EVENT_JOB_ERROR
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from agent.app.tasks import Tasks
from agent.clock import Clock
from agent.config.config import Config
from agent.events import Hook
from agent.events.process import TaskFailed

# A step of the wall clock by more than this is noticed, within this time.
WALL_CLOCK_SECONDS: Final = 0.5


class Job(NamedTuple):
    """A function that runs every `interval(config)` seconds; None: not with this configuration."""

    name: str
    run: Callable[[], Awaitable[None]]
    interval: Callable[[Config], float | None]


class _Every(BaseTrigger):  # type: ignore[misc]
    """So many seconds after each run. The library's own interval trigger steps through every missed run, which would
    stop the process for seconds after the wall clock was set ahead by a day."""

    def __init__(self, seconds: float) -> None:
        self._gap = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """When the next run is due."""
        return now + self._gap


class Jobs:
    """Runs the jobs. One that raises is counted and runs again at its next time."""

    name = "jobs"

    def __init__(self, config: Config, jobs: Sequence[Job], tasks: Tasks, clock: Clock, hook: Hook) -> None:
        self._config = config
        self._jobs = tuple(jobs)
        self._tasks = tasks
        self._clock = clock
        self._hook = hook
        self._ahead = 0.0  # the wall clock minus the monotonic one, when they were last compared
        self._scheduler = AsyncIOScheduler(timezone="UTC")
        self._scheduler.add_listener(self._failed, EVENT_JOB_ERROR)

    async def start(self) -> None:
        """Begin to run the jobs."""
        self._ahead = self._clock.wall() - self._clock.now()
        self._schedule()
        self._scheduler.start()
        self._tasks.run("wall-clock", self._follow_wall_clock)

    async def apply(self, config: Config) -> None:
        """Other intervals."""
        self._config = config
        self._schedule()

    def readiness(self) -> list[str]:
        """Always ready."""
        return []

    async def stop(self, grace: float) -> None:
        """Run no more jobs."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def _schedule(self) -> None:
        for job in self._jobs:
            seconds = job.interval(self._config)
            if seconds is not None:
                self._scheduler.add_job(
                    job.run, _Every(seconds), id=job.name, replace_existing=True, coalesce=True, max_instances=1,
                    misfire_grace_time=None,
                )  # fmt: skip
            elif self._scheduler.get_job(job.name) is not None:
                self._scheduler.remove_job(job.name)

    async def _follow_wall_clock(self) -> None:
        """Plan the jobs again when the wall clock was set: set back by an hour, the scheduler would wait an hour."""
        clock = self._clock
        while True:
            await asyncio.sleep(WALL_CLOCK_SECONDS)
            before, self._ahead = self._ahead, clock.wall() - clock.now()
            if abs(self._ahead - before) > WALL_CLOCK_SECONDS:
                self._schedule()

    def _failed(self, event: Any) -> None:
        self._hook(TaskFailed(f"job/{event.job_id}", repr(event.exception), 0.0))
