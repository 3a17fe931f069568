"""Programs that a test starts: their output is kept, and all of them end with the test.

Each runs in its own session, so that its children are stopped with it, and writes to a file, as a full pipe would block
it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent


class Process:
    """One started program."""

    def __init__(self, args: Sequence[str | Path], log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.args = [str(arg) for arg in args]
        self._log = log
        with log.open("wb") as out:
            self._popen = subprocess.Popen(
                self.args,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def output(self) -> str:
        """Its standard output and standard error so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def running(self) -> bool:
        return self._popen.poll() is None

    def wait(self, within: float = 30.0) -> int:
        """Its exit status; the test fails if it still runs after `within` seconds."""
        try:
            return self._popen.wait(within)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {within:g} s: {self}")

    def wait_for(self, pattern: str, within: float = 30.0) -> re.Match[str]:
        """The first match of `pattern` in its output; the test fails at its end or after `within` seconds."""

        def match() -> re.Match[str] | None:
            ended = not self.running()
            found = re.search(pattern, self.output(), re.MULTILINE)
            if ended and not found:
                pytest.fail(f"ended with {self._popen.returncode} before it printed {pattern!r}: {self}")
            return found

        found = until(match, within, f"{pattern!r} from {self}")
        assert found is not None
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process only; ignored if it has ended."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL to its whole session."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._popen.wait()

    def stop(self, within: float = 10.0) -> int:
        """Send SIGTERM; its exit status. What still runs in its session after `within` seconds is killed."""
        self._popen.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(within)
        status = self._popen.poll()
        self.kill()
        return self._popen.wait() if status is None else status

    def __repr__(self) -> str:
        return f"{' '.join(self.args)} (pid {self.pid})\n{self.output()[-8000:]}"


class Processes:
    """Starts programs, and stops all of them at the end of the test."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started: list[Process] = []

    def start(self, args: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Process:
        log = self._logs / f"{len(self._started)}-{Path(args[0]).name}.log"
        process = Process(args, log, env or {}, cwd)
        self._started.append(process)
        return process

    def stop_all(self) -> None:
        """Stop them in reverse order and print their output, which pytest shows for a failed test."""
        for process in reversed(self._started):
            process.stop()
            print(f"--- {process}")
