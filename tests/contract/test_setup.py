"""The set-up: locked packages, no sleeping tests, no process that outlives its test."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.processes import ROOT, Processes
from tests.waiting import eventually, until


async def test_a_sleep_in_a_test_is_found_with_its_place(no_sleep: list[str]) -> None:
    time.sleep(0)  # noqa: ASYNC251 - the subject of this test
    await asyncio.sleep(delay=0.001)
    await asyncio.sleep(0)
    found = no_sleep[:]
    no_sleep.clear()
    assert [line.split(" at ")[0] for line in found] == ["time.sleep(0)", "asyncio.sleep(0.001)"]
    assert all(Path(__file__).name in line for line in found)


def test_until_returns_the_value_and_fails_at_its_deadline() -> None:
    values = iter([0, 0, 7])
    assert until(lambda: next(values)) == 7
    with pytest.raises(pytest.fail.Exception, match=r"rain did not happen within 0\.05 s"):
        until(lambda: False, within=0.05, what="rain")


async def test_eventually_lets_the_loop_run_and_fails_at_its_deadline() -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_soon(done.set)
    assert await eventually(done.is_set)
    with pytest.raises(pytest.fail.Exception, match=r"no result for rain within 0\.05 s"):
        await eventually(lambda: False, within=0.05, what="rain")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_started_process_ends_with_its_children_even_if_it_ignores_sigterm(tmp_path: Path) -> None:
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


def locked(name: str) -> dict[str, list[str]]:
    """Distribution -> its hashes, of a lock file."""
    text = (ROOT / name).read_text()
    entries = re.findall(r"^([a-z0-9][a-z0-9.-]*)==\S+[^\n]*((?:\n    --hash=\S+(?: \\\\)?)*)", text, re.MULTILINE)
    return {distribution: re.findall(r"sha256:[0-9a-f]{64}", hashes) for distribution, hashes in entries}


def wanted(*extras: str) -> set[str]:
    """The distributions that pyproject.toml requires, with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = [*project["dependencies"], *(row for extra in extras for row in project["optional-dependencies"][extra])]
    return {re.split(r"[<>=!~ \[;]", row, maxsplit=1)[0] for row in rows}


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("requirements.lock", ("demo", "build")),
        ("requirements-test.lock", ("demo", "build", "test")),
        ("requirements-fuzz.lock", ("fuzz",)),
    ],
)
def test_a_lock_has_all_required_packages_with_hashes_and_no_registry(lock: str, extras: tuple[str, ...]) -> None:
    found = locked(lock)
    assert wanted(*extras) - set(found) == set()
    assert [distribution for distribution, hashes in found.items() if not hashes] == []
    assert "://" not in (ROOT / lock).read_text()


def test_the_tests_use_the_locked_versions_of_the_product() -> None:
    pins = [
        set(re.findall(r"^([a-z0-9.-]+==\S+)", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("requirements.lock", "requirements-test.lock")
    ]
    assert pins[0] <= pins[1]


def test_no_package_is_installed_if_its_program_exists() -> None:
    requested = subprocess.run([ROOT / ".ci" / "packages", "sh=nothing"], capture_output=True, text=True, check=True)
    assert (requested.stdout, requested.stderr) == ("", "")


def test_without_apt_the_error_lists_the_missing_packages(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash
    requested = subprocess.run(
        [bash, ROOT / ".ci" / "packages", "no-such-program=some-package", "no-such-either=some-package"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert requested.returncode == 1
    assert requested.stderr.startswith("Missing on this machine: some-package (")


def python_stub(path: Path, *, lacks: str = "nothing") -> Path:
    """A fake Python without this module; its environments have one file, with its name in it."""
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *{lacks}*) exit 1 ;; -m*) mkdir "$3" && echo "{path.name}" > "$3/by" ;; esac\n'
    )
    path.chmod(0o755)
    return path


def test_a_python_that_can_make_an_environment_is_preferred_to_one_that_needs_a_package(tmp_path: Path) -> None:
    bare, whole = python_stub(tmp_path / "bare", lacks="ensurepip"), python_stub(tmp_path / "whole")
    environment = {**os.environ, "PYTHON": f"{bare} {whole}"}
    subprocess.run([ROOT / ".ci" / "venv", tmp_path / "made"], env=environment, check=True)
    assert (tmp_path / "made" / "by").read_text() == "whole\n"


def test_the_python_of_the_system_is_preferred_to_another_on_the_path(tmp_path: Path) -> None:
    able = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
    system = shutil.which("/usr/bin/python3")
    has_one = system is not None and subprocess.run([system, "-c", able], check=False).returncode == 0
    stub = python_stub(tmp_path / "python3")
    environment = {**os.environ, "PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHON", None)
    subprocess.run([ROOT / ".ci" / "venv", tmp_path / "made"], env=environment, check=True)
    assert (tmp_path / "made" / "by").exists() != has_one


@pytest.mark.parametrize(("marks", "status"), [("not cluster", pytest.ExitCode.NO_TESTS_COLLECTED), ("llamacpp", 0)])
def test_tests_that_are_installed_apart_run_only_where_their_mark_is_named(marks: str, status: int) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-m", marks, "tests/llamacpp"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == status
