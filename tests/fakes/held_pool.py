"""A pool whose requests are held: real routing state, index, pick stage and pipeline, a clock that is set by hand, and
a shell that calls `run` when it is woken, and only then."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.engines.mapping import Extraction
from agent.events import Event, Hook
from agent.events.flow import FlowDecided, HeldAtZero, RequestHeld
from agent.flow.control import FlowLimits
from agent.flow.room import RoomLimits
from agent.pick.decision import Pick
from agent.pick.profile import Profile, build
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
from agent.signals import KV_USAGE, RUNNING, START_TIME, WAITING, Value
from agent.state.prefill_rate import RateLimits
from agent.state.store import RoutingStore

RATE = 1_000.0  # tokens of uncached prompt per second, at each endpoint
STALE_AFTER = 1_000.0
LEAST_COST = build(PRESETS["least-cost"])
# An endpoint has room for one request; a second one waits, whatever the time that the first one takes.
ONE_SLOT = HoldingSettings(room=RoomLimits(slots=1.0, queued=0.0, max_wait_seconds=math.inf))
NEVER = math.inf


class WantedStage:
    """Sets what the stages before the pick find in a body."""

    name = "wanted"

    def __init__(self) -> None:
        self.wanted: dict[str, PickRequest] = {}

    def process(self, ticket: Ticket, now: float) -> Result:
        ticket.wanted = self.wanted.pop(ticket.request_id)
        ticket.model = ticket.wanted.model
        return CONTINUE

    def shut_down(self, now: float) -> None:
        pass

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """Never called."""

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """Nothing."""


def terms_of(headers: FlowHeaders, _model: str) -> FlowTerms:
    """The objective is the priority as text."""
    return FlowTerms(int(headers.objective or "0"), headers.caller, headers.ttl_seconds, headers.ttft_seconds)


class HeldPool:
    """The pool. `now` is the clock. `due` is when the shell has been asked to call `run`, NEVER where it has not;
    `wakes` counts how often. `decisions` are by request id, in the order in which they came."""

    def __init__(
        self,
        *addresses: str,
        settings: HoldingSettings = ONE_SLOT,
        profile: Profile = LEAST_COST,
        stale_after: float = STALE_AFTER,
        rate: RateLimits | None = None,
        draw: float = 0.5,
        fallbacks: int = 0,
        hook: Hook | None = None,
        holding: bool = True,
    ) -> None:
        self.now = 0.0
        self.due = NEVER
        self.wakes = 0
        self.runs = 0
        self.events: list[Event] = []
        self.decisions: dict[str, Pick | Rejection] = {}
        self.tickets: dict[str, Ticket] = {}
        self.unlisted: list[str] = []
        self.index = PrefixIndex()
        send = hook or self.events.append
        self.store = RoutingStore(
            "pool", stale_after=stale_after, rate=rate or RateLimits(fixed=RATE), hook=send, prefix=self.index
        )
        self.held = HeldRequests(self.store, self.index, profile, settings, self.wake, lambda: draw, send)
        self.wants = WantedStage()
        self.stage = PickStage(
            self.store,
            self.index,
            profile,
            lambda: self.now,
            send,
            lambda *_: None,
            fallbacks,
            Outcomes(self.store, self.index, send),
            lambda model, _: self.unlisted.append(model),
            held=self.held if holding else None,
            terms=terms_of,
        )
        self.pipeline = Pipeline(
            "pool",
            (self.wants, self.stage),
            lambda: self.now,
            send,
            LoadReports(self.store, {}, send),
            Outcomes(self.store, self.index, send),
        )
        self.set_endpoints(*addresses)
        for address in addresses:
            self.page(address)

    # -- the shell ---------------------------------------------------------------------------------------------------

    def wake(self, at: float) -> None:
        """What `HeldRequests` calls."""
        self.wakes += 1
        self.due = at

    def settle(self) -> None:
        """Call `run` for as long as it is due now."""
        for _ in range(1_000):
            if self.due > self.now:
                return
            self.due = NEVER
            self.runs += 1
            self.held.run(self.now)
        raise AssertionError("the shell is woken again and again at the same time")

    def advance(self, seconds: float) -> None:
        """Let time pass, and call `run` whenever it is due."""
        until = self.now + seconds
        while self.due <= until:
            self.now = max(self.now, self.due)
            self.settle()
        self.now = until

    # -- the model servers -------------------------------------------------------------------------------------------

    def set_endpoints(self, *addresses: str) -> None:
        """The pool has these endpoints, all of one engine."""
        self.store.set_endpoints(dict.fromkeys(addresses, "vllm"), self.now)

    def page(self, address: str, running: float = 0.0, waiting: float = 0.0, **more: Value) -> None:
        """A page of the endpoint, requested now."""
        values: dict[str, Value] = {RUNNING: running, WAITING: waiting, KV_USAGE: 0.0, START_TIME: 1.0, **more}
        self.store.observed(address, Extraction(values, (), ()), self.now, 0.0, 100)

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        name: str,
        *,
        tokens: int = 100,
        chain: Sequence[int] = (),
        model: str = "m",
        subset: frozenset[str] | None = None,
        output: int = 0,
        priority: int = 0,
        caller: str = "",
        ttl: float | None = None,
        ttft: float | None = None,
        body: bytes = b"",
        requested: str = "",
    ) -> Ticket:
        """A request arrives."""
        self.wants.wanted[name] = PickRequest(name, model, tokens, chain, 64, subset, output)
        headers = FlowHeaders(str(priority), caller, ttl, ttft)
        request = Request(name, body=body, subset=subset, requested=requested, flow_headers=headers)
        ticket = self.tickets[name] = self.pipeline.submit(request, self.decided)
        return ticket

    def decided(self, ticket: Ticket, decision: Pick | Rejection) -> None:
        """What the pipeline calls."""
        assert ticket.request_id not in self.decisions
        self.decisions[ticket.request_id] = decision

    def fill(self, *addresses: str) -> None:
        """Submit requests until the endpoints have no room, each allowed at one endpoint only."""
        for address in addresses:
            self.submit(f"first-at-{address}", subset=frozenset({address}))
            assert self.at(f"first-at-{address}") == address

    def end(self, name: str) -> None:
        """The request is over, and the proxy has closed its stream."""
        assert self.tickets[name].end("closed")

    def at(self, name: str) -> str:
        """The endpoint of the request, empty while it waits and where it is refused."""
        decision = self.decisions.get(name)
        return decision.endpoint if isinstance(decision, Pick) else ""

    def pick(self, name: str) -> Pick:
        """The pick of a request that was dispatched."""
        decision = self.decisions[name]
        assert isinstance(decision, Pick)
        return decision

    def refusal(self, name: str) -> Rejection:
        """The rejection of a request that was refused."""
        decision = self.decisions[name]
        assert isinstance(decision, Rejection)
        return decision

    def order(self) -> list[str]:
        """The names of the requests that were dispatched, in order."""
        return [name for name, decision in self.decisions.items() if isinstance(decision, Pick)]

    def outcomes(self) -> list[str]:
        """The outcomes that flow control has reported, in order."""
        return [event.outcome for event in self.events if isinstance(event, FlowDecided)]

    def held_events(self) -> list[int]:
        """The priorities of the requests that were reported as held."""
        return [event.priority for event in self.events if isinstance(event, RequestHeld)]

    def zeros(self) -> list[int]:
        """How many requests waited for the first endpoint, at each time that this was reported."""
        return [event.requests for event in self.events if isinstance(event, HeldAtZero)]


def limits(**changes: object) -> HoldingSettings:
    """ONE_SLOT with other limits of flow control."""
    return ONE_SLOT._replace(limits=FlowLimits(**changes))  # type: ignore[arg-type]
