"""A recorded workload played through the picker to emulated servers, in simulated time.

What decides is the product's own: `chain` over the prompt's text, `PrefixIndex`, `RoutingStore` fed by pages through
the engine's `Extractor`, `pick` with a profile. What answers is the emulator's pure engine. Only the order of events is
made here: requests arrive as recorded, each server is asked for its page every `scrape_seconds`, the page is there
`page_seconds` later, and the end of a request is told when the server ends it. Two runs of one workload are equal.
"""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.emulator.engine import Engine
from agent.emulator.metrics import PageWriter
from agent.emulator.orders import Finished, FirstToken, Order
from agent.emulator.settings import Settings
from agent.engines import engine as engine_table
from agent.engines.mapping import Extractor
from agent.pick.decision import Pick
from agent.pick.picker import pick
from agent.pick.profile import Profile
from agent.pick.request import PickRequest
from agent.prefix.blocks import chain, seed
from agent.prefix.index import PrefixIndex
from agent.state.store import RoutingStore

# Bytes of text that stand for a token: the agent's own default, so its count of tokens is right here.
BYTES_PER_TOKEN = 4
# Every server was asked for its first page before the first request comes.
LEAD_SECONDS = 2.0
_ALL_BLOCKS = 1 << 20


class Arrival(NamedTuple):
    """A request of the workload; `blocks` names its prompt's blocks, the last of which may be partly filled."""

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
    """The part of all blocks that one endless cache, shared by all servers, would have held."""
    seen: set[int] = set()
    hits = blocks = 0
    for arrival in arrivals:
        known = next((place for place, name in enumerate(arrival.blocks) if name not in seen), len(arrival.blocks))
        hits += known
        blocks += len(arrival.blocks)
        seen.update(arrival.blocks)
    return hits / blocks if blocks else 0.0


class Choice(NamedTuple):
    """Where a request goes, and what the chooser expects of it there."""

    address: str
    uncached_tokens: float
    hit_tokens: float


# (store, number of the request, text of its prompt, now) -> choice
Chooser = Callable[[RoutingStore, int, bytes, float], Choice]


def round_robin(store: RoutingStore, number: int, text: bytes, now: float) -> Choice:
    """One after the other."""
    endpoints = store.snapshot(now).endpoints
    return Choice(endpoints[number % len(endpoints)].address, tokens(text), 0)


def least_requests(store: RoutingStore, number: int, text: bytes, now: float) -> Choice:
    """The fewest requests in flight; among equals, one after the other."""
    endpoints = store.snapshot(now).endpoints
    turn = number % len(endpoints)
    view = min((*endpoints[turn:], *endpoints[:turn]), key=lambda view: view.work.requests)
    return Choice(view.address, tokens(text), 0)


class ByProfile:
    """The picker with a profile and an index: what one picker port does with each request.

    Requests are called `name` and their number; ties are broken by a hash of that, so another name is another run.
    """

    def __init__(self, profile: Profile, index: PrefixIndex, block_tokens: int, name: str = "request") -> None:
        self.profile = profile
        self.index = index
        self.block_tokens = block_tokens
        self.name = name
        self.cpu_seconds = 0.0

    def __call__(self, store: RoutingStore, number: int, text: bytes, now: float) -> Choice:
        began = time.process_time()
        hashes = chain(text, self.block_tokens * BYTES_PER_TOKEN, seed("model", b""), _ALL_BLOCKS)
        request = PickRequest(f"{self.name} {number}", "", tokens(text), hashes, self.block_tokens)
        answer = pick(store.snapshot(now), request, self.profile, self.index, now)
        assert isinstance(answer, Pick), answer
        self.index.record(answer.endpoint, hashes)
        self.cpu_seconds += time.process_time() - began
        return Choice(answer.endpoint, answer.uncached_tokens, answer.hit_tokens)


def tokens(text: bytes) -> int:
    """The tokens of a prompt, counted as the agent counts them."""
    return -(-len(text) // BYTES_PER_TOKEN)


class Fleet(NamedTuple):
    """The servers, all alike, and how they are asked for their pages.

    With `decoding` a request writes as many tokens as were recorded, without it one. No page is asked for when
    `scrape_seconds` is above the length of the workload, but the first.
    """

    settings: Settings
    servers: int = 8
    decoding: bool = False
    scrape_seconds: float = 1.0
    page_seconds: float = 0.005


@dataclass
class Outcome:
    """What came of a replay: seconds to first token by request, in order of arrival; blocks are those of prompts."""

    first_token_seconds: list[float]
    blocks: int = 0
    hit_blocks: int = 0
    predicted_hit_tokens: float = 0.0
    served_hit_tokens: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)

    @property
    def hit_ratio(self) -> float:
        """Blocks found in a cache over all blocks."""
        return self.hit_blocks / self.blocks if self.blocks else 0.0

    @property
    def mean(self) -> float:
        """Mean seconds to first token."""
        return sum(self.first_token_seconds) / len(self.first_token_seconds)

    def percentile(self, rank: float) -> float:
        """The seconds to first token that a part `rank` (0 to 1) of the requests did not exceed."""
        ordered = sorted(self.first_token_seconds)
        return ordered[min(len(ordered) - 1, int(rank * len(ordered)))]


def replay(arrivals: Sequence[Arrival], choose: Chooser, fleet: Fleet, store: RoutingStore) -> Outcome:
    """Play `arrivals`, which are in order of time, to a fresh fleet; `store` is new and gets its endpoints here."""
    return _Replay(arrivals, choose, fleet, store).run()


class _Server:
    """One emulated server with its page, and which request each of its ids is."""

    def __init__(self, settings: Settings) -> None:
        self.engine = Engine(settings)
        self.writer = PageWriter(settings, "model")
        self.running: dict[int, tuple[int, int]] = {}  # id -> number of the request, ticket


class _Due(NamedTuple):
    """A server is to be asked for its page at `at`, or the page that it gave is there."""

    at: float
    turn: int  # keeps the order of what is due at one time
    address: str
    page: bytes | None


class _Replay:
    def __init__(self, arrivals: Sequence[Arrival], choose: Chooser, fleet: Fleet, store: RoutingStore) -> None:
        self.arrivals = arrivals
        self.choose = choose
        self.fleet = fleet
        self.store = store
        self.servers = {f"10.0.0.{place + 1}:8000": _Server(fleet.settings) for place in range(fleet.servers)}
        first = min(1.0, fleet.scrape_seconds) / fleet.servers
        self.due = [_Due(first * place, place, address, None) for place, address in enumerate(self.servers)]
        self.turns = fleet.servers
        self.extract = Extractor(engine_table("vllm")).extract
        self.outcome = Outcome([0.0] * len(arrivals), requests=dict.fromkeys(self.servers, 0))

    def run(self) -> Outcome:
        store, outcome = self.store, self.outcome
        store.set_endpoints(dict.fromkeys(self.servers, "vllm"), 0.0)
        block_bytes = self.fleet.settings.block_size * BYTES_PER_TOKEN
        now = LEAD_SECONDS
        for number, arrival in enumerate(self.arrivals):
            now = arrival.at + LEAD_SECONDS
            self._scrape_until(now)
            for server in self.servers.values():
                self._settle(server, now)
            text = b"".join([name.to_bytes(block_bytes, "little") for name in arrival.blocks])
            choice = self.choose(store, number, text[: arrival.prompt_tokens * BYTES_PER_TOKEN], now)
            self._submit(number, arrival, choice, now)
        outcome.rates = [view.work.rate for view in store.snapshot(now).endpoints]
        for server in self.servers.values():
            while (at := server.engine.next_event_at()) is not None:
                self._settle(server, at)
        outcome.served_hit_tokens = sum(server.engine.tally.prefix_hits for server in self.servers.values())
        if store.in_flight:
            raise RuntimeError(f"{store.in_flight} requests never ended")
        return outcome

    def _scrape_until(self, now: float) -> None:
        """Ask every server whose time has come for its page, and take in every page that is there by `now`."""
        fleet, due = self.fleet, self.due
        while due[0].at <= now:
            at, _, address, page = heapq.heappop(due)
            server = self.servers[address]
            self._settle(server, at)
            if page is None:
                self._plan(at + fleet.page_seconds, address, server.writer.page(server.engine, at))
                self._plan(at + fleet.scrape_seconds, address, None)
            else:
                asked_at = at - fleet.page_seconds
                self.store.observed(address, self.extract(page), asked_at, fleet.page_seconds, len(page))

    def _plan(self, at: float, address: str, page: bytes | None) -> None:
        self.turns += 1
        heapq.heappush(self.due, _Due(at, self.turns, address, page))

    def _submit(self, number: int, arrival: Arrival, choice: Choice, now: float) -> None:
        server, outcome = self.servers[choice.address], self.outcome
        full = arrival.prompt_tokens // self.fleet.settings.block_size
        written = max(1, arrival.output_tokens) if self.fleet.decoding else 1
        ticket = self.store.started(choice.address, choice.uncached_tokens, choice.hit_tokens, now)
        job = server.engine.submit(now, Order(arrival.prompt_tokens, written, arrival.blocks[:full]))
        server.running[job] = (number, ticket)
        outcome.requests[choice.address] += 1
        outcome.blocks += len(arrival.blocks)
        outcome.predicted_hit_tokens += choice.hit_tokens

    def _settle(self, server: _Server, now: float) -> None:
        """Bring a server to `now` and tell what ended on the way."""
        at = server.engine.next_event_at()
        if at is None or at > now:
            return
        for event in server.engine.advance(now):
            if isinstance(event, FirstToken):
                number, _ = server.running[event.id]
                self.outcome.first_token_seconds[number] = event.at - self.arrivals[number].at - LEAD_SECONDS
                self.outcome.hit_blocks += event.cached_tokens // self.fleet.settings.block_size
            elif isinstance(event, Finished):
                _, ticket = server.running.pop(event.id)
                self.store.ended(ticket, event.at)
