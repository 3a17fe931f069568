"""Programs that a bench starts: what they use, held still while others are measured, none of them left over.

Whatever ends the bench ends them. SIGTERM becomes an orderly end; against SIGKILL the kernel is told beforehand.
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

from agent.envoy.process import ending_with_us

ROOT = Path(__file__).resolve().parents[2]
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"  # where Debian keeps nginx, and users do not look


def program(name: str) -> str | None:
    """The whole path of an installed program."""
    return shutil.which(name, path=_PATH)


def machine_seconds() -> float:
    """CPU seconds that this machine has spent on anything so far, what its host took from it included."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, interrupts, soft, stolen = map(int, fields[:8])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def missing(*names: str) -> list[str]:
    """Those of these programs that are not installed."""
    return [name for name in names if program(name) is None]


def tidy() -> None:
    """What a bench does first: end in order when it is told to end, and open as many connections as the system lets."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Child:
    """A program of this bench. It is started from the main thread and ends with it, by whatever that ends."""

    def __init__(self, command: Sequence[str | Path], log: Path, cwd: Path = ROOT) -> None:
        first, *rest = (str(part) for part in command)
        self._command = [program(first) or first, *rest]
        self._log = log
        with log.open("wb") as out:
            self._popen = subprocess.Popen(
                ending_with_us(self._command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd
            )
        self.pid = self._popen.pid

    def cpu_seconds(self) -> float:
        """CPU seconds of all its threads, those that have ended included, user and system."""
        # The clock that clock_getcpuclockid(3) would name: the process' number inverted, and 2 for "as scheduled".
        return time.clock_gettime((~self.pid << 3) | 2)

    def memory_bytes(self, what: str = "VmHWM") -> int:
        """Resident bytes: the most that there ever were, or with `VmRSS` those of now."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
        if found is None:
            sys.exit(f"{self} has ended:\n{self.said()}")
        return int(found[1]) * 1024

    def said(self) -> str:
        """What it has written."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def hold_still(self) -> None:
        """Stop it where it is, so that what is measured now has the machine for itself."""
        self._popen.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self._popen.send_signal(signal.SIGCONT)

    def must_run(self) -> None:
        """End the bench when this program has ended."""
        if self._popen.poll() is not None:
            sys.exit(f"{self} ended:\n{self.said()}")

    def until(self, look: Callable[[], bool], within: float = 20.0, every: float = 0.02) -> None:
        """Wait for a condition; the bench ends when this program does, or when time is up."""
        end = time.monotonic() + within
        while not look():
            self.must_run()
            if time.monotonic() > end:
                sys.exit(f"{self} is not ready after {within:g} s:\n{self.said()}")
            time.sleep(every)

    def wait(self) -> int:
        """Wait until it ends by itself; its exit status."""
        try:
            return self._popen.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, also one that stands still, and wait until it is gone."""
        self._popen.send_signal(signal.SIGTERM)
        self.go_on()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def __str__(self) -> str:
        return " ".join(self._command)


@contextlib.contextmanager
def running(child: Child) -> Iterator[Child]:
    """The child for as long as this lasts."""
    try:
        yield child
    finally:
        child.stop()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address at which nobody listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def listens(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def read(url: str) -> bytes:
    """The body of a GET. Raises what urllib raises."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())
