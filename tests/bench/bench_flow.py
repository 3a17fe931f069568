"""The CPU cost and the memory of flow control, apart from the request path around it.

    make bench-flow [ARGS='--rounds 5 --times 2000']

A pool of eight endpoints is full. Each measured request is held (planned, queued) and another one is dispatched,
because an endpoint has room for one, so the number that waits stays the same. Each request is of one of three
priorities, its prompt is warm at a random endpoint, and the cost of each endpoint is a sum of two numbers: the
profile's own cost is measured by `make bench-pick`. `unsaturated` is what a request costs that does not wait: the room
of the picked endpoint, and the record of its start and end. Each figure is the median over rounds of the mean of a
round.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
import tracemalloc
from collections.abc import Sequence
from statistics import median

from agent.flow.control import Estimate, FlowControl, FlowLimits
from agent.flow.evidence import EndpointEvidence
from agent.flow.outcomes import Dispatched
from agent.flow.request import FlowRequest
from agent.flow.room import Room, RoomLimits, headroom
from agent.signals import BLOCK_SIZE, BLOCKS, KV_USAGE, RUNNING, WAITING
from agent.state.health import Health
from agent.state.snapshot import EndpointView, Prefix, Work
from tests.bench.machine_speed import MachineSpeed
from tests.bench.table import Column, Table, bar

ENDPOINTS = tuple(f"10.0.0.{number}:8000" for number in range(1, 9))
WAITING_REQUESTS = (10, 1_000, 10_000)
CALLERS = (1, 100)
PRIORITIES = (-1, 0, 10)
BAR_US, BAR_RATIO, BAR_UNSATURATED_US = 30.0, 1.3, 5.0

COLUMNS = (
    Column("waiting", 7, ",d"),
    Column("callers", 7, ",d"),
    Column("held and dispatched, us", 23, ".1f"),
    Column("stolen", 6, ".3f"),
    Column("bytes a request", 15, ",.0f"),
)


def estimate(request: FlowRequest, ahead: Sequence[float]) -> Estimate:
    """The work before the request and its own, at each endpoint."""
    own = request.item
    assert isinstance(own, list)
    return Estimate([before + each for before, each in zip(ahead, own, strict=True)], own)


class FullPool:
    """Flow control of a pool without room, in which `waiting` requests of `callers` wait."""

    def __init__(self, waiting: int, callers: int) -> None:
        rng = random.Random(waiting)
        self.control = FlowControl(FlowLimits(), estimate, lambda: 1.0)  # nothing is shed
        self.control.set_endpoints(ENDPOINTS, 0.0)
        self.costs = [[rng.choice((0.1, 0.4, 0.4, 0.4)) for _ in ENDPOINTS] for _ in range(1_000)]
        self.callers = [f"caller-{number}" for number in range(callers)]
        self.now = 0.0
        self.count = 0
        gc.collect()
        tracemalloc.start()
        for _ in range(waiting):
            self.submit()
        self.bytes_each = tracemalloc.get_traced_memory()[0] / waiting
        tracemalloc.stop()

    def submit(self) -> None:
        """Submit one request; it waits."""
        count = self.count = self.count + 1
        request = FlowRequest(
            self.costs[count % 1_000],
            priority=PRIORITIES[count % 3],
            flow=self.callers[count % len(self.callers)],
            tokens=2_000,
            prompt_tokens=1_500,
            size=2_000,
            ttl=1e9,
        )
        assert not self.control.submit(request, self.now)

    def run(self, times: int) -> tuple[float, int]:
        """CPU seconds for so many requests that are held and as many that are dispatched; and how many were stolen."""
        control, room = self.control, Room(1.0)
        stolen = 0
        start = time.process_time()
        for number in range(times):
            self.now += 0.001
            self.submit()
            (outcome,) = control.offer(ENDPOINTS[number % len(ENDPOINTS)], room, self.now)
            assert isinstance(outcome, Dispatched)
            stolen += outcome.how == "stolen"
        return time.process_time() - start, stolen


def unsaturated(times: int) -> float:
    """CPU seconds that so many requests cost which do not wait."""
    values = {RUNNING: 5.0, WAITING: 0.0, KV_USAGE: 0.3, BLOCKS: 10_000.0, BLOCK_SIZE: 16.0}
    work = Work(5, 99.0, 20_000.0, "pool")
    view = EndpointView("a", "vllm", Health.HEALTHY, "", values, {}, 100.0, 0, 3.0, work, Prefix(0.0, None))
    control, evidence, limits = FlowControl(FlowLimits(), estimate, lambda: 1.0), EndpointEvidence(), RoomLimits()
    start = time.process_time()
    for number in range(times):
        now = 100.1 + number * 1e-6
        room = headroom(view, evidence.evidence(), limits, now)
        assert not control.waiting
        assert room.requests >= 1
        assert room.opens_at <= now
        assert room.fits(1_500)
        evidence.sent(1_500, now)
        evidence.ended(now, now)
        if not number % 16:
            evidence.reset()  # as a page does
    return time.process_time() - start


def main(arguments: list[str] | None = None) -> int:
    """Print the table; always 0, also for a missed bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=2_000, help="requests per round")
    args = parser.parse_args(arguments)
    table, speed = Table(COLUMNS), MachineSpeed()
    pools = {(waiting, callers): FullPool(waiting, callers) for callers in CALLERS for waiting in WAITING_REQUESTS}
    found: dict[tuple[int, int], list[float]] = {key: [] for key in pools}
    stolen = dict.fromkeys(pools, 0)
    passing: list[float] = []
    for _ in range(args.rounds):  # in turn, so that a slow moment of the machine does not hit one of them alone
        for key, pool in pools.items():
            seconds, times = pool.run(args.times)
            found[key].append(seconds / args.times * 1e6)
            stolen[key] += times
        passing.append(unsaturated(args.times) / args.times * 1e6)
        speed.sample()
    us = {key: median(figures) for key, figures in found.items()}
    for (waiting, callers), pool in pools.items():
        key = (waiting, callers)
        table.row(waiting, callers, us[key], stolen[key] / args.rounds / args.times, pool.bytes_each)
    few, many = WAITING_REQUESTS[0], WAITING_REQUESTS[-1]
    for waiting in (few, many):
        print(bar(f"held and dispatched, {waiting:,} waiting, us", us[waiting, 1], BAR_US, format=".1f"))
    print(bar(f"{many:,} waiting over {few}", us[many, 1] / us[few, 1], BAR_RATIO, format=".2f"))
    print(bar("unsaturated request, us", median(passing), BAR_UNSATURATED_US, format=".1f"))
    print(speed.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
