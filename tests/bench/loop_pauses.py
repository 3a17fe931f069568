"""A whole agent in a process that also times the pauses of its event loop, which the Kubernetes bench starts.

    python -m tests.bench.loop_pauses CONFIG

Ended by SIGTERM, it prints one line of JSON: the longest pauses in milliseconds, each as elapsed time and as CPU time
of the event loop's thread. Elapsed time includes what other threads and programs took of the machine.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import uvloop

from agent.app.process import serve
from agent.app.vocabulary import VOCABULARY
from agent.config.file import load
from tests.bench.programs import BenchProgram

TICK_SECONDS = 0.001
KEPT = 5


class Pause(NamedTuple):
    """A time in which the event loop ran one step, in milliseconds: CPU time of its thread, elapsed time, and when it
    ended, after the start."""

    cpu_ms: float
    elapsed_ms: float
    at_ms: float


async def _time_pauses(longest: list[Pause]) -> None:
    start = now = time.monotonic()
    used = time.thread_time()
    while True:
        await asyncio.sleep(TICK_SECONDS)
        before, used_before = now, used
        now, used = time.monotonic(), time.thread_time()
        pause = Pause((used - used_before) * 1e3, (now - before) * 1e3, (now - start) * 1e3)
        if len(longest) < KEPT or pause > longest[-1]:
            longest.append(pause)
            longest.sort(reverse=True)
            del longest[KEPT:]


async def _run(path: Path) -> list[Pause]:
    longest: list[Pause] = []
    ticks = asyncio.create_task(_time_pauses(longest))
    await serve(load(path, VOCABULARY), path, "bench")
    ticks.cancel()
    return longest


def stopped(child: BenchProgram) -> list[Pause]:
    """Stop such a process; its longest pauses, the longest by CPU time first."""
    child.stop()
    return [Pause(*each) for each in json.loads(child.output().splitlines()[-1])]


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_run(Path(sys.argv[1])))), flush=True)
