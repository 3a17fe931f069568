"""The programs that a bench starts: their CPU time and memory, pausing them, and ending them with the bench.

They end with the bench however it ends: SIGTERM is handled, and the kernel kills them if the bench is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.envoy.process import kill_with_parent

ROOT = Path(__file__).resolve().parents[2]
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"  # where Debian installs nginx


def program(name: str) -> str | None:
    """The absolute path of an installed program, or None."""
    return shutil.which(name, path=_PATH)


def machine_seconds() -> float:
    """CPU seconds that all programs of this machine have used so far, stolen time included."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, interrupts, soft, stolen = map(int, fields[:8])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    both = (resource.getrusage(target) for target in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def missing(*names: str) -> list[str]:
    """The programs in `names` that are not installed."""
    return [name for name in names if program(name) is None]


def prepare_process() -> None:
    """Exit on SIGTERM with all clean-up, and raise the limit of open files to the maximum."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


class BenchProgram:
    """A program started by the bench from its main thread; it ends with that thread at the latest."""

    def __init__(self, command: Sequence[str | Path], log: Path, cwd: Path = ROOT) -> None:
        first, *rest = (str(part) for part in command)
        self._command = [program(first) or first, *rest]
        self._log = log
        with log.open("wb") as out:
            self._popen = subprocess.Popen(
                kill_with_parent(self._command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd
            )
        self.pid = self._popen.pid

    def cpu_seconds(self) -> float:
        """CPU seconds, user and system, of all its threads, ended ones included."""
        # The clock of clock_getcpuclockid(3): the inverted process id, and 2 for CPUCLOCK_SCHED.
        return time.clock_gettime((~self.pid << 3) | 2)

    def memory_bytes(self, field: str = "VmHWM") -> int:
        """Resident bytes: the peak, or with `VmRSS` the current value."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
        if found is None:
            sys.exit(f"{self} has ended:\n{self.output()}")
        return int(found[1]) * 1024

    def output(self) -> str:
        """Its output so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def pause(self) -> None:
        """Stop it by SIGSTOP while another program is measured."""
        self._popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it continue by SIGCONT."""
        self._popen.send_signal(signal.SIGCONT)

    def check_running(self) -> None:
        """Exit the bench if this program has ended."""
        if self._popen.poll() is not None:
            sys.exit(f"{self} ended:\n{self.output()}")

    def wait_until(self, condition: Callable[[], bool], within: float = 20.0, every: float = 0.02) -> None:
        """Wait for a condition; exit the bench if this program ends or after `within` seconds."""
        end = time.monotonic() + within
        while not condition():
            self.check_running()
            if time.monotonic() > end:
                sys.exit(f"{self} is not ready after {within:g} s:\n{self.output()}")
            time.sleep(every)

    def wait(self) -> int:
        """Wait until it ends; its exit status."""
        try:
            return self._popen.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, even if it is paused, and wait for its end."""
        self._popen.send_signal(signal.SIGTERM)
        self.resume()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def __str__(self) -> str:
        return " ".join(self._command)


@contextlib.contextmanager
def running(child: BenchProgram) -> Iterator[BenchProgram]:
    """The program, which ends with the block."""
    try:
        yield child
    finally:
        child.stop()


def free_ports(count: int) -> list[int]:
    """Free ports of the loopback address."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def listens(port: int) -> bool:
    """Whether a program listens on the port."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Whether a GET has status 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def read(url: str) -> bytes:
    """The body of a GET. Raises what urllib raises."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())
