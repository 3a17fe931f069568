"""Fixtures for every test, and the rule that no test sleeps."""

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

# No deadlines: a shared machine pauses processes. A normal run is reproducible; HYPOTHESIS_PROFILE=search uses new
# random examples.
settings.register_profile("proof", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "proof"))


# Tests of real model servers that are installed apart: by `make test-vllm` and `make test-llamacpp`; and
# tests of a real KEDA: by `make test-keda`.
APART = ("vllm", "llamacpp", "keda")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that are installed apart, unless `-m` names their mark.

    A default `-m` in pyproject.toml would be lost with every other `-m`.
    """
    absent = [mark for mark in APART if mark not in config.getoption("markexpr")]
    left_out = [item for item in items if any(item.get_closest_marker(mark) for mark in absent)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _called_by_a_test() -> str:
    """`file:line` of the caller's caller if that is a file under tests/, else empty."""
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
    """Fails a test that sleeps, as it would be slow or flaky (see tests/waiting.py).

    Only calls from files under tests/ count. Yields the places found.
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
        pytest.fail("tests must wait for conditions (tests/waiting.py), not for time: " + "; ".join(slept))


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Returns different free TCP ports of 127.0.0.1."""

    def ports(count: int) -> list[int]:
        sockets = [socket.socket() for _ in range(count)]
        try:
            for item in sockets:
                item.bind(("127.0.0.1", 0))
            return [item.getsockname()[1] for item in sockets]
        finally:
            for item in sockets:
                item.close()

    return ports


@pytest.fixture
def free_port(free_ports: Callable[[int], list[int]]) -> int:
    """A free TCP port of 127.0.0.1."""
    return free_ports(1)[0]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts programs and stops them at the end of the test; the report of a failed test has their output."""
    logs = tmp_path / "processes"
    logs.mkdir()
    started = Processes(logs)
    yield started
    started.stop_all()
