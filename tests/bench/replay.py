"""Replays a recorded workload through the picker to emulated servers, in simulated time.

It uses the code of the agent: `chain` over the prompt's text, `PrefixIndex`, `RoutingStore` fed by pages through the
engine's `Extractor`, and `pick` with a profile. The servers are engines of the emulator. This module only orders the
events: requests arrive as recorded, each server is scraped every `scrape_seconds`, its page arrives `page_seconds`
later, and a request ends when the server ends it. Two runs of one workload are equal.
"""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.emulator.config import EmulatorConfig
from agent.emulator.engine import EngineSimulation
from agent.emulator.jobs import Finished, FirstToken, JobSpec
from agent.emulator.metrics import PageWriter
from agent.engines import engine as engine_table
from agent.engines.mapping import Extractor
from agent.pick.decision import Pick
from agent.pick.picker import pick
from agent.pick.profile import Profile
from agent.pick.request import PickRequest
from agent.prefix.blocks import chain, seed
from agent.prefix.index import PrefixIndex
from agent.state.store import RoutingStore

# Bytes per token: the agent's default, so that its token counts are exact.
BYTES_PER_TOKEN = 4
# The first request arrives after the first scrape of every server.
LEAD_SECONDS = 2.0
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
    """The server of a request, and the tokens that the router expects to be uncached and cached there."""

    address: str
    uncached_tokens: float
    hit_tokens: float


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
        return Assignment(answer.endpoint, answer.uncached_tokens, answer.hit_tokens)


def tokens(text: bytes) -> int:
    """The tokens of a prompt as the agent counts them."""
    return -(-len(text) // BYTES_PER_TOKEN)


class ReplayFleet(NamedTuple):
    """The servers, all with one configuration, and their scrape interval.

    With `decoding` a request generates the recorded number of tokens, without it one. With `scrape_seconds` above the
    length of the workload only the first page is scraped.
    """

    config: EmulatorConfig
    servers: int = 8
    decoding: bool = False
    scrape_seconds: float = 1.0
    page_seconds: float = 0.005


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


def replay(arrivals: Sequence[Arrival], route: Router, fleet: ReplayFleet, store: RoutingStore) -> ReplayResult:
    """Replay `arrivals`, in order of time, with new servers; `store` is new and gets its endpoints here."""
    return _Replay(arrivals, route, fleet, store).run()


class _ReplayServer:
    """One emulated server, and the requests of its jobs."""

    def __init__(self, config: EmulatorConfig) -> None:
        self.engine = EngineSimulation(config)
        self.writer = PageWriter(config, "model")
        self.running: dict[int, tuple[int, int]] = {}  # job id -> number of the request, id of its accounting


class _PageEvent(NamedTuple):
    """A server is scraped at `at`, or its page arrives then."""

    at: float
    sequence: int  # orders the events of one time
    address: str
    page: bytes | None


class _Replay:
    def __init__(self, arrivals: Sequence[Arrival], route: Router, fleet: ReplayFleet, store: RoutingStore) -> None:
        self.arrivals = arrivals
        self.route = route
        self.fleet = fleet
        self.store = store
        self.servers = {f"10.0.0.{index + 1}:8000": _ReplayServer(fleet.config) for index in range(fleet.servers)}
        first = min(1.0, fleet.scrape_seconds) / fleet.servers
        self.due = [_PageEvent(first * index, index, address, None) for index, address in enumerate(self.servers)]
        self.sequence = fleet.servers
        self.extract = Extractor(engine_table("vllm")).extract
        self.result = ReplayResult([0.0] * len(arrivals), requests=dict.fromkeys(self.servers, 0))

    def run(self) -> ReplayResult:
        store, result = self.store, self.result
        store.set_endpoints(dict.fromkeys(self.servers, "vllm"), 0.0)
        block_bytes = self.fleet.config.block_size * BYTES_PER_TOKEN
        now = LEAD_SECONDS
        for number, arrival in enumerate(self.arrivals):
            now = arrival.at + LEAD_SECONDS
            self._scrape_until(now)
            for server in self.servers.values():
                self._settle(server, now)
            text = b"".join([block.to_bytes(block_bytes, "little") for block in arrival.blocks])
            assignment = self.route(store, number, text[: arrival.prompt_tokens * BYTES_PER_TOKEN], now)
            self._submit(number, arrival, assignment, now)
        result.rates = [view.work.rate for view in store.snapshot(now).endpoints]
        for server in self.servers.values():
            while (at := server.engine.next_event_at()) is not None:
                self._settle(server, at)
        result.served_hit_tokens = sum(server.engine.counters.prefix_hits for server in self.servers.values())
        if store.in_flight:
            raise RuntimeError(f"{store.in_flight} requests never ended")
        return result

    def _scrape_until(self, now: float) -> None:
        """Process all scrapes and page arrivals up to `now`."""
        fleet, due = self.fleet, self.due
        while due[0].at <= now:
            at, _, address, page = heapq.heappop(due)
            server = self.servers[address]
            self._settle(server, at)
            if page is None:
                self._plan(at + fleet.page_seconds, address, server.writer.page(server.engine, at))
                self._plan(at + fleet.scrape_seconds, address, None)
            else:
                scraped_at = at - fleet.page_seconds
                self.store.observed(address, self.extract(page), scraped_at, fleet.page_seconds, len(page))

    def _plan(self, at: float, address: str, page: bytes | None) -> None:
        self.sequence += 1
        heapq.heappush(self.due, _PageEvent(at, self.sequence, address, page))

    def _submit(self, number: int, arrival: Arrival, assignment: Assignment, now: float) -> None:
        server, result = self.servers[assignment.address], self.result
        full = arrival.prompt_tokens // self.fleet.config.block_size
        generated = max(1, arrival.output_tokens) if self.fleet.decoding else 1
        ticket = self.store.started(assignment.address, assignment.uncached_tokens, assignment.hit_tokens, now)
        job = server.engine.submit(now, JobSpec(arrival.prompt_tokens, generated, arrival.blocks[:full]))
        server.running[job] = (number, ticket)
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
                number, _ = server.running[event.id]
                self.result.first_token_seconds[number] = event.at - self.arrivals[number].at - LEAD_SECONDS
                self.result.hit_blocks += event.cached_tokens // self.fleet.config.block_size
            elif isinstance(event, Finished):
                _, ticket = server.running.pop(event.id)
                self.store.ended(ticket, event.at)
