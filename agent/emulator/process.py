"""What a page says of the process that serves it, from the operating system."""

from __future__ import annotations

import gc
import platform
import resource
from pathlib import Path

from agent.clock import SystemClock
from agent.emulator.metrics import Process

_PAGE_BYTES = resource.getpagesize()
_SELF = Path("/proc/self")


def measure() -> Process:
    """The process as it is now; sizes are 0 where the system has no /proc."""
    virtual = resident = fds = 0
    if _SELF.exists():
        virtual, resident = (int(word) * _PAGE_BYTES for word in (_SELF / "statm").read_text("ascii").split()[:2])
        fds = sum(1 for _ in (_SELF / "fd").iterdir())
    generations = tuple((g["collected"], g["uncollectable"], g["collections"]) for g in gc.get_stats())
    major, minor, patch = platform.python_version_tuple()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Process(virtual, resident, SystemClock().cpu(), fds, limit, generations, (major, minor, patch))
