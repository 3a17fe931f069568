"""The agent's scrape loop and routing state alone, in a process that does nothing else: what the bench starts.

    python -m tests.bench.scrape_loop PORT SECONDS

It asks 1,000 endpoints once a second, takes ten snapshots a second, and prints its CPU microseconds per scrape, scrapes
a second, and how many failed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import uvloop

from agent.app.process import tune_garbage_collector
from agent.clock import SystemClock
from agent.events import Event
from agent.events.scraping import ScrapeDone, ScrapeFailed
from agent.scrape.loop import ScrapeLoop
from agent.scrape.target import Target
from agent.state.store import RoutingStore
from tests.bench.children import Child
from tests.bench.fleet import addresses

ENDPOINTS = 1000
SNAPSHOTS_A_SECOND = 10
WARM_SECONDS = 2.5


class Run(NamedTuple):
    """CPU microseconds per scrape, scrapes in a second, and how many failed."""

    cpu_us: float
    rate: float
    failed: int


async def scrape(port: int, seconds: float) -> Run:
    """Only to scrape, and to take snapshots."""
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
    tune_garbage_collector()  # as the agent does
    await asyncio.sleep(WARM_SECONDS)
    pages, failures, cpu, began = 0, 0, time.process_time(), clock.now()
    while clock.now() - began < seconds:
        await asyncio.sleep(1 / SNAPSHOTS_A_SECOND)
        store.snapshot(clock.now())
    cpu, took = time.process_time() - cpu, clock.now() - began
    found = Run(cpu / max(pages, 1) * 1e6, pages / took, failures)
    await loop.stop()
    return found


def measured(folder: Path, port: int, seconds: float) -> Run:
    """One run in a process of its own; the bench ends when that fails."""
    module = "tests.bench.scrape_loop"
    command = [sys.executable, "-m", module, str(port), str(seconds)]
    child = Child(command, folder / "loop.log")
    if child.wait():
        sys.exit(f"{child} failed:\n{child.said()}")
    return Run(*json.loads(child.said()))


if __name__ == "__main__":
    print(json.dumps(uvloop.run(scrape(int(sys.argv[1]), float(sys.argv[2])))))
