"""Replays a recorded workload through the picker to emulated servers, in simulated time.

It uses the code of the agent: `chain` over the prompt's text, `PrefixIndex`, `RoutingStore` fed by pages through the
engine's `Extractor`, and `pick` with a profile. The servers are engines of the emulator. This module only orders the
events: requests arrive as recorded, each server is scraped every `scrape_seconds`, its page arrives `page_seconds`
later, and a request ends when the server ends it. Several agents may share the servers: requests reach them in turn,
and each knows of the others only what the pages show, or, with `exchange_seconds`, what they report to each other as
replicas do. Two runs of one workload are equal.
"""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import NamedTuple

from agent.emulator.config import EmulatorConfig
from agent.emulator.engine import EngineSimulation
from agent.emulator.jobs import Finished, FirstToken, JobSpec
from agent.emulator.metrics import PageWriter
from agent.engines import engine as engine_table
from agent.engines.mapping import Extractor
from agent.events import ignore
from agent.pick.decision import Pick
from agent.pick.picker import pick
from agent.pick.profile import Profile
from agent.pick.request import PickRequest
from agent.prefix.blocks import chain, seed
from agent.prefix.index import PrefixIndex
from agent.replicas.peer_part import PeerPart, PoolTarget
from agent.replicas.publisher import PoolPublisher
from agent.replicas.report import PeerReport, PoolReport, decode, encode
from agent.requests.outcomes import Outcomes
from agent.state.store import RoutingStore

# Bytes per token: the agent's default, so that its token counts are exact.
BYTES_PER_TOKEN = 4
# The first request arrives after the first scrape of every server.
LEAD_SECONDS = 2.0
# From an event to its report at another replica, where the last report is not recent.
LINK_SECONDS = 0.001
_ALL_BLOCKS = 1 << 20


class Arrival(NamedTuple):
    """A request of the workload; `blocks` are the hashes of its prompt's blocks (the last may be partial)."""

    at: float
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int]


def mooncake(lines: Iterable[str], speed: float) -> list[Arrival]:
    """The requests of a trace in Mooncake's format (JSON lines), arriving `speed` times as fast as recorded."""
    rows = (json.loads(line) for line in lines)
    return [
        Arrival(row["timestamp"] / 1000 / speed, row["input_length"], row["output_length"], row["hash_ids"])
        for row in rows
    ]


def spread(arrivals: Sequence[Arrival], seconds: float) -> list[Arrival]:
    """The same requests, each later by up to `seconds`, evenly and in one way: a trace that records times in steps has
    many requests at one instant."""
    draw = Random(1)
    return sorted((each._replace(at=each.at + seconds * draw.random()) for each in arrivals), key=lambda each: each.at)


def ideal_hit_ratio(arrivals: Iterable[Arrival]) -> float:
    """The hit ratio of one unlimited cache shared by all servers."""
    seen: set[int] = set()
    hits = blocks = 0
    for arrival in arrivals:
        known = next((index for index, block in enumerate(arrival.blocks) if block not in seen), len(arrival.blocks))
        hits += known
        blocks += len(arrival.blocks)
        seen.update(arrival.blocks)
    return hits / blocks if blocks else 0.0


class Assignment(NamedTuple):
    """The server of a request, the tokens that the router expects to be uncached and cached there, and the blocks of
    the prompt."""

    address: str
    uncached_tokens: float
    hit_tokens: float
    chain: Sequence[int] = ()


# (store, number of the request, text of its prompt, now) -> assignment
Router = Callable[[RoutingStore, int, bytes, float], Assignment]


def round_robin(store: RoutingStore, number: int, text: bytes, now: float) -> Assignment:
    """Each server in turn."""
    endpoints = store.snapshot(now).endpoints
    return Assignment(endpoints[number % len(endpoints)].address, tokens(text), 0)


def least_requests(store: RoutingStore, number: int, text: bytes, now: float) -> Assignment:
    """The server with the fewest requests in flight; ties are broken in turn."""
    endpoints = store.snapshot(now).endpoints
    turn = number % len(endpoints)
    view = min((*endpoints[turn:], *endpoints[:turn]), key=lambda view: view.work.requests)
    return Assignment(view.address, tokens(text), 0)


class ProfileRouter:
    """The picker with a profile and an index, as one picker port uses them.

    The request id is `name` and the request's number. Ties are broken by its hash, so another name gives another run.
    """

    def __init__(self, profile: Profile, index: PrefixIndex, block_tokens: int, name: str = "request") -> None:
        self.profile = profile
        self.index = index
        self.block_tokens = block_tokens
        self.name = name
        self.cpu_seconds = 0.0

    def __call__(self, store: RoutingStore, number: int, text: bytes, now: float) -> Assignment:
        start = time.process_time()
        hashes = chain(text, self.block_tokens * BYTES_PER_TOKEN, seed("model", b""), _ALL_BLOCKS)
        request = PickRequest(f"{self.name} {number}", "", tokens(text), hashes, self.block_tokens)
        answer = pick(store.snapshot(now), request, self.profile, self.index, now)
        assert isinstance(answer, Pick), answer
        self.index.record(answer.endpoint, hashes)
        self.cpu_seconds += time.process_time() - start
        return Assignment(answer.endpoint, answer.uncached_tokens, answer.hit_tokens, hashes)


def tokens(text: bytes) -> int:
    """The tokens of a prompt as the agent counts them."""
    return -(-len(text) // BYTES_PER_TOKEN)


class ReplayFleet(NamedTuple):
    """The servers, all with one configuration, and their scrape interval.

    With `decoding` a request generates the recorded number of tokens, without it one. With `scrape_seconds` above the
    length of the workload only the first page is scraped. `exchange_seconds`: after a first event, an agent reports
    what happened `LINK_SECONDS` later, and at most so often; None: never.
    """

    config: EmulatorConfig
    servers: int = 8
    decoding: bool = False
    scrape_seconds: float = 1.0
    page_seconds: float = 0.005
    exchange_seconds: float | None = None


@dataclass
class ReplayResult:
    """The result of a replay: seconds to first token in order of arrival; blocks are those of prompts."""

    first_token_seconds: list[float]
    blocks: int = 0
    hit_blocks: int = 0
    predicted_hit_tokens: float = 0.0
    served_hit_tokens: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)

    @property
    def hit_ratio(self) -> float:
        """Ratio of the blocks found in a cache."""
        return self.hit_blocks / self.blocks if self.blocks else 0.0

    @property
    def mean(self) -> float:
        """Mean seconds to first token."""
        return sum(self.first_token_seconds) / len(self.first_token_seconds)

    def percentile(self, rank: float) -> float:
        """The percentile of the seconds to first token at `rank`, 0 to 1."""
        ordered = sorted(self.first_token_seconds)
        return ordered[min(len(ordered) - 1, int(rank * len(ordered)))]


class ReplayAgent(NamedTuple):
    """One agent before the servers; its store is new and gets its endpoints from the replay. `prefixes` is the index of
    its router, for what others report."""

    route: Router
    store: RoutingStore
    prefixes: PrefixIndex | None = None


def replay(arrivals: Sequence[Arrival], agents: Sequence[ReplayAgent], fleet: ReplayFleet) -> ReplayResult:
    """Replay `arrivals`, in order of time, through these agents in turn, with new servers."""
    return _Replay(arrivals, agents, fleet).run()


class _ReplayServer:
    """One emulated server, and the requests of its jobs."""

    def __init__(self, config: EmulatorConfig) -> None:
        self.engine = EngineSimulation(config)
        self.writer = PageWriter(config, "model")
        self.running: dict[int, _RunningJob] = {}  # by the id of the job


class _RunningJob(NamedTuple):
    """The number of a request, and the agent and the id of its accounting."""

    number: int
    agent: ReplayAgent
    work_id: int


class _PageEvent(NamedTuple):
    """A store's agent scrapes a server at `at`, or the page arrives then."""

    at: float
    sequence: int  # orders the events of one time
    address: str
    page: bytes | None
    store: RoutingStore


class _ReportEvent(NamedTuple):
    """An agent reports to the others at `at`."""

    at: float
    sequence: int
    agent: int


class _Exchange:
    """The reports between the agents: encoded, decoded and applied as between replicas. `plan` is called with the
    number of an agent that has something to report."""

    def __init__(self, agents: Sequence[ReplayAgent], plan: Callable[[int], None]) -> None:
        self.publishers = [PoolPublisher("bench", "", partial(plan, number)) for number in range(len(agents))]
        self.numbers = [0] * len(agents)
        self.last = [0.0] * len(agents)
        targets = [
            PoolTarget(agent.store, index, Outcomes(agent.store, index, ignore), "")
            for agent in agents
            for index in [PrefixIndex() if agent.prefixes is None else agent.prefixes]
        ]
        self.parts = [
            {
                other: PeerPart(lambda _pool, target=target: target)  # type: ignore[misc]
                for other in range(len(agents))
                if other != number
            }
            for number, target in enumerate(targets)
        ]
        for number, publisher in enumerate(self.publishers):
            publisher.listen(listened=True)
            self._send(number, publisher.full({}, 0.0), 0.0, full=True)

    def report(self, number: int, now: float) -> None:
        """Bring what happened at one agent to all others."""
        self.last[number] = now
        report = self.publishers[number].take(now)
        if report is not None:
            self._send(number, report, now, full=False)

    def _send(self, number: int, report: PoolReport, now: float, *, full: bool) -> None:
        data = encode(PeerReport(self.numbers[number], full=full, pools=[report]))
        self.numbers[number] += 1
        for other, parts in enumerate(self.parts):
            if other != number:
                parts[number].apply(decode(data), now)


class _Replay:
    def __init__(self, arrivals: Sequence[Arrival], agents: Sequence[ReplayAgent], fleet: ReplayFleet) -> None:
        self.arrivals = arrivals
        self.agents = agents
        self.fleet = fleet
        self.servers = {f"10.0.0.{index + 1}:8000": _ReplayServer(fleet.config) for index in range(fleet.servers)}
        # All first scrapes are spread evenly, so that no two of one interval are at the same time.
        scrapes = [(address, agent.store) for address in self.servers for agent in agents]
        first = min(1.0, fleet.scrape_seconds) / len(scrapes)
        self.due: list[_PageEvent | _ReportEvent] = [
            _PageEvent(first * index, index, address, None, store) for index, (address, store) in enumerate(scrapes)
        ]
        self.now = 0.0
        self.places = {id(agent.store): number for number, agent in enumerate(agents)}
        self.exchange: _Exchange | None = None
        self.sequence = len(scrapes)
        self.extract = Extractor(engine_table("vllm")).extract
        self.result = ReplayResult([0.0] * len(arrivals), requests=dict.fromkeys(self.servers, 0))

    def run(self) -> ReplayResult:
        agents, result = self.agents, self.result
        for agent in agents:
            agent.store.set_endpoints(dict.fromkeys(self.servers, "vllm"), 0.0)
        if self.fleet.exchange_seconds is not None:
            self.exchange = _Exchange(agents, self._plan_report)
        block_bytes = self.fleet.config.block_size * BYTES_PER_TOKEN
        now = LEAD_SECONDS
        for number, arrival in enumerate(self.arrivals):
            now = arrival.at + LEAD_SECONDS
            self._scrape_until(now)
            for server in self.servers.values():
                self._settle(server, now)
            text = b"".join([block.to_bytes(block_bytes, "little") for block in arrival.blocks])
            agent = agents[number % len(agents)]
            text = text[: arrival.prompt_tokens * BYTES_PER_TOKEN]
            self._submit(number, arrival, agent.route(agent.store, number, text, now), agent, now)
        result.rates = [view.work.rate for agent in agents for view in agent.store.snapshot(now).endpoints]
        for server in self.servers.values():
            while (at := server.engine.next_event_at()) is not None:
                self._settle(server, at)
        result.served_hit_tokens = sum(server.engine.counters.prefix_hits for server in self.servers.values())
        left = sum(agent.store.in_flight for agent in agents)
        if left:
            raise RuntimeError(f"{left} requests never ended")
        return result

    def _scrape_until(self, now: float) -> None:
        """Process all scrapes and page arrivals up to `now`."""
        fleet, due = self.fleet, self.due
        while due[0].at <= now:
            event = heapq.heappop(due)
            self.now = event.at
            if isinstance(event, _ReportEvent):
                for server in self.servers.values():
                    self._settle(server, event.at)
                assert self.exchange is not None
                self.exchange.report(event.agent, event.at)
                continue
            at, _, address, page, store = event
            server = self.servers[address]
            self._settle(server, at)
            if page is None:
                self._plan(at + fleet.page_seconds, address, server.writer.page(server.engine, at), store)
                self._plan(at + fleet.scrape_seconds, address, None, store)
            else:
                scraped_at = at - fleet.page_seconds
                store.observed(address, self.extract(page), scraped_at, fleet.page_seconds, len(page))

    def _plan_report(self, agent: int) -> None:
        self.sequence += 1
        exchange, interval = self.exchange, self.fleet.exchange_seconds
        if exchange is not None and interval is not None:
            at = max(self.now + LINK_SECONDS, exchange.last[agent] + interval)
            heapq.heappush(self.due, _ReportEvent(at, self.sequence, agent))

    def _plan(self, at: float, address: str, page: bytes | None, store: RoutingStore) -> None:
        self.sequence += 1
        heapq.heappush(self.due, _PageEvent(at, self.sequence, address, page, store))

    def _submit(self, number: int, arrival: Arrival, assignment: Assignment, agent: ReplayAgent, now: float) -> None:
        server, result, store = self.servers[assignment.address], self.result, agent.store
        self.now = now
        full = arrival.prompt_tokens // self.fleet.config.block_size
        generated = max(1, arrival.output_tokens) if self.fleet.decoding else 1
        work_id = store.started(assignment.address, assignment.uncached_tokens, assignment.hit_tokens, now)
        if self.exchange is not None:
            publisher = self.exchange.publishers[self.places[id(agent.store)]]
            tokens_there = assignment.uncached_tokens, assignment.hit_tokens
            publisher.started(work_id, assignment.address, *tokens_there, assignment.chain, now)
        job = server.engine.submit(now, JobSpec(arrival.prompt_tokens, generated, arrival.blocks[:full]))
        server.running[job] = _RunningJob(number, agent, work_id)
        result.requests[assignment.address] += 1
        result.blocks += len(arrival.blocks)
        result.predicted_hit_tokens += assignment.hit_tokens

    def _settle(self, server: _ReplayServer, now: float) -> None:
        """Advance a server to `now` and report the requests that ended."""
        at = server.engine.next_event_at()
        if at is None or at > now:
            return
        for event in server.engine.advance(now):
            if isinstance(event, FirstToken):
                number = server.running[event.id].number
                self.result.first_token_seconds[number] = event.at - self.arrivals[number].at - LEAD_SECONDS
                self.result.hit_blocks += event.cached_tokens // self.fleet.config.block_size
            elif isinstance(event, Finished):
                job = server.running.pop(event.id)
                job.agent.store.ended(job.work_id, event.at)
                if self.exchange is not None:
                    self.exchange.publishers[self.places[id(job.agent.store)]].ended(job.work_id)
