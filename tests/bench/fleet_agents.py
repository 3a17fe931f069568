"""A fleet of emulated servers, and agents that send it requests, in simulated time: every event at its own instant.

The agents are made of the parts of the real one: a `Pipeline` whose last stage is the `PickStage`, with `HeldRequests`
where flow control is on, a `RoutingStore` fed by pages through the engine's `Extractor`, and the reports between
replicas. The servers are engines of the emulator. This module orders the events: requests arrive, each server is
scraped, its page arrives `page_seconds` later, a timer of flow control is due, a report arrives at the other agents,
and a server ends requests, which the agents see at that instant. Two runs of one workload are equal.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final, NamedTuple

from agent.emulator.config import EmulatorConfig
from agent.emulator.engine import EngineSimulation
from agent.emulator.jobs import Finished, FirstToken, JobSpec
from agent.emulator.metrics import PageWriter
from agent.engines import engine as engine_table
from agent.engines.mapping import Extractor
from agent.events import Event, ignore
from agent.events.flow import FlowDecided
from agent.pick.decision import Pick
from agent.pick.profile import Profile
from agent.pick.request import PickRequest
from agent.prefix.index import PrefixIndex
from agent.replicas.peer_part import PeerPart, PoolTarget
from agent.replicas.publisher import PoolPublisher
from agent.replicas.report import PeerReport, PoolReport, decode, encode
from agent.requests.flow_terms import FlowHeaders, FlowTerms
from agent.requests.held_requests import HeldRequests, HoldingSettings
from agent.requests.outcomes import Outcomes
from agent.requests.pipeline import Pipeline, Stage
from agent.requests.rejections import Rejection
from agent.requests.stages.pick import PickStage
from agent.requests.ticket import CONTINUE, Request, Result, Ticket
from agent.state.prefill_rate import RateLimits
from agent.state.store import RoutingStore

POOL: Final = "bench"
# The first request arrives after the first scrape of every server.
LEAD_SECONDS: Final = 2.0
# From an event to its report at another replica, where the last report is not recent.
LINK_SECONDS: Final = 0.001
SERVED: Final = "served"
_STALE_AFTER_INTERVALS: Final = 5.0


class TraceCall(NamedTuple):
    """A request of a workload: when it arrives, its priority and caller, its prompt as the picker reads it, the tokens
    of its answer, and the hashes of the prompt's whole blocks at a server."""

    at: float
    priority: int
    caller: str
    wanted: PickRequest
    output_tokens: int
    blocks: Sequence[int]


@dataclass(slots=True)
class Served:
    """What became of a call, in seconds from the start; `outcome` is SERVED, the reason of a rejection, or empty
    before its end."""

    call: TraceCall
    outcome: str = ""
    dispatched_at: float = float("inf")
    first_token_at: float = float("inf")
    ended_at: float = float("inf")
    cached_tokens: int = 0


class FleetShape(NamedTuple):
    """The servers, all with one configuration, their scrapes, and the time between two reports of an agent to the
    others (None: they do not report). `rate` is a fixed prefill rate, None: the agents
    estimate it."""

    config: EmulatorConfig
    servers: int = 8
    scrape_seconds: float = 1.0
    page_seconds: float = 0.005
    exchange_seconds: float | None = None
    rate: float | None = None


class Timeline:
    """Simulated time and the calls that are due in it; of one instant, in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def plan(self, at: float, call: Callable[[], None]) -> None:
        """TraceCall at that time, or now where that is past."""
        self._sequence += 1
        heapq.heappush(self._due, (max(at, self.now), self._sequence, call))

    def run(self, done: Callable[[], bool]) -> None:
        """Pass the time until `done`, which is evaluated after each call."""
        due = self._due
        while not done():
            self.now, _, call = heapq.heappop(due)
            call()


class Server:
    """One emulated server, whose events are reported at their own instants."""

    def __init__(
        self, address: str, config: EmulatorConfig, time: Timeline, report: Callable[[int, object], None]
    ) -> None:
        self.address = address
        self.engine = EngineSimulation(config)
        self.prefilled_tokens = 0
        self._writer = PageWriter(config, "model")
        self._time = time
        self._report = report
        self._numbers: dict[int, int] = {}  # the id of a job -> the number of its call
        self._planned = float("inf")

    def submit(self, number: int, spec: JobSpec) -> None:
        """The call of this number arrives."""
        self._numbers[self.engine.submit(self._time.now, spec)] = number
        self._plan()

    def page(self) -> bytes:
        """The page of now."""
        self.settle()
        return self._writer.page(self.engine, self._time.now)

    def settle(self) -> None:
        """Report what has happened by now."""
        now, numbers = self._time.now, self._numbers
        at = self.engine.next_event_at()
        if at is not None and at <= now:
            for event in self.engine.advance(now):
                if isinstance(event, FirstToken):
                    self._report(numbers[event.id], event)
                elif isinstance(event, Finished):
                    self._report(numbers.pop(event.id), event)
        self._plan()

    def _plan(self) -> None:
        at = self.engine.next_event_at()
        if at is not None and at < self._planned:
            self._planned = at
            self._time.plan(at, partial(self._due, at))

    def _due(self, at: float) -> None:
        if at == self._planned:
            self._planned = float("inf")
            self.settle()


class CountedPrompts:
    """The stage before the pick: the prompts are counted already. `numbers` maps the id of a request to its call."""

    name = "tokens"

    def __init__(self, wanted: Mapping[str, PickRequest]) -> None:
        self._wanted = wanted

    def process(self, ticket: Ticket, now: float) -> Result:
        """Set what the picker reads."""
        ticket.wanted = self._wanted[ticket.request_id]
        ticket.model = "model"
        return CONTINUE

    def shut_down(self, now: float) -> None:
        pass

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """It holds none."""

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """It holds none."""


class Charge(NamedTuple):
    """A request that flow control dispatched: when, the priority and the caller, and the tokens that it was charged."""

    at: float
    priority: int
    caller: str
    tokens: int


class Surroundings(NamedTuple):
    """What an agent is made for: simulated time, the servers, and the prompts by the id of their request."""

    time: Timeline
    shape: FleetShape
    servers: Mapping[str, Server]
    prompts: Mapping[str, PickRequest]


class FleetAgent:
    """One agent before the servers. `holding`: its flow control, None: it has none. `queue` is a stage that is put
    before the pick, as another rule of flow control."""

    def __init__(
        self,
        name: str,
        around: Surroundings,
        profile: Profile,
        holding: HoldingSettings | None = None,
        queue: Stage | None = None,
    ) -> None:
        time, shape = around.time, around.shape
        self._time = time
        self.index = index = PrefixIndex()
        block_tokens = shape.config.block_size
        self.store = store = RoutingStore(
            POOL,
            stale_after=_STALE_AFTER_INTERVALS * shape.scrape_seconds,
            rate=RateLimits(fixed=shape.rate),
            prefix=index,
            index_block_tokens=block_tokens,
        )
        self.charges: list[Charge] = []
        self.publisher = PoolPublisher(POOL, "", self._note)
        self.to_report: Callable[[], None] = _nothing
        self.outcomes = Outcomes(store, index, ignore, self.publisher)
        self.held: HeldRequests | None = None
        if holding is not None:
            draw = Random(name)
            self.held = HeldRequests(store, index, profile, holding, self._wake, draw.random, self._flow_event)
        self._run_at = float("inf")
        pick = PickStage(
            store,
            index,
            profile,
            lambda: time.now,
            ignore,
            lambda _pool, _pick, _at: None,
            0,
            self.outcomes,
            lambda _model, _at: None,
            self.publisher,
            self.held,
            _terms,
        )
        stages: list[Stage] = [CountedPrompts(around.prompts)]
        if queue is not None:
            stages.append(queue)
        stages.append(pick)
        self.pipeline = Pipeline(POOL, stages, lambda: time.now, _raise_errors, _no_reports, _no_responses)

    def _note(self) -> None:
        self.to_report()

    def _flow_event(self, event: Event) -> None:
        if isinstance(event, FlowDecided) and event.outcome in {"direct", "planned", "stolen"}:
            self.charges.append(Charge(self._time.now - LEAD_SECONDS, event.priority, event.caller, event.tokens))

    def _wake(self, at: float) -> None:
        self._run_at = at = max(at, self._time.now)
        if at < float("inf"):
            self._time.plan(at, partial(self._woken, at))

    def _woken(self, at: float) -> None:
        if at == self._run_at and self.held is not None:
            self._run_at = float("inf")
            self.held.run(self._time.now)


class Fleet:
    """The servers and the agents before them; requests reach the agents in turn. `make` makes an agent."""

    def __init__(
        self,
        calls: Sequence[TraceCall],
        shape: FleetShape,
        agents: int,
        make: Callable[[str, Surroundings], FleetAgent],
    ) -> None:
        self.time = time = Timeline()
        self.shape = shape
        self.results = [Served(call) for call in calls]
        self.servers = {
            address: Server(address, shape.config, time, self._server_event)
            for address in (f"10.0.0.{number + 1}:8000" for number in range(shape.servers))
        }
        prompts = {call.wanted.request_id: call.wanted for call in calls}
        around = Surroundings(time, shape, self.servers, prompts)
        self.agents = [make(f"agent {number}", around) for number in range(agents)]
        self._tickets: dict[int, Ticket] = {}
        self._left = len(calls)
        self._extract = Extractor(engine_table("vllm")).extract
        for agent in self.agents:
            agent.store.set_endpoints(dict.fromkeys(self.servers, "vllm"), 0.0)
        scrapes = [(server, agent) for server in self.servers.values() for agent in self.agents]
        # All first scrapes are spread evenly, so that no two of one interval are at the same time.
        first = min(1.0, shape.scrape_seconds) / len(scrapes)
        for number, (server, agent) in enumerate(scrapes):
            time.plan(first * number, partial(self._scrape, server, agent))
        if shape.exchange_seconds is not None and agents > 1:
            _Exchange(self.agents, time, shape.exchange_seconds)
        for number, call in enumerate(calls):
            time.plan(call.at + LEAD_SECONDS, partial(self._arrive, number))

    def run(self) -> list[Served]:
        """What became of each call, once all of them have ended."""
        self.time.run(lambda: not self._left)
        for agent in self.agents:
            if agent.store.in_flight or agent.pipeline.waiting:
                raise RuntimeError("requests never ended")
        return self.results

    def _scrape(self, server: Server, agent: FleetAgent) -> None:
        time, shape = self.time, self.shape
        time.plan(time.now + shape.page_seconds, partial(self._page, server.address, agent, server.page(), time.now))
        time.plan(time.now + shape.scrape_seconds, partial(self._scrape, server, agent))

    def _page(self, address: str, agent: FleetAgent, page: bytes, at: float) -> None:
        agent.store.observed(address, self._extract(page), at, self.shape.page_seconds, len(page))

    def _arrive(self, number: int) -> None:
        call = self.results[number].call
        request = Request(call.wanted.request_id, flow_headers=FlowHeaders(str(call.priority), call.caller))
        agent = self.agents[number % len(self.agents)]
        agent.pipeline.submit(request, partial(self._decided, number))

    def _decided(self, number: int, ticket: Ticket, decision: Pick | Rejection) -> None:
        result, call = self.results[number], self.results[number].call
        if isinstance(decision, Rejection):
            result.outcome = decision.reason
            result.ended_at = self.time.now - LEAD_SECONDS
            self._left -= 1
            return
        result.dispatched_at = self.time.now - LEAD_SECONDS
        self._tickets[number] = ticket
        spec = JobSpec(call.wanted.prompt_tokens, max(1, call.output_tokens), call.blocks)
        self.servers[decision.endpoint].submit(number, spec)

    def _server_event(self, number: int, event: object) -> None:
        result = self.results[number]
        if isinstance(event, FirstToken):
            result.first_token_at = event.at - LEAD_SECONDS
            result.cached_tokens = event.cached_tokens
        elif isinstance(event, Finished):
            result.ended_at = event.at - LEAD_SECONDS
            result.outcome = SERVED
            self._left -= 1
            self._tickets.pop(number).end("closed")


class _Exchange:
    """The reports between agents, encoded, decoded and applied as between replicas: each `LINK_SECONDS` after a first
    event, and at most every `seconds`."""

    def __init__(self, agents: Sequence[FleetAgent], time: Timeline, seconds: float) -> None:
        self._agents = agents
        self._time = time
        self._seconds = seconds
        self._numbers = [0] * len(agents)
        self._last = [float("-inf")] * len(agents)
        self._parts: list[dict[int, PeerPart]] = [{} for _ in agents]
        for number, agent in enumerate(agents):
            target = PoolTarget(agent.store, agent.index, agent.outcomes, "")
            for other in range(len(agents)):
                if other != number:
                    self._parts[number][other] = PeerPart(partial(_target, target))
        for number, agent in enumerate(agents):
            agent.to_report = partial(self._plan, number)
            agent.publisher.listen(listened=True)
            self._send(number, agent.publisher.full({}, 0.0), full=True)

    def _plan(self, number: int) -> None:
        at = max(self._time.now + LINK_SECONDS, self._last[number] + self._seconds)
        self._time.plan(at, partial(self._report, number))

    def _report(self, number: int) -> None:
        self._last[number] = self._time.now
        report = self._agents[number].publisher.take(self._time.now)
        if report is not None:
            self._send(number, report, full=False)

    def _send(self, number: int, report: PoolReport, *, full: bool) -> None:
        data = encode(PeerReport(self._numbers[number], full=full, pools=[report]))
        self._numbers[number] += 1
        for other, parts in enumerate(self._parts):
            if other != number:
                parts[number].apply(decode(data), self._time.now)


def _target(target: PoolTarget, _pool: str) -> PoolTarget:
    return target


def _terms(headers: FlowHeaders, _model: str) -> FlowTerms:
    """The objective is the priority itself."""
    return FlowTerms(int(headers.objective), headers.caller)


def _nothing() -> None:
    """No other agent listens."""


def _raise_errors(event: Event) -> None:
    if type(event).__name__ == "StreamBroken":
        raise RuntimeError(f"a stage failed: {event}")


class _NoReports:
    def reported(self, ticket: Ticket, report: str, served: str, now: float) -> None:
        """No server sends any."""

    def responded(self, ticket: Ticket, response: object, now: float) -> None:
        """The proxy reports none."""


_no_reports = _no_responses = _NoReports()
