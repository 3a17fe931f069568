"""The agent's scrape loop and routing state alone in a process, which the scrape bench starts.

    python -m tests.bench.scrape_loop PORT SECONDS

It scrapes 1,000 endpoints once per second, takes ten snapshots per second, and prints its CPU microseconds per scrape,
its scrapes per second, and its failed scrapes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import uvloop

from agent.app.process import collect_garbage_rarely
from agent.clock import SystemClock
from agent.events import Event
from agent.events.scraping import ScrapeDone, ScrapeFailed
from agent.scrape.loop import ScrapeLoop
from agent.scrape.target import Target
from agent.state.store import RoutingStore
from tests.bench.nginx_fleet import addresses
from tests.bench.programs import BenchProgram

ENDPOINTS = 1000
SNAPSHOTS_PER_SECOND = 10
WARM_SECONDS = 2.5


class LoopCost(NamedTuple):
    """CPU microseconds per scrape, scrapes per second, and failed scrapes."""

    cpu_us: float
    rate: float
    failed: int


async def scrape(port: int, seconds: float) -> LoopCost:
    """Scrape and take snapshots for `seconds`."""
    clock = SystemClock()
    pages = failures = 0

    def count(event: Event) -> None:
        nonlocal pages, failures
        if type(event) is ScrapeDone:
            pages += 1
        elif type(event) is ScrapeFailed:
            failures += 1

    store = RoutingStore("bench", stale_after=3.0, hook=count)
    where = addresses(port, ENDPOINTS)
    store.set_endpoints(dict.fromkeys(where, "vllm"), clock.now())
    loop = ScrapeLoop(clock)
    loop.set_targets("bench", [Target(address, "vllm", models_interval=1e9) for address in where], store)
    collect_garbage_rarely()  # as the agent does
    gc.freeze()
    await asyncio.sleep(WARM_SECONDS)
    pages, failures, cpu, start = 0, 0, time.process_time(), clock.now()
    while clock.now() - start < seconds:
        await asyncio.sleep(1 / SNAPSHOTS_PER_SECOND)
        store.snapshot(clock.now())
    cpu, took = time.process_time() - cpu, clock.now() - start
    cost = LoopCost(cpu / max(pages, 1) * 1e6, pages / took, failures)
    await loop.stop()
    return cost


def measured(folder: Path, port: int, seconds: float) -> LoopCost:
    """One run in a process of its own; exit the bench if it fails."""
    module = "tests.bench.scrape_loop"
    command = [sys.executable, "-m", module, str(port), str(seconds)]
    child = BenchProgram(command, folder / "loop.log")
    if child.wait():
        sys.exit(f"{child} failed:\n{child.output()}")
    return LoopCost(*json.loads(child.output()))


if __name__ == "__main__":
    print(json.dumps(uvloop.run(scrape(int(sys.argv[1]), float(sys.argv[2])))))
