"""Statistics of this process, read from the operating system."""

from __future__ import annotations

import gc
import platform
import resource
from pathlib import Path

from agent.clock import SystemClock
from agent.emulator.metrics import ProcessStats

_PAGE_BYTES = resource.getpagesize()
_SELF = Path("/proc/self")


def measure() -> ProcessStats:
    """The statistics as of now; sizes are 0 where the system has no /proc."""
    virtual = resident = fds = 0
    if _SELF.exists():
        virtual, resident = (int(pages) * _PAGE_BYTES for pages in (_SELF / "statm").read_text("ascii").split()[:2])
        fds = sum(1 for _ in (_SELF / "fd").iterdir())
    generations = tuple((g["collected"], g["uncollectable"], g["collections"]) for g in gc.get_stats())
    major, minor, patch = platform.python_version_tuple()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ProcessStats(virtual, resident, SystemClock().cpu(), fds, limit, generations, (major, minor, patch))
