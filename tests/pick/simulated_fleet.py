"""A fleet of emulated engines in simulated time, some of them blind, that is fed by the picker.

The store, the extractor and the picker are the agent's; the servers are engines of the emulator. The requests of a
blind endpoint are served as any, and its scrapes fail while its health path succeeds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
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
from agent.state.snapshot import EndpointView
from agent.state.store import RoutingStore
from tests.fakes.views import FixedIndex

# A prompt takes about a second: the backlog of prefill decides, and four servers are full at five requests a second.
CONFIG = EmulatorConfig(prefill_tokens_per_second=4000.0)
PROMPT_TOKENS = (500, 6000)
OUTPUT_TOKENS = (5, 50)
SCRAPE_SECONDS = 1.0
LEAD_SECONDS = 4.0  # until a blind endpoint is known to be blind


class LoadPhase(NamedTuple):
    """So many seconds with so many requests per second."""

    seconds: float
    rate: float


class _SentRequest(NamedTuple):
    work_id: int
    at: float


class SimulatedFleet:
    """`servers` equal servers; those at the places of `blind` are blind. `others`: requests per second that another
    gateway sends to each server."""

    def __init__(self, servers: int, profile: Profile, *, blind: Sequence[int], others: float = 0.0) -> None:
        self._random = random.Random(1)
        self._profile = profile
        self._addresses = [f"10.0.0.{place + 1}:8000" for place in range(servers)]
        self._blind = {self._addresses[place] for place in blind}
        self._others = others
        self._engines = {address: EngineSimulation(CONFIG) for address in self._addresses}
        self._writer = PageWriter(CONFIG, "m")
        self._extract = Extractor(engine_table("vllm")).extract
        self._sent: dict[tuple[str, int], _SentRequest] = {}
        self._waits: list[float] = []
        self._now = 0.0
        self.store = RoutingStore("pool", stale_after=3.0)
        self.store.set_endpoints(dict.fromkeys(self._addresses, "vllm"), 0.0)

    @property
    def views(self) -> tuple[EndpointView, ...]:
        """The endpoints at the end."""
        return self.store.snapshot(self._now).endpoints

    def others(self, places: Sequence[int]) -> list[int]:
        """The places that are not among these."""
        return [place for place in range(len(self._addresses)) if place not in places]

    def first_token_seconds(self, rank: float) -> float:
        """The percentile of the time to first token at `rank`, 0 to 1."""
        return sorted(self._waits)[int(rank * len(self._waits))]

    def run(self, phases: Sequence[LoadPhase]) -> list[list[float]]:
        """Send the requests of these phases; the share of each server in each of them, 1 is a fair one."""
        shares = []
        due = [
            (LEAD_SECONDS * place / len(self._addresses) / 4, place, "scrape", address)
            for place, address in enumerate(self._addresses)
        ]
        begin, sequence = LEAD_SECONDS, len(due)
        for phase in phases:
            end = begin + phase.seconds
            arrivals = [("", at) for at in self._poisson(begin, end, phase.rate)]
            arrivals += [(address, at) for address in self._addresses for at in self._poisson(begin, end, self._others)]
            for address, at in arrivals:
                sequence += 1
                due.append((at, sequence, "request", address))
            heapq.heapify(due)
            counts = dict.fromkeys(self._addresses, 0)
            while due[0][0] < end:
                self._now, _, kind, address = heapq.heappop(due)
                self._settle()
                if kind == "scrape":
                    self._scrape(address)
                    sequence += 1
                    heapq.heappush(due, (self._now + SCRAPE_SECONDS, sequence, kind, address))
                elif address:
                    self._engines[address].submit(self._now, self._job())
                else:
                    counts[self._send(sequence)] += 1
                    sequence += 1
            total = sum(counts.values())
            shares.append([counts[address] * len(counts) / total for address in self._addresses])
            begin = end
        return shares

    def _poisson(self, begin: float, end: float, rate: float) -> list[float]:
        times: list[float] = []
        at = begin
        while rate and (at := at + self._random.expovariate(rate)) < end:
            times.append(at)
        return times

    def _job(self) -> JobSpec:
        return JobSpec(self._random.randint(*PROMPT_TOKENS), self._random.randint(*OUTPUT_TOKENS), ())

    def _send(self, number: int) -> str:
        job = self._job()
        request = PickRequest(f"request {number}", "", job.prompt_tokens, (), 64)
        answer = pick(self.store.snapshot(self._now), request, self._profile, FixedIndex(), self._now)
        assert isinstance(answer, Pick), answer
        work_id = self.store.started(answer.endpoint, answer.uncached_tokens, 0, self._now)
        job_id = self._engines[answer.endpoint].submit(self._now, job)
        self._sent[answer.endpoint, job_id] = _SentRequest(work_id, self._now)
        return answer.endpoint

    def _settle(self) -> None:
        """Advance every server to now and end what has ended."""
        for address, engine in self._engines.items():
            at = engine.next_event_at()
            if at is None or at > self._now:
                continue
            for event in engine.advance(self._now):
                sent = self._sent.get((address, event.id))
                if sent is not None and isinstance(event, FirstToken):
                    self._waits.append(event.at - sent.at)
                elif sent is not None and isinstance(event, Finished):
                    self.store.ended(self._sent.pop((address, event.id)).work_id, event.at)

    def _scrape(self, address: str) -> None:
        now, store = self._now, self.store
        store.health(address, True, "", "", now, 0.001)
        if address in self._blind:
            store.failed(address, "wrong_engine", "", now, 0.001)
            return
        page = self._writer.page(self._engines[address], now)
        store.observed(address, self._extract(page, whole=True), now, 0.001, len(page))
