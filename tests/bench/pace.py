"""What ran, and how fast this machine itself was meanwhile: CPU time is no measure where that changes.

A virtual machine whose neighbours share its cores takes up to twice the CPU time for the same work, minutes at a time.
"""

from __future__ import annotations

import platform
import sys
import time

from agent.__main__ import compiled

_ADDITIONS = 100_000
_TIMES = 5


class Pace:
    """Looks at the machine now and then; `said` is a line about what was found."""

    def __init__(self) -> None:
        self._looks: list[float] = []
        self.look()

    def look(self) -> None:
        """How long the fixed loop takes now, in CPU seconds: the shortest of a few, for one may be interrupted."""
        self._looks.append(min(_additions() for _ in range(_TIMES)))

    def said(self) -> str:
        """For people."""
        what = "compiled, as `make wheel` builds it" if compiled() else "Python, as it stands in the checkout"
        least, most = min(self._looks), max(self._looks)
        return (
            f"the agent was {what}; Python {platform.python_version()} of {sys.base_prefix}\n"
            f"{_ADDITIONS:,} additions took {least * 1e3:.1f} to {most * 1e3:.1f} ms of CPU meanwhile: "
            "figures of two runs compare where these do"
        )


def _additions() -> float:
    began = time.process_time()
    total = 0
    for number in range(_ADDITIONS):
        total += number
    return time.process_time() - began
