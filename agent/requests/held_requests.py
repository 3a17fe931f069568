"""The requests of one pool that are held until an endpoint has room: flow control between the pick and its dispatch.

    pick ── nothing waits, and an endpoint has room ─────────────────────────────► dispatched at once
         └─ else: submitted to flow control ── dispatched, refused or held
                                                    │
    page, end of a request, change of endpoints ────┤ `run`: room is offered, the next requests are dispatched
    time: an expiry, an endpoint that has room ─────┘

An unsaturated pool costs the room of the picked endpoint for each request, and nothing else. While requests wait, a
change of an endpoint in the routing state wakes this object, and one timer covers all that time brings: `wake` is
called with the time at which `run` has to be called next, and each call replaces the one before.

The cost of an endpoint for a request is the total that the profile gives it, where the work that is planned there
before the request counts as work in flight, and the blocks that these plans bring count as cached.

Pure: `now` is an argument, and `wake` belongs to the shell.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from agent.events import Hook, ignore
from agent.events.flow import FlowDecided, HeldAtZero, RequestHeld
from agent.flow.control import Estimate, FlowControl, FlowLimits
from agent.flow.evidence import EndpointEvidence
from agent.flow.outcomes import CANCELLED, Dispatched, Outcome, RefusedRequest
from agent.flow.report import EndpointReport, FlowReport, report
from agent.flow.request import FOREVER, FlowRequest
from agent.flow.room import DETECTORS, HEADROOM, Room, RoomLimits
from agent.flow.room_inputs import room_inputs
from agent.pick.decision import NoPick, Pick
from agent.pick.picker import PrefixLookup, admitted_addresses, rank, redirected
from agent.pick.profile import Profile
from agent.pick.request import PickRequest
from agent.prefix.planned import PlannedBlocks
from agent.requests.flow_terms import FlowTerms
from agent.requests.model_depths import ModelDepths
from agent.requests.rejections import Rejection
from agent.requests.ticket import WAIT, Result, Ticket
from agent.signals import FINISHED, GENERATION_TOKENS
from agent.state.snapshot import EndpointView, Snapshot
from agent.state.store import RoutingStore

# Requests that are planned again in one step after a change of the endpoints: a step takes some milliseconds.
REPLANNED_PER_STEP: Final = 100
# Output tokens of a request until pages show a mean: that of the Azure 2023 conversation trace (AzurePublicDataset).
PRIOR_OUTPUT_TOKENS: Final = 211
_MEAN_SECONDS: Final = 5.0  # how long a mean of the pages is used
# Reasons of a request without a pick that may be over when the first endpoint can be picked.
_EMPTY: Final = frozenset({"no_endpoints", "none_healthy"})
ROOM: Final = "room"  # `Pick.decided_by` where an endpoint with a better total had no room
_UNLIMITED: Final = Room(FOREVER)
_LONG_AGO: Final = float("-inf")
_CANCELLED: Final = Rejection("error", "The client left.")  # is sent to no one


class HoldingSettings(NamedTuple):
    """The limits of one pool. `enabled`: else no request is held. `detector` is a key of DETECTORS."""

    enabled: bool = True
    limits: FlowLimits = FlowLimits()
    room: RoomLimits = RoomLimits()
    detector: str = HEADROOM


class Dispatcher(Protocol):
    """The stage that picks, as far as its held requests need it."""

    def pick(self, ticket: Ticket, now: float) -> Pick | NoPick:
        """The pick for a request that the stages before have passed."""
        ...

    def dispatch(self, ticket: Ticket, pick: Pick, now: float) -> None:
        """Record the request as in flight at the picked endpoint."""
        ...


class _Held:
    """A submitted request: its ticket, what is wanted, and whether its blocks count as planned."""

    __slots__ = ("kept", "ticket", "wanted")

    def __init__(self, ticket: Ticket, wanted: PickRequest) -> None:
        self.ticket = ticket
        self.wanted = wanted
        self.kept = False


class _WithPlans:
    """The prefix index, together with the blocks that planned requests bring."""

    __slots__ = ("_index", "_planned")

    def __init__(self, index: PrefixLookup, planned: PlannedBlocks) -> None:
        self._index = index
        self._planned = planned

    def match(self, chain: Sequence[int], addresses: Sequence[str]) -> list[int]:
        """As the index; of both depths at an address the larger one."""
        depths = self._index.match(chain, addresses)
        planned = self._planned.match(chain)
        if not planned:
            return depths
        return [max(depth, planned.get(address, 0)) for depth, address in zip(depths, addresses, strict=True)]

    def shared(self, chain: Sequence[int], depth: int) -> bool:
        """As the index."""
        return self._index.shared(chain, depth)


class HeldRequests:
    """Flow control of one pool. `profile` is the one by which requests are planned; `share` is the part of the free
    slots that this agent claims (`agent.flow.evidence`). Both may be set at any time. `random` returns numbers from 0
    to 1."""

    def __init__(
        self,
        store: RoutingStore,
        index: PrefixLookup,
        profile: Profile,
        settings: HoldingSettings,
        wake: Callable[[float], None],
        random: Callable[[], float],
        hook: Hook = ignore,
    ) -> None:
        self.profile = profile
        self.share = 1.0
        self.dispatcher: Dispatcher | None = None
        self._store = store
        self._lookup = _WithPlans(index, planned := PlannedBlocks())
        self._planned = planned
        self._settings = settings
        self._detector = DETECTORS[settings.detector]
        self._wake = wake
        self._woken_at = FOREVER  # when `run` is due
        self._hook = hook
        self._control = FlowControl(settings.limits, self._estimate, random, self._plan_changed)
        self._places: dict[str, int] = {}
        self._requests: dict[Ticket, FlowRequest] = {}  # those that are held
        self._depths = ModelDepths()
        self._evidence: dict[str, EndpointEvidence] = {}
        self._rooms: dict[str, Room] = {}  # of the last request that found none
        self._changed: set[str] = set()  # endpoints whose room may have changed while requests are held
        self._dispatching = ""  # the endpoint whose change is a dispatch of this object
        self._snapshot = store.snapshot(_LONG_AGO)
        self._now = _LONG_AGO
        self._mean_output = float(PRIOR_OUTPUT_TOKENS)
        self._mean_until = _LONG_AGO
        store.on_changed.append(self._endpoint_changed)
        store.on_restart.append(self._restarted)

    @property
    def waiting(self) -> int:
        """Requests that are held."""
        return self._control.waiting

    @property
    def enabled(self) -> bool:
        """Whether requests are held."""
        return self._settings.enabled

    def report(self, now: float, *, inputs: bool = False) -> FlowReport:
        """What waits, for what, and what would be refused now. Rooms are those of now also where nothing waits.
        `inputs`: with what each room is computed from."""
        self._follow(now)
        if not self._control.waiting:
            for view in self._snapshot.endpoints:
                if view.address in self._places:
                    self._control.offer(view.address, self._room(view, now), now)
        settings = self._settings
        found = report(self._control, now)._replace(
            pool=self._store.pool,
            enabled=settings.enabled,
            detector=settings.detector,
            models=self._depths.rows(),
            room_limits=settings.room,
        )
        if inputs:
            found = found._replace(endpoints=tuple(self._with_inputs(each, now) for each in found.endpoints))
        return found

    # -- what the stage calls ----------------------------------------------------------------------------------------

    def admits(self, pick: Pick, now: float) -> bool:
        """Whether a request without others before it is dispatched to its pick at once: nothing waits, and an endpoint
        has room. That need not be the picked one: while the pool has room, the profile's choice stands, and a request
        may queue for its cache at the picked server."""
        if not self._settings.enabled:
            return True
        if self._control.waiting:
            return False
        snapshot = self._store.snapshot(now)
        rooms = self._rooms
        rooms.clear()
        if self._has_room(pick.endpoint, pick.prompt_tokens, snapshot, now, rooms):
            return True
        order = sorted(range(len(pick.totals)), key=pick.totals.__getitem__, reverse=True)
        addresses = pick.addresses
        return any(
            self._has_room(addresses[place], pick.prompt_tokens, snapshot, now, rooms)
            for place in order
            if addresses[place] != pick.endpoint
        )

    def holds_at_zero(self, reason: str) -> bool:
        """Whether a request that cannot be picked for this reason is held until the first endpoint can be picked."""
        settings = self._settings
        return settings.enabled and reason in _EMPTY and settings.limits.empty_ttl > 0

    def submit(self, ticket: Ticket, terms: FlowTerms, now: float) -> Result:
        """A request that was not admitted: its decision, or WAIT."""
        wanted = ticket.wanted
        if wanted is None:
            raise ValueError("the request has no tokens")
        self._follow(now)
        control, limits = self._control, self._settings.limits
        if not control.waiting:  # rooms were not followed
            rooms = self._rooms
            for view in self._snapshot.endpoints:
                if view.address in self._places:
                    room = rooms.get(view.address)
                    control.offer(view.address, self._room(view, now) if room is None else room, now)
        ttl = limits.of(terms.priority).ttl
        if terms.ttl_seconds is not None:
            ttl = min(ttl, terms.ttl_seconds)
        held = _Held(ticket, wanted)
        request = FlowRequest(
            held,
            priority=terms.priority,
            flow=terms.caller,
            tokens=wanted.prompt_tokens + self._expected_output(wanted, now),
            prompt_tokens=wanted.prompt_tokens,
            size=ticket.body_bytes,
            ttl=ttl,
            deadline=None if terms.ttft_seconds is None else now + terms.ttft_seconds,
        )
        ticket.longest_wait = min(limits.hold, ttl + limits.empty_ttl)
        at_zero = not self._places
        outcomes = control.submit(request, now)
        result: Result = WAIT
        if request.outcome is None:
            self._requests[ticket] = request
            self._depths.add(request, wanted.model, ticket.requested)
            self._hook(RequestHeld(self._store.pool, terms.priority))
            if at_zero and control.waiting == 1:
                self._hook(HeldAtZero(self._store.pool, 1))
        for outcome in outcomes:
            if outcome.request is request:
                result = self._decision(outcome, held, now)
            else:
                self._deliver(outcome, now)
        self._plan_wake()
        return result

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """The client of a held request left."""
        request = self._requests.get(ticket)
        if request is None:
            return
        for outcome in self._control.cancel(request, now):
            self._deliver(outcome, now)
        self._plan_wake()

    def sent(self, address: str, prompt_tokens: int, now: float) -> None:
        """A request was sent to the endpoint."""
        self._evidence_of(address).sent(prompt_tokens, now)

    def ended(self, address: str, sent_at: float, now: float) -> None:
        """A request that was sent to the endpoint at `sent_at` has ended."""
        evidence = self._evidence.get(address)
        if evidence is not None:
            evidence.ended(sent_at, now)

    # -- what the shell calls ----------------------------------------------------------------------------------------

    def run(self, now: float) -> None:
        """What is due: called at the time that `wake` was given, or later."""
        self._woken_at = FOREVER
        control = self._control
        if not control.waiting:
            self._changed.clear()
            return
        self._follow(now)
        changed, self._changed = self._changed, set()
        outcomes: list[Outcome] = []
        if control.stale:
            outcomes += control.replan(now, REPLANNED_PER_STEP)
        for address in sorted(changed):
            view = self._view(address)
            if view is not None:
                outcomes += control.offer(address, self._room(view, now), now)
        outcomes += control.advance(now)
        for outcome in outcomes:
            self._deliver(outcome, now)
        self._plan_wake()

    def apply(self, settings: HoldingSettings) -> None:
        """Replace the settings. Requests that are held stay; where none are held any more, they are dispatched."""
        self._settings = settings
        self._detector = DETECTORS[settings.detector]
        self._control.apply(settings.limits)
        if self._control.waiting:
            self._changed.update(self._places)
            self._wake_soon()

    def shut_down(self, now: float) -> None:
        """Refuse every held request, and those that arrive from now on."""
        for outcome in self._control.shut_down(now):
            self._deliver(outcome, now)

    # -- within: what the routing state reports ----------------------------------------------------------------------

    def _endpoint_changed(self, address: str) -> None:
        """The state of an endpoint has changed, or (empty) the set of endpoints."""
        if self._control.waiting and (address != self._dispatching or not address):
            if address:
                self._changed.add(address)
            self._wake_soon()

    def _restarted(self, address: str, now: float) -> None:
        evidence = self._evidence.get(address)
        if evidence is not None:
            evidence.reset()

    def _wake_soon(self) -> None:
        if self._woken_at != _LONG_AGO:
            self._woken_at = _LONG_AGO
            self._wake(_LONG_AGO)

    def _plan_wake(self) -> None:
        control = self._control
        if not control.waiting:
            return
        if control.stale or self._changed:
            self._wake_soon()
        elif (due := control.next_due()) < self._woken_at:
            self._woken_at = due
            self._wake(due)

    def _follow(self, now: float) -> None:
        """Take the snapshot of now, and its endpoints."""
        snapshot = self._snapshot = self._store.snapshot(now)
        self._now = now
        control = self._control
        addresses = admitted_addresses(snapshot, now)
        if addresses is not control.addresses and tuple(addresses) != control.addresses:
            control.set_endpoints(addresses, now)
            self._places = {address: place for place, address in enumerate(control.addresses)}
            for address in self._evidence.keys() - set(snapshot.addresses):
                del self._evidence[address]
            if control.waiting:
                self._changed.update(self._places)

    def _view(self, address: str) -> EndpointView | None:
        """The endpoint in the last snapshot."""
        addresses = self._snapshot.addresses
        place = bisect_left(addresses, address)
        if place < len(addresses) and addresses[place] == address:
            return self._snapshot.endpoints[place]
        return None

    # -- within: room ------------------------------------------------------------------------------------------------

    def _evidence_of(self, address: str) -> EndpointEvidence:
        evidence = self._evidence.get(address)
        if evidence is None:
            evidence = self._evidence[address] = EndpointEvidence()
        return evidence

    def _room(self, view: EndpointView, now: float) -> Room:
        if not self._settings.enabled:
            return _UNLIMITED
        evidence = self._evidence_of(view.address)
        evidence.observe(view)
        return self._detector(view, evidence.evidence(self.share), self._settings.room, now)

    def _with_inputs(self, endpoint: EndpointReport, now: float) -> EndpointReport:
        view = self._view(endpoint.address)
        if view is None:
            return endpoint
        evidence = self._evidence_of(endpoint.address)
        evidence.observe(view)
        inputs = room_inputs(view, evidence.evidence(self.share), self._settings.room, now)
        return endpoint._replace(inputs=inputs)

    def _has_room(self, address: str, tokens: int, snapshot: Snapshot, now: float, rooms: dict[str, Room]) -> bool:
        place = bisect_left(snapshot.addresses, address)
        room = rooms[address] = self._room(snapshot.endpoints[place], now)
        return room.requests >= 1 and room.opens_at <= now and room.fits(tokens)

    def _expected_output(self, wanted: PickRequest, now: float) -> int:
        """Output tokens of a request: the mean of what pages show, at most what the request allows."""
        if now >= self._mean_until:
            self._mean_until = now + _MEAN_SECONDS
            self._mean_output = mean_output_tokens(self._snapshot.endpoints)
        limit = wanted.max_output_tokens
        return int(min(self._mean_output, limit) if limit else self._mean_output)

    # -- within: plans -----------------------------------------------------------------------------------------------

    def _estimate(self, request: FlowRequest, ahead: Sequence[float]) -> Estimate:
        """The cost of each endpoint for a request, and the seconds of prefill that it adds there."""
        held = request.item
        if not isinstance(held, _Held):
            raise TypeError("the request was submitted by another object")
        wanted, places = held.wanted, self._places
        costs = [FOREVER] * len(places)
        seconds = [0.0] * len(places)
        planned = dict(zip(self._control.addresses, ahead, strict=True)) if any(ahead) else None
        ranking = rank(self._snapshot, wanted, self.profile, self._lookup, self._now, planned)
        if isinstance(ranking, NoPick):
            return Estimate(costs, seconds)
        candidates, best = ranking.candidates, max(ranking.totals)
        for address, total, hit, work in zip(
            ranking.addresses, ranking.totals, candidates.hits, candidates.works, strict=True
        ):
            place = places.get(address)
            if place is not None:
                costs[place] = best - total
                seconds[place] = max(1, wanted.prompt_tokens - hit) / work.rate
        return Estimate(costs, seconds)

    def _plan_changed(self, request: FlowRequest, address: str, planned: bool) -> None:  # noqa: FBT001  a callback
        """A request is planned to the endpoint, or is not any more."""
        held = request.item
        if isinstance(held, _Held):
            if planned:
                held.kept = self._planned.add(address, held.wanted.chain)
            elif held.kept:
                self._planned.remove(address, held.wanted.chain)

    # -- within: outcomes --------------------------------------------------------------------------------------------

    def _deliver(self, outcome: Outcome, now: float) -> None:
        """Resume the ticket of an outcome."""
        held = outcome.request.item
        if not isinstance(held, _Held):
            return
        ticket = held.ticket
        if self._requests.pop(ticket, None) is not None:
            self._depths.remove(outcome.request, held.wanted.model, ticket.requested)
        decision = self._decision(outcome, held, now)
        if ticket.pending:
            ticket.resume(decision)

    def _decision(self, outcome: Outcome, held: _Held, now: float) -> Pick | Rejection:
        """The decision that follows from an outcome; a pick is in flight from here."""
        request, ticket, wanted = outcome.request, held.ticket, held.wanted
        how = outcome.how if isinstance(outcome, Dispatched) else outcome.reason
        waited = outcome.waited_seconds
        self._hook(
            FlowDecided(
                self._store.pool,
                request.priority,
                how,
                waited,
                request.flow_name,
                wanted.model,
                ticket.requested,
                request.tokens,
            )
        )
        if isinstance(outcome, RefusedRequest):
            if outcome.reason == CANCELLED:
                return _CANCELLED
            return Rejection(
                outcome.reason,
                _message(outcome, request),
                retry_after=outcome.retry_after,
                waited_seconds=waited if waited > 0 else None,
            )
        dispatcher = self.dispatcher
        if dispatcher is None:
            raise ValueError("no stage dispatches the requests")
        endpoint = outcome.endpoint
        answer = dispatcher.pick(ticket, now)
        if isinstance(answer, NoPick):
            self._changed.add(endpoint)
            return Rejection(answer.reason, f"No model server is available: {answer.detail}", waited_seconds=waited)
        if endpoint in answer.addresses:
            answer = redirected(answer, endpoint, ROOM)
        else:
            self._changed.add(endpoint)
        answer = answer._replace(waited_seconds=waited, dispatched=outcome.how)
        self._dispatching = endpoint
        try:
            dispatcher.dispatch(ticket, answer, now)
        finally:
            self._dispatching = ""
        return answer


def mean_output_tokens(views: Iterable[EndpointView]) -> float:
    """The mean output tokens of a finished request, by the counters of the last pages; PRIOR_OUTPUT_TOKENS where they
    show none."""
    tokens = finished = 0.0
    for view in views:
        generated, requests = view.values.get(GENERATION_TOKENS), view.values.get(FINISHED)
        if isinstance(generated, float) and isinstance(requests, float) and requests > 0:
            tokens += generated
            finished += requests
    return tokens / finished if finished else float(PRIOR_OUTPUT_TOKENS)


def _message(outcome: RefusedRequest, request: FlowRequest) -> str:
    """Why a request is refused, and what its client may do."""
    again = f" Try again in {outcome.retry_after} s." if outcome.retry_after else ""
    match outcome.reason:
        case "shed":
            why = f"The model servers are saturated, and requests of priority {request.priority} are refused first."
        case "displaced":
            why = "The model servers are saturated, and the queue of the gateway is full."
        case "expired":
            why = f"No model server had room for the request within {outcome.waited_seconds:.1f} s."
        case "shutting_down":
            why = "The gateway's endpoint picker stops."
        case _:
            why = "No model server is available for the request."
    return why + again
