"""More requests than a fleet can serve: the workload, the rules that are compared, and the figures of a run.

The workload is a trace in Mooncake's format, each of whose sessions has a priority and a caller. The rules: no control
at all; the reference picker's flow control (`ReferenceQueue`); and that of the agent. All pick by the same profile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from statistics import fmean
from typing import Final, NamedTuple

from agent.emulator.config import EmulatorConfig
from agent.pick.profile import build
from agent.pick.request import PickRequest
from agent.prefix.blocks import chain, seed
from agent.profiles import DEFAULT_PROFILE, PRESETS
from agent.replicas.service import TICK_SECONDS
from agent.requests.held_requests import HoldingSettings
from agent.requests.rejections import Rejection
from agent.requests.ticket import CONTINUE, WAIT, Result, Ticket
from tests.bench.fleet_agents import (
    SERVED,
    Charge,
    Fleet,
    FleetAgent,
    FleetShape,
    Served,
    Server,
    Surroundings,
    TraceCall,
)
from tests.bench.replay import BYTES_PER_TOKEN, Arrival

PRIORITIES: Final = (10, 0, -1)
BLOCK_TOKENS: Final = 512  # of the trace, the servers' caches and the index
NO_CONTROL: Final = "no control"
REFERENCE: Final = "reference"
OURS: Final = "ours"
_ALL_BLOCKS: Final = 1 << 20


# -- the workload ----------------------------------------------------------------------------------------------------


def sessions(arrivals: Sequence[Arrival]) -> list[int]:
    """The session of each request, counted from 0: those whose prompts have the same second block. The first block is
    one system prompt in all of the trace."""
    known: dict[int, int] = {}
    return [known.setdefault(arrival.blocks[min(1, len(arrival.blocks) - 1)], len(known)) for arrival in arrivals]


class Share(NamedTuple):
    """A caller of one priority, and its part of the sessions, relative to the other parts."""

    priority: int
    caller: str = ""
    part: float = 1.0


THREE_BANDS: Final = tuple(Share(priority) for priority in PRIORITIES)


def calls(arrivals: Sequence[Arrival], shares: Sequence[Share] = THREE_BANDS, draw: int = 1) -> list[TraceCall]:
    """The requests as they are sent: each session belongs to one of the shares, at random and always in the same
    way."""
    random = Random(draw)
    weights = [share.part for share in shares]
    number_of = sessions(arrivals)
    owners = random.choices(shares, weights, k=max(number_of) + 1)
    block_bytes = BLOCK_TOKENS * BYTES_PER_TOKEN
    found: list[TraceCall] = []
    for number, (arrival, session) in enumerate(zip(arrivals, number_of, strict=True)):
        text = b"".join([block.to_bytes(block_bytes, "little") for block in arrival.blocks])
        hashes = chain(text[: arrival.prompt_tokens * BYTES_PER_TOKEN], block_bytes, seed("model", b""), _ALL_BLOCKS)
        wanted = PickRequest(f"request {number}", "", arrival.prompt_tokens, hashes, BLOCK_TOKENS)
        owner = owners[session]
        blocks = arrival.blocks[: arrival.prompt_tokens // BLOCK_TOKENS]
        found.append(TraceCall(arrival.at, owner.priority, owner.caller, wanted, arrival.output_tokens, blocks))
    return found


# -- the reference's rule ---------------------------------------------------------------------------------------------


class ReferenceQueue:
    """The flow control of llm-d's router with its defaults, as a stage before the pick: bands in strict priority, first
    come first served in each, and one request a millisecond is dispatched while the pool is not saturated. It is picked
    then.

    Saturation is the mean over the endpoints of max(waiting requests / 5, KV usage / 0.8) on their last pages, which
    are read every 50 ms; an endpoint without a page counts as saturated. A band holds 5,000 requests. A request that
    has waited for 60 s is refused by a sweep once a second.
    """

    name = "reference"
    PAGE_SECONDS: Final = 0.05
    CYCLE_SECONDS: Final = 0.001
    SWEEP_SECONDS: Final = 1.0
    TTL_SECONDS: Final = 60.0
    MAX_REQUESTS: Final = 5_000
    QUEUE_THRESHOLD: Final = 5.0
    KV_THRESHOLD: Final = 0.8

    def __init__(self, around: Surroundings) -> None:
        self._time = around.time
        self._delay = around.shape.page_seconds
        self._saturation: dict[str, float] = dict.fromkeys(around.servers, 1.0)
        self._bands: dict[int, OrderedDict[Ticket, float]] = {}
        self._cycle_planned = False
        for number, server in enumerate(around.servers.values()):
            self._time.plan(self.PAGE_SECONDS * number / len(around.servers), partial(self._scrape, server))
        self._time.plan(self.SWEEP_SECONDS, self._sweep)

    def process(self, ticket: Ticket, now: float) -> Result:
        """The request waits for its turn in its band."""
        band = self._bands.setdefault(int(ticket.flow_headers.objective), OrderedDict())
        if len(band) >= self.MAX_REQUESTS:
            return Rejection("displaced", "The band is full.")
        band[ticket] = now
        self._plan_cycle(now)
        return WAIT

    def shut_down(self, now: float) -> None:
        """Nothing: it holds no ticket."""

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """The client left."""
        self._bands[int(ticket.flow_headers.objective)].pop(ticket, None)

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """Nothing is kept of a request that was dispatched."""

    def _plan_cycle(self, at: float) -> None:
        if not self._cycle_planned:
            self._cycle_planned = True
            self._time.plan(at, self._cycle)

    def _cycle(self) -> None:
        self._cycle_planned = False
        if fmean(self._saturation.values()) >= 1.0:
            return
        for _, band in sorted(self._bands.items(), reverse=True):
            if band:
                ticket, _ = band.popitem(last=False)
                self._plan_cycle(self._time.now + self.CYCLE_SECONDS)
                ticket.resume(CONTINUE)
                return

    def _scrape(self, server: Server) -> None:
        server.settle()
        engine, time = server.engine, self._time
        found = max(engine.waiting / self.QUEUE_THRESHOLD, engine.kv_usage / self.KV_THRESHOLD)
        time.plan(time.now + self._delay, partial(self._observe, server.address, found))
        time.plan(time.now + self.PAGE_SECONDS, partial(self._scrape, server))

    def _observe(self, address: str, saturation: float) -> None:
        self._saturation[address] = saturation
        self._plan_cycle(self._time.now)

    def _sweep(self) -> None:
        now = self._time.now
        self._time.plan(now + self.SWEEP_SECONDS, self._sweep)
        for band in self._bands.values():
            while band:
                ticket, since = next(iter(band.items()))
                if now - since < self.TTL_SECONDS:
                    break
                del band[ticket]
                ticket.resume(Rejection("expired", "The request has waited for its TTL."))


# -- runs -------------------------------------------------------------------------------------------------------------


class OverloadRule(NamedTuple):
    """A rule of flow control: its name, and the settings of ours."""

    name: str
    holding: HoldingSettings | None = None


DEFAULT_RULES: Final = (OverloadRule(NO_CONTROL), OverloadRule(REFERENCE), OverloadRule(OURS, HoldingSettings()))


def server_config(blocks: int = 6_000, rate: float = 20_480.0) -> EmulatorConfig:
    """A server of the routing bench, with decoding."""
    return EmulatorConfig(
        max_num_seqs=256,
        num_blocks=blocks + 1,
        block_size=BLOCK_TOKENS,
        max_model_len=blocks * BLOCK_TOKENS,
        prefill_tokens_per_second=rate,
    )


class Run(NamedTuple):
    """One run: what became of each call, and what flow control charged, in order."""

    served: list[Served]
    charges: list[Charge]


def run(
    sent: Sequence[TraceCall],
    rule: OverloadRule,
    *,
    agents: int = 1,
    servers: int = 8,
    profile: str = DEFAULT_PROFILE,
    rate: float | None = None,
    scrape_seconds: float = 1.0,
) -> Run:
    """Send the calls to a new fleet by this rule; two agents report to each other as replicas do."""
    shape = FleetShape(server_config(), servers, scrape_seconds, exchange_seconds=TICK_SECONDS, rate=rate)

    def make(name: str, around: Surroundings) -> FleetAgent:
        queue = ReferenceQueue(around) if rule.name == REFERENCE else None
        return FleetAgent(name, around, build(PRESETS[profile]), rule.holding, queue)

    fleet = Fleet(sent, shape, agents, make)
    served = fleet.run()
    return Run(served, sorted(charge for agent in fleet.agents for charge in agent.charges))


# -- figures ----------------------------------------------------------------------------------------------------------


class Figures(NamedTuple):
    """Figures of some of the calls of a run: seconds to the first token, and input and output tokens per second while
    requests arrive; the part of the prompt tokens that were in a cache; calls by what became of them."""

    requests: int
    p50: float
    p90: float
    tokens_per_second: float
    hits: float
    refused: Mapping[str, int]


def figures(run: Run, chosen: Callable[[TraceCall], bool] = lambda _call: True) -> Figures:
    """The figures of the chosen calls."""
    end = run.served[-1].call.at
    rows = [row for row in run.served if chosen(row.call)]
    served = [row for row in rows if row.outcome == SERVED]
    tokens = sum(row.call.wanted.prompt_tokens for row in served if row.first_token_at <= end)
    tokens += sum(row.call.output_tokens for row in served if row.ended_at <= end)
    prompts = sum(row.call.wanted.prompt_tokens for row in served)
    refused: dict[str, int] = {}
    for row in rows:
        if row.outcome != SERVED:
            refused[row.outcome] = refused.get(row.outcome, 0) + 1
    waits = sorted(row.first_token_at - row.call.at for row in served)
    return Figures(
        len(rows),
        percentile(waits, 0.5),
        percentile(waits, 0.9),
        tokens / end,
        sum(row.cached_tokens for row in served) / prompts if prompts else 0.0,
        refused,
    )


def percentile(ordered: Sequence[float], rank: float) -> float:
    """The value at `rank`, 0 to 1, of sorted values; not a number without any."""
    return ordered[min(len(ordered) - 1, int(rank * len(ordered)))] if ordered else float("nan")


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all shares are equal, 1/n where one of n has all."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


class Fairness(NamedTuple):
    """How two callers that both wait share a fleet. `jain` is of the input and output tokens that were dispatched;
    `lag` is the largest service lag in tokens: what a caller was charged less than half of what both were, over any
    part of that time. `seconds` is how long both wait."""

    jain: float
    lag: float
    seconds: float


def fairness(run: Run, callers: tuple[str, str]) -> Fairness:
    """The fairness between two callers in the longest time in which both have waiting requests."""
    start, end = _both_wait(run, callers)
    tokens = [
        sum(
            row.call.wanted.prompt_tokens + row.call.output_tokens
            for row in run.served
            if row.call.caller == caller and start <= row.dispatched_at < end
        )
        for caller in callers
    ]
    difference = lowest = highest = 0
    for charge in run.charges:
        if start <= charge.at < end:
            difference += charge.tokens if charge.caller == callers[0] else -charge.tokens
            lowest, highest = min(lowest, difference), max(highest, difference)
    return Fairness(jain(tokens), (highest - lowest) / 2, end - start)


def _both_wait(run: Run, callers: tuple[str, str]) -> tuple[float, float]:
    """The longest time in which each caller has a waiting request."""
    changes: list[tuple[float, int, str]] = []
    for row in run.served:
        until = min(row.dispatched_at, row.ended_at)
        if until > row.call.at:
            changes += [(row.call.at, 1, row.call.caller), (until, -1, row.call.caller)]
    waiting = dict.fromkeys(callers, 0)
    longest = (0.0, 0.0)
    since: float | None = None
    for at, more, caller in sorted(changes):
        waiting[caller] += more
        if min(waiting.values()) > 0:
            since = at if since is None else since
        elif since is not None:
            longest = max(longest, (since, at), key=lambda each: each[1] - each[0])
            since = None
    return longest
