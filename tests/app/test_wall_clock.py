"""A step of the wall clock while an agent runs changes no age and stops no periodic job."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import aiohttp
import apscheduler.schedulers.base
import pytest

from agent.clock import SystemClock
from agent.events.process import Reloaded
from agent.events.scraping import HealthChanged
from tests.app.live import Live, document, servers
from tests.waiting import eventually


class SetClock(SystemClock):
    """The system's clock; a test sets its wall clock, also for the scheduler of jobs."""

    seconds = 0.0

    def wall(self) -> float:
        return super().wall() + self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    made = SetClock()

    class Set(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return dt.datetime.now(tz) + dt.timedelta(seconds=made.seconds)

    monkeypatch.setattr(apscheduler.schedulers.base, "datetime", Set)
    return made


@pytest.mark.parametrize("step", [-86_400.0, 86_400.0], ids=["a day back", "a day ahead"])
async def test_a_step_of_the_wall_clock_changes_no_age_and_the_file_is_still_checked(
    tmp_path: Path, clock: SetClock, step: float
) -> None:
    file = tmp_path / "igw.yaml"
    async with servers(1) as (server,), aiohttp.ClientSession() as session:
        file.write_text(document([server.address]))
        live = Live(file, clock)
        ports = await live.agent.start()
        try:
            store = live.agent.pools["default"].store
            view = lambda: store.snapshot(clock.now()).endpoints[0]
            await eventually(lambda: view().health == "healthy")
            clock.seconds = step
            pages = server.paths.count("/metrics")
            await eventually(lambda: server.paths.count("/metrics") >= pages + 2, what="pages after the step")
            async with session.get(f"http://{ports.admin}/v1/state") as answer:
                (pool,) = (await answer.json())["pools"]
            (reported,) = pool["endpoints"]
            assert 0 <= reported["page_age_seconds"] < 3
            assert all(0 <= each["age_seconds"] < 60 for each in reported["signals"].values() if "reason" not in each)
            assert [event.new for event in live.recorder.of(HealthChanged)] == ["healthy"]
            file.write_text(document([server.address], "scrape: {interval: 500ms}\n"))
            await eventually(lambda: live.recorder.of(Reloaded), what="a reload of the file")
        finally:
            await live.agent.stop(grace=0)
