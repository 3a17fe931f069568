"""What the test set-up itself promises: no sleeping tests, no process left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.processes import Processes
from tests.waiting import eventually, until


async def test_a_sleep_in_a_test_is_found_with_its_place(no_sleep: list[str]) -> None:
    time.sleep(0)  # noqa: ASYNC251 - the subject of this test
    await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    found = no_sleep[:]
    no_sleep.clear()
    assert [line.split(" at ")[0] for line in found] == ["time.sleep(0)", "asyncio.sleep(0.001)"]
    assert all(Path(__file__).name in line for line in found)


def test_until_gives_the_value_and_fails_at_its_deadline() -> None:
    values = iter([0, 0, 7])
    assert until(lambda: next(values)) == 7
    with pytest.raises(pytest.fail.Exception, match="in vain for rain"):
        until(lambda: False, within=0.05, what="rain")


async def test_eventually_lets_the_loop_run_and_fails_at_its_deadline() -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_soon(done.set)
    assert await eventually(done.is_set)
    with pytest.raises(pytest.fail.Exception, match="in vain for rain"):
        await eventually(lambda: False, within=0.05, what="rain")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_started_process_ends_with_its_children_even_where_it_ignores_the_wish(tmp_path: Path) -> None:
    started = Processes(tmp_path)
    child = "import signal; signal.pause()"
    program = f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("child", subprocess.Popen([sys.executable, "-c", {child!r}]).pid, flush=True)
signal.pause()
"""
    process = started.start([sys.executable, "-c", program])
    pid = int(process.wait_for(r"child (\d+)")[1])
    assert alive(pid)
    assert process.stop(within=0.1) == -signal.SIGKILL
    until(lambda: not alive(pid), what="the end of the child")


def test_a_process_that_ends_too_early_fails_the_wait_with_its_output(tmp_path: Path) -> None:
    process = Processes(tmp_path).start([sys.executable, "-c", "print('no such option'); raise SystemExit(2)"])
    with pytest.raises(pytest.fail.Exception, match=r"ended with 2 before it printed 'ready'(.|\n)*no such option"):
        process.wait_for("ready")
    assert not alive(process.pid) or os.waitpid(process.pid, os.WNOHANG)
