"""The speed of this machine during a bench: CPU times of two runs compare only if it is equal.

A virtual machine whose neighbours share its cores can need twice the CPU time for the same work, for minutes.
"""

from __future__ import annotations

import platform
import sys
import time

from agent.__main__ import compiled

_ADDITIONS = 100_000
_TIMES = 5


class MachineSpeed:
    """The CPU times of a fixed loop, sampled during a bench."""

    def __init__(self) -> None:
        self._samples: list[float] = []
        self.sample()

    def sample(self) -> None:
        """Time the fixed loop now: the shortest of several runs, as a run may be interrupted."""
        self._samples.append(min(_additions() for _ in range(_TIMES)))

    def summary(self) -> str:
        """What was measured, and the range of the samples."""
        build = "compiled, as built by `make wheel`" if compiled() else "pure Python"
        lowest, highest = min(self._samples), max(self._samples)
        return (
            f"the agent was {build}; Python {platform.python_version()} of {sys.base_prefix}\n"
            f"{_ADDITIONS:,} additions took {lowest * 1e3:.1f} to {highest * 1e3:.1f} ms of CPU meanwhile: "
            "compare two runs only if these are equal"
        )


def _additions() -> float:
    start = time.process_time()
    total = 0
    for number in range(_ADDITIONS):
        total += number
    return time.process_time() - start
