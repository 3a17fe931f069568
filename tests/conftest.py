"""What every test may use, and what none may do."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.fakes.simulated import SimulatedLoop
from tests.processes import Processes

TESTS = Path(__file__).resolve().parent

# A shared machine pauses a process for longer than any deadline that would mean something. A run that proves a commit
# says the same twice; HYPOTHESIS_PROFILE=search looks for what nobody has thought of yet.
settings.register_profile("proof", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "proof"))


def _called_by_a_test() -> str:
    """`file:line` of the caller's caller where that is a file under tests/, else nothing."""
    frame = sys._getframe(2)
    name = frame.f_code.co_filename
    return f"{name}:{frame.f_lineno}" if Path(name).is_relative_to(TESTS) else ""


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """The event loop of a test: one with simulated time where it is marked `simulated`."""
    if item.get_closest_marker("simulated"):
        return {"simulated": partial(SimulatedLoop, {})}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fails a test that sleeps: it would be slow where it passes and flaky where it does not (see tests/waiting.py).

    What the product does is its own business; only calls out of files under tests/ count. Yields the places found.
    """
    slept: list[str] = []
    sleep, async_sleep = time.sleep, asyncio.sleep

    def refuse(seconds: float) -> None:
        if where := _called_by_a_test():
            slept.append(f"time.sleep({seconds!r}) at {where}")
        sleep(seconds)

    def refuse_async(delay: float, result: Any = None) -> Any:
        if delay > 0 and (where := _called_by_a_test()):
            slept.append(f"asyncio.sleep({delay!r}) at {where}")
        return async_sleep(delay, result)

    monkeypatch.setattr(time, "sleep", refuse)
    monkeypatch.setattr(asyncio, "sleep", refuse_async)
    yield slept
    if slept:
        pytest.fail("tests wait on conditions (tests/waiting.py), never on time: " + "; ".join(slept))


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Gives that many TCP ports of 127.0.0.1, all different, on which nothing listened a moment ago."""

    def ports(count: int) -> list[int]:
        sockets = [socket.socket() for _ in range(count)]
        try:
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            return [one.getsockname()[1] for one in sockets]
        finally:
            for one in sockets:
                one.close()

    return ports


@pytest.fixture
def free_port(free_ports: Callable[[int], list[int]]) -> int:
    """A TCP port of 127.0.0.1 on which nothing listened a moment ago."""
    return free_ports(1)[0]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts programs and ends them with the test; their output stands in the report of a test that failed."""
    logs = tmp_path / "processes"
    logs.mkdir()
    started = Processes(logs)
    yield started
    started.stop_all()
