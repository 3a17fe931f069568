"""The CPU cost and the memory of flow control.

    make bench-flow [ARGS='--rounds 9 --times 2000']

An unsaturated request: eight endpoints have room. A request goes through the pipeline from its tokens to its end, with
the stage that picks as it is in production, once with flow control and once without; `added` is the median over rounds
of the difference.

A held request, the queue alone: a pool of eight endpoints is full. Each measured request is held (planned, queued) and
another one is dispatched, because an endpoint has room for one, so the number that waits stays the same. Each request
is of one of three priorities, its prompt is warm at a random endpoint, and the cost of each endpoint is a sum of two
numbers: the profile's own cost is measured by `make bench-pick`.

A held request, through the stages: the same with the routing state, the prefix index and the least-cost profile, so a
request is ranked twice: when it is planned, and when it is dispatched. Its prompt has 31 blocks, of which 16 are the
beginning of one of 200 conversations. The bytes are those of its ticket, its place in the queue and its planned blocks,
without the body, which is released before.

Each figure is the median over rounds of the mean of a round.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Sequence
from statistics import median

from agent.engines.mapping import Extraction
from agent.events import ignore
from agent.flow.control import BandLimits, Estimate, FlowControl, FlowLimits
from agent.flow.outcomes import Dispatched
from agent.flow.request import FlowRequest
from agent.flow.room import Room, RoomLimits
from agent.pick.decision import Pick
from agent.pick.profile import build
from agent.pick.request import PickRequest
from agent.prefix.index import PrefixIndex
from agent.profiles import PRESETS
from agent.requests.flow_terms import FlowHeaders, FlowTerms
from agent.requests.held_requests import HeldRequests, HoldingSettings
from agent.requests.load_reports import LoadReports
from agent.requests.outcomes import Outcomes
from agent.requests.pipeline import Pipeline
from agent.requests.rejections import Rejection
from agent.requests.stages.pick import PickStage
from agent.requests.ticket import CONTINUE, Request, Result, Ticket
from agent.signals import BLOCK_SIZE, BLOCKS, KV_USAGE, RUNNING, WAITING, Value
from agent.state.prefill_rate import RateLimits
from agent.state.store import RoutingStore
from tests.bench.machine_speed import MachineSpeed
from tests.bench.table import Column, Table, bar

ENDPOINTS = tuple(f"10.0.0.{number}:8000" for number in range(1, 9))
WAITING_REQUESTS = (10, 1_000, 10_000)
CALLERS = (1, 100)
PRIORITIES = (-1, 0, 10)
SLICES = 10  # of a round of unsaturated requests, with and without flow control in turn
BAR_US, BAR_RATIO, BAR_UNSATURATED_US = 30.0, 1.3, 5.0

COLUMNS = (
    Column("waiting", 7, ",d"),
    Column("callers", 7, ",d"),
    Column("held and dispatched, us", 23, ".1f"),
    Column("stolen", 6, ".3f"),
    Column("bytes a request", 15, ",.0f"),
)
STAGE_COLUMNS = (
    Column("waiting", 7, ",d"),
    Column("held and dispatched through the stages, us", 42, ".1f"),
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


class WantedStage:
    """Sets what the stages before the pick find in a body."""

    name = "wanted"

    def __init__(self) -> None:
        self.wanted = PickRequest("", "m", 0)

    def process(self, ticket: Ticket, now: float) -> Result:
        """CONTINUE."""
        ticket.wanted = self.wanted
        return CONTINUE

    def shut_down(self, now: float) -> None:
        pass

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """Never called."""

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """Nothing."""


class StagedPool:
    """Eight endpoints, and the pipeline from the tokens of a request to its pick."""

    def __init__(self, slots: float, *, holding: bool = True, waiting: int = 0) -> None:
        self.now = 100.0
        self.count = 0
        self.running: deque[Ticket] = deque()
        self.woken = False
        store = RoutingStore("pool", stale_after=1e9, rate=RateLimits(fixed=1e6))
        store.set_endpoints(dict.fromkeys(ENDPOINTS, "vllm"), 0.0)
        values: dict[str, Value] = {RUNNING: 0.0, WAITING: 0.0, KV_USAGE: 0.3, BLOCKS: 1e6, BLOCK_SIZE: 16.0}
        for address in ENDPOINTS:
            store.observed(address, Extraction(values, (), ()), self.now, 0.0, 100)
        index, profile = PrefixIndex(), build(PRESETS["least-cost"])
        room = RoomLimits(slots=slots, queued=0.0, max_wait_seconds=1e9)
        settings = HoldingSettings(limits=FlowLimits(band=BandLimits(ttl=1e9)), room=room)
        self.held = HeldRequests(store, index, profile, settings, self._wake, lambda: 1.0)
        stage = PickStage(
            store,
            index,
            profile,
            lambda: self.now,
            ignore,
            lambda *_: None,
            0,
            Outcomes(store, index, ignore),
            lambda *_: None,
            held=self.held if holding else None,
            terms=self._terms,
        )
        self._wanted = WantedStage()
        sink = LoadReports(store, {}, ignore)
        self._pipeline = Pipeline(
            "pool", (self._wanted, stage), lambda: self.now, ignore, sink, Outcomes(store, index, ignore)
        )
        rng = random.Random(waiting)
        starts = [[rng.getrandbits(63) for _ in range(16)] for _ in range(200)]
        self._chains = [(*starts[number % 200], *(rng.getrandbits(63) for _ in range(15))) for number in range(1_000)]
        if waiting:
            for _ in ENDPOINTS:
                self.submit()
            gc.collect()
            tracemalloc.start()
            for _ in range(waiting):
                self.submit()
            self.bytes_each = tracemalloc.get_traced_memory()[0] / waiting
            tracemalloc.stop()

    def _wake(self, at: float) -> None:
        self.woken = self.woken or at <= self.now

    def _terms(self, _headers: FlowHeaders, _model: str) -> FlowTerms:
        return FlowTerms(PRIORITIES[self.count % 3], "caller")

    def _decided(self, ticket: Ticket, decision: Pick | Rejection) -> None:
        self.running.append(ticket)

    def submit(self) -> None:
        """Submit one request."""
        count = self.count = self.count + 1
        name = f"r{count}"
        self._wanted.wanted = PickRequest(name, "m", 1_984, self._chains[count % 1_000])
        self._pipeline.submit(Request(name), self._decided)

    def pass_through(self, times: int) -> float:
        """CPU seconds for so many requests that are picked at once and end."""
        start = time.process_time()
        for _ in range(times):
            self.now += 0.001
            self.submit()
            if len(self.running) > 16:
                self.running.popleft().end("closed")
        return time.process_time() - start

    def hold(self, times: int) -> float:
        """CPU seconds for so many requests that are held and as many that end and make room for another one."""
        start = time.process_time()
        for _ in range(times):
            self.now += 0.001
            self.submit()
            self.running.popleft().end("closed")
            self.woken = False
            self.held.run(self.now)
        return time.process_time() - start


def main(arguments: list[str] | None = None) -> int:
    """Print the table; always 0, also for a missed bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--times", type=int, default=2_000, help="requests per round")
    args = parser.parse_args(arguments)
    table, speed = Table(COLUMNS), MachineSpeed()
    pools = {(waiting, callers): FullPool(waiting, callers) for callers in CALLERS for waiting in WAITING_REQUESTS}
    few, many = WAITING_REQUESTS[0], WAITING_REQUESTS[-1]
    found: dict[tuple[int, int], list[float]] = {key: [] for key in pools}
    stolen = dict.fromkeys(pools, 0)
    staged = {waiting: StagedPool(1.0, waiting=waiting) for waiting in (few, many)}
    passing = {holding: StagedPool(1e6, holding=holding) for holding in (True, False)}
    held: dict[int, list[float]] = {waiting: [] for waiting in staged}
    added: list[float] = []
    whole: list[float] = []
    for pool in passing.values():
        pool.pass_through(args.times)
    for _ in range(args.rounds):  # in turn, so that a slow moment of the machine does not hit one of them alone
        for key, full in pools.items():
            seconds, times = full.run(args.times)
            found[key].append(seconds / args.times * 1e6)
            stolen[key] += times
        for waiting, pool in staged.items():
            held[waiting].append(pool.hold(args.times // 4) / (args.times // 4) * 1e6)
        differences = []
        for _ in range(SLICES):
            figures = {holding: pool.pass_through(args.times // SLICES) for holding, pool in passing.items()}
            differences.append((figures[True] - figures[False]) / (args.times // SLICES) * 1e6)
            whole.append(figures[True] / (args.times // SLICES) * 1e6)
        added.append(median(differences))
        speed.sample()
    us = {key: median(figures) for key, figures in found.items()}
    for (waiting, callers), full in pools.items():
        key = (waiting, callers)
        table.row(waiting, callers, us[key], stolen[key] / args.rounds / args.times, full.bytes_each)
    print()
    stages = Table(STAGE_COLUMNS)
    for waiting, pool in staged.items():
        stages.row(waiting, median(held[waiting]), pool.bytes_each)
    print()
    for waiting in (few, many):
        print(bar(f"held and dispatched, {waiting:,} waiting, us", us[waiting, 1], BAR_US, format=".1f"))
    print(bar(f"{many:,} waiting over {few}", us[many, 1] / us[few, 1], BAR_RATIO, format=".2f"))
    print(bar("added to an unsaturated request, us", median(added), BAR_UNSATURATED_US, format=".1f"))
    print(f"the unsaturated request itself: {median(whole):.1f} us")
    through = median(held[many]) / median(held[few])
    print(bar(f"through the stages, {many:,} waiting over {few}", through, BAR_RATIO, format=".2f"))
    print(speed.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
