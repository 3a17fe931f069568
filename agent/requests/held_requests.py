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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from agent.events import Hook, ignore
from agent.events.flow import FlowDecided, HeldAtZero, RequestHeld
from agent.events.requests import StreamBroken
from agent.flow.control import Estimate, FlowControl, FlowLimits
from agent.flow.evidence import EndpointEvidence, Evidence
from agent.flow.outcomes import CANCELLED, DIRECT, NO_ENDPOINTS, STOLEN, Dispatched, Outcome, RefusedRequest
from agent.flow.report import EndpointReport, FlowReport, report
from agent.flow.request import FOREVER, FlowRequest
from agent.flow.room import DETECTORS, HEADROOM, Detector, Room, RoomLimits
from agent.flow.room_inputs import room_inputs
from agent.pick.decision import HEALTH, MODEL, SUBSET, NoPick, Pick
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
# Of two replicas that send to one endpoint, the one that sent there last waits for so much longer than the other: both
# would else fill one room within the time of a report (20 ms, `agent.replicas.service.TICK_SECONDS`, and its way).
TURN_SECONDS: Final = 0.03
ROOM: Final = "room"  # `Pick.decided_by` where an endpoint with a better total had no room
_UNLIMITED: Final = Room(FOREVER)
_LONG_AGO: Final = float("-inf")
_NO_PROFILE_FILTERS: Final = frozenset({HEALTH, SUBSET, MODEL})  # what they remove may not serve the request
_FAILED: Final = Rejection("error", "The gateway's endpoint picker failed on this request.")


class HoldingSettings(NamedTuple):
    """The limits of one pool. `enabled`: else no request is held. `detector` is a key of DETECTORS."""

    enabled: bool = True
    limits: FlowLimits = FlowLimits()
    room: RoomLimits = RoomLimits()
    detector: str = HEADROOM


class Dispatcher(Protocol):
    """The stage that picks, as far as its held requests need it."""

    def pick(self, ticket: Ticket, now: float, only: str = "") -> Pick | NoPick:
        """The pick for a request that the stages before have passed, from all endpoints or from this one alone."""
        ...

    def dispatch(self, ticket: Ticket, pick: Pick, now: float) -> None:
        """Record the request as in flight at the picked endpoint."""
        ...


class _Held:
    """A submitted request: its ticket, what is wanted, the caller that it names, and whether its blocks count as
    planned."""

    __slots__ = ("caller", "kept", "ticket", "wanted")

    def __init__(self, ticket: Ticket, wanted: PickRequest, caller: str) -> None:
        self.ticket = ticket
        self.wanted = wanted
        self.caller = caller
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
        self._share = 1.0
        self.dispatcher: Dispatcher | None = None
        self._store = store
        self._lookup = _WithPlans(index, planned := PlannedBlocks())
        self._planned = planned
        self._settings = settings
        self._set_detector()
        self._wake = wake
        self._woken_at = FOREVER  # when `run` is due
        self._hook = hook
        self._control = FlowControl(settings.limits, self._estimate, random, self._plan_changed)
        self._places: dict[str, int] = {}
        self._requests: dict[Ticket, FlowRequest] = {}  # those that are held
        self._depths = ModelDepths()
        self._evidence: dict[str, EndpointEvidence] = {}
        self._rooms: dict[str, Room] = {}  # of a request that found none and is submitted next
        self._changed: set[str] = set()  # endpoints whose room may have changed while requests are held
        self._dispatching = ""  # the endpoint whose change is a dispatch of this object
        self._snapshot = store.snapshot(_LONG_AGO)
        self._now = _LONG_AGO
        self._mean_output = float(PRIOR_OUTPUT_TOKENS)
        self._mean_until = _LONG_AGO
        self._zero_reported = False
        store.on_changed.append(self._endpoint_changed)
        store.on_restart.append(self._restarted)
        self._sent_last: set[str] = set()  # endpoints to which this agent has sent after a peer, and no peer since
        self._shared: set[str] = set()  # endpoints to which a peer has sent
        self.on_waiting: Callable[[int], None] = _ignore_count  # how many requests are held, after each change
        self._counted = 0
        store.on_peer_started.append(self._peer_started)

    @property
    def waiting(self) -> int:
        """Requests that are held."""
        return self._control.waiting

    @property
    def planned_blocks(self) -> int:
        """Prompt blocks that held requests bring to the endpoints to which they are planned."""
        return self._planned.blocks

    @property
    def enabled(self) -> bool:
        """Whether requests are held."""
        return self._settings.enabled

    @property
    def share(self) -> float:
        """The part of the free slots that this agent claims."""
        return self._share

    @share.setter
    def share(self, share: float) -> None:
        if share != self._share:
            self._share = share
            self._all_changed()

    def report(self, now: float, *, inputs: bool = False) -> FlowReport:
        """What waits, for what, and what would be refused now. Rooms are those of now also where nothing waits.
        `inputs`: with what each room is computed from."""
        self._follow(now)
        if not self._control.waiting:
            self._offer_all({}, now)
        self._plan_wake()
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

    def admits(self, pick: Pick, snapshot: Snapshot, now: float) -> bool:
        """Whether a request without others before it is dispatched to its pick at once: nothing waits, and an endpoint
        has room, or will have within the wait from which requests are held (`RoomLimits`). That need not be the picked
        one: while the pool has room, the profile's choice stands, and a request may queue for its cache at the picked
        server. `snapshot` is the one of the pick, of now."""
        if self._control.waiting:
            return not self._settings.enabled
        endpoint, tokens = pick.endpoint, pick.prompt_tokens
        until = now + self._unsaturated_seconds
        room = self._room(_view_of(snapshot, endpoint), now)
        if room.requests >= 1 and room.opens_at <= until and room.fits(tokens):
            return True
        rooms = {endpoint: room}
        for address in pick.addresses:
            if address != endpoint:
                room = rooms[address] = self._room(_view_of(snapshot, address), now)
                if room.requests >= 1 and room.opens_at <= until and room.fits(tokens):
                    return True
        self._rooms = rooms
        return False

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
        rooms, self._rooms = self._rooms, {}
        if not control.waiting:  # rooms were not followed
            self._offer_all(rooms, now)
        ttl = limits.of(terms.priority).ttl
        if terms.ttl_seconds is not None:
            ttl = min(ttl, terms.ttl_seconds)
        # The proxy waits for so long: what a reload changes later does not prolong it.
        ticket.longest_wait = min(ticket.hold_limit, limits.longest_wait(ttl))
        held = _Held(ticket, wanted, terms.caller)
        request = FlowRequest(
            held,
            priority=terms.priority,
            flow=terms.caller,
            tokens=wanted.prompt_tokens + self._expected_output(wanted, now),
            prompt_tokens=wanted.prompt_tokens,
            size=ticket.body_bytes,
            ttl=ttl,
            deadline=None if terms.ttft_seconds is None else now + terms.ttft_seconds,
            hold=ticket.longest_wait,
        )
        outcomes = control.submit(request, now)
        result: Result = WAIT
        if request.outcome is None:
            self._requests[ticket] = request
            self._depths.add(request, wanted.model, ticket.requested)
            self._hook(RequestHeld(self._store.pool, terms.priority))
            self._report_zero()
        for outcome in outcomes:
            if outcome.request is request:
                result = self._decision(outcome, held, now, was_held=False)
            else:
                self._deliver(outcome, now)
        if result is WAIT and not ticket.pending:  # its client left while others were resumed
            self.cancelled(ticket, now)
        self._plan_wake()
        self._count_waiting()
        return result

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """The client of a held request left."""
        request = self._requests.get(ticket)
        if request is None:
            return
        self._follow(now)
        for outcome in self._control.cancel(request, now):
            self._deliver(outcome, now)
        self._plan_wake()
        self._count_waiting()

    def sent(self, address: str, prompt_tokens: int, now: float) -> None:
        """A request was sent to the endpoint."""
        self._evidence_of(address).sent(prompt_tokens, now)
        if address in self._shared:
            self._sent_last.add(address)
            if self._control.waiting:
                self._changed.add(address)  # its room opens for the peer first

    def ended(self, address: str, sent_at: float, now: float) -> None:
        """A request that was sent to the endpoint at `sent_at` has ended."""
        evidence = self._evidence.get(address)
        if evidence is not None:
            evidence.ended(sent_at, now)

    # -- what the shell calls ----------------------------------------------------------------------------------------

    def run(self, now: float) -> None:
        """What is due: called at the time that `wake` was given, or later."""
        control = self._control
        if not control.waiting:
            self._woken_at = FOREVER
            self._changed.clear()
            return
        self._woken_at = _LONG_AGO  # what changes meanwhile is due at the end
        try:
            self._follow(now)
            changed, self._changed = self._changed, set()
            outcomes: list[Outcome] = []
            if control.stale:
                outcomes += control.replan(now, REPLANNED_PER_STEP)
            for address in sorted(changed):
                if address in self._places:
                    outcomes += control.offer(address, self._room(_view_of(self._snapshot, address), now), now)
            outcomes += control.advance(now)
            for outcome in outcomes:
                self._deliver(outcome, now)
        finally:
            self._woken_at = FOREVER
            self._plan_wake()
            self._count_waiting()

    def apply(self, settings: HoldingSettings) -> None:
        """Replace the settings. Requests that are held stay; where none are held any more, they are dispatched."""
        self._settings = settings
        self._set_detector()
        self._control.apply(settings.limits)
        self._all_changed()

    def shut_down(self, now: float) -> None:
        """Refuse every held request. One that arrives from now on is dispatched where there is room, else refused."""
        for outcome in self._control.shut_down(now):
            self._deliver(outcome, now)
        self._count_waiting()

    # -- within: what the routing state reports ----------------------------------------------------------------------

    def _endpoint_changed(self, address: str) -> None:
        """The state of an endpoint has changed, or (empty) the set of endpoints or what applies to all."""
        if not address:
            self._all_changed()
        elif address != self._dispatching and self._control.waiting:
            self._changed.add(address)
            self._wake_soon()

    def _set_detector(self) -> None:
        settings = self._settings
        self._room_limits = settings.room
        self._detector: Detector = DETECTORS[settings.detector] if settings.enabled else _no_limit
        # For how long an endpoint may be without room before requests are held.
        room = settings.room
        longer = settings.detector == HEADROOM and room.hold_from_seconds > room.max_wait_seconds
        self._unsaturated_seconds = room.hold_from_seconds - room.max_wait_seconds if longer else 0.0

    def _all_changed(self) -> None:
        if self._control.waiting:
            self._changed.update(self._places)
            self._wake_soon()

    def _peer_started(self, address: str) -> None:
        """A peer has sent a request to the endpoint."""
        self._sent_last.discard(address)
        self._shared.add(address)

    def _restarted(self, address: str, now: float) -> None:
        evidence = self._evidence.get(address)
        if evidence is not None:
            evidence.reset()

    def _wake_soon(self) -> None:
        if self._woken_at != _LONG_AGO:
            self._woken_at = _LONG_AGO
            self._wake(_LONG_AGO)

    def _count_waiting(self) -> None:
        waiting = self._control.waiting
        if waiting != self._counted:
            self._counted = waiting
            self.on_waiting(waiting)

    def _plan_wake(self) -> None:
        control = self._control
        if not control.waiting:
            return
        if control.stale or self._changed:
            self._wake_soon()
        elif (due := min(control.next_due(), self._state_due)) < self._woken_at:
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
                self._sent_last.discard(address)
                self._shared.discard(address)
            if control.waiting:
                self._changed.update(self._places)
            if self._places:
                self._zero_reported = False
            self._report_zero()

    @property
    def _state_due(self) -> float:
        """When the passing of time alone changes which endpoints may be picked, or what is known of them: a reading
        expires, or the trial of an ejected endpoint is due."""
        snapshot, now = self._snapshot, self._now
        due = snapshot.good_until if snapshot.good_until > now else FOREVER
        if snapshot.has_errors:
            for view in snapshot.endpoints:
                errors = view.errors
                if errors is not None and errors.trial_at is not None and now < errors.trial_at < due:
                    due = errors.trial_at
        return due

    def _report_zero(self) -> None:
        """Report once for each time without endpoints that requests wait."""
        waiting = self._control.waiting
        if waiting and not self._places and not self._zero_reported:
            self._zero_reported = True
            self._hook(HeldAtZero(self._store.pool, waiting))

    # -- within: room ------------------------------------------------------------------------------------------------

    def _evidence_of(self, address: str) -> EndpointEvidence:
        evidence = self._evidence.get(address)
        if evidence is None:
            evidence = self._evidence[address] = EndpointEvidence()
        return evidence

    def _room(self, view: EndpointView, now: float) -> Room:
        evidence = self._evidence_of(view.address)
        evidence.observe(view)
        room = self._detector(view, evidence.evidence(self._share), self._room_limits, now)
        if self._sent_last and view.address in self._sent_last and view.work.of_peers:
            return room._replace(opens_at=room.opens_at + TURN_SECONDS)
        return room

    def _with_inputs(self, endpoint: EndpointReport, now: float) -> EndpointReport:
        view, evidence = _view_of(self._snapshot, endpoint.address), self._evidence_of(endpoint.address)
        evidence.observe(view)
        inputs = room_inputs(view, evidence.evidence(self._share), self._settings.room, now)
        return endpoint._replace(inputs=inputs)

    def _offer_all(self, rooms: Mapping[str, Room], now: float) -> None:
        """Set the room of every endpoint while nothing waits; `rooms` are those that are known."""
        for view in self._snapshot.endpoints:
            address = view.address
            if address in self._places:
                room = rooms.get(address)
                self._control.offer(address, self._room(view, now) if room is None else room, now)
        self._changed.clear()

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
        try:
            return self._cost(held, ahead)
        except Exception as error:  # noqa: BLE001  the outcomes of others that are found with it must not be lost
            self._failed(error)
            nowhere = [FOREVER] * len(self._places)
            return Estimate(nowhere, nowhere)

    def _cost(self, held: _Held, ahead: Sequence[float]) -> Estimate:
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
        """Resume the ticket of an outcome. What fails here affects no other request."""
        held = outcome.request.item
        if not isinstance(held, _Held):
            return
        ticket = held.ticket
        if self._requests.pop(ticket, None) is not None:
            self._depths.remove(outcome.request, held.wanted.model, ticket.requested)
        if not ticket.pending:  # its client left
            self._report(CANCELLED, outcome, held)
            if isinstance(outcome, Dispatched):
                self._changed.add(outcome.endpoint)
            return
        try:
            ticket.resume(self._decision(outcome, held, now, was_held=True))
        except Exception as error:  # noqa: BLE001  a defect must not leave the other clients without an answer
            self._failed(error)
            if ticket.pending:
                ticket.resume(_FAILED)

    def _decision(self, outcome: Outcome, held: _Held, now: float, *, was_held: bool) -> Pick | Rejection:
        """The decision that follows from an outcome; a pick is in flight from here."""
        ticket, dispatcher = held.ticket, self.dispatcher
        waited = outcome.waited_seconds if was_held else None
        if dispatcher is None:
            raise ValueError("no stage dispatches the requests")
        if isinstance(outcome, Dispatched):
            how, retry_after, answer = outcome.how, 0, self._pick(dispatcher, ticket, outcome.endpoint, now)
        elif outcome.reason == NO_ENDPOINTS:
            # A request that the proxy allows at ejected endpoints only waits for none of the others.
            how, retry_after, answer = STOLEN if was_held else DIRECT, outcome.retry_after, dispatcher.pick(ticket, now)
        else:
            self._report(outcome.reason, outcome, held)
            return Rejection(outcome.reason, _message(outcome), retry_after=outcome.retry_after, waited_seconds=waited)
        if isinstance(answer, NoPick):
            self._report(NO_ENDPOINTS, outcome, held)
            message = f"No model server is available: {answer.detail}"
            return Rejection(answer.reason, message, retry_after=retry_after, waited_seconds=waited)
        self._report(how, outcome, held)
        if waited is not None:
            answer = answer._replace(waited_seconds=waited, dispatched=how)
        self._dispatching = (
            answer.endpoint if isinstance(outcome, Dispatched) and answer.endpoint == outcome.endpoint else ""
        )
        try:
            dispatcher.dispatch(ticket, answer, now)
        finally:
            self._dispatching = ""
        return answer

    def _pick(self, dispatcher: Dispatcher, ticket: Ticket, endpoint: str, now: float) -> Pick | NoPick:
        """The pick of the endpoint that has room; of another one where it may not serve the request any more."""
        answer = dispatcher.pick(ticket, now)
        if isinstance(answer, Pick):
            if endpoint in answer.addresses:
                return redirected(answer, endpoint, ROOM)
            for narrowing in answer.narrowed:
                if endpoint not in narrowing.after and endpoint in narrowing.before:
                    if narrowing.filter not in _NO_PROFILE_FILTERS:  # it would prefer others, which have no room
                        alone = dispatcher.pick(ticket, now, endpoint)
                        if isinstance(alone, Pick):
                            return alone._replace(decided_by=ROOM)
                    break
        self._changed.add(endpoint)  # its room is not used
        return answer

    def _failed(self, error: Exception) -> None:
        self._hook(StreamBroken(self._store.pool, "error", f"flow control: {error!r}"))

    def _report(self, how: str, outcome: Outcome, held: _Held) -> None:
        request, wanted = outcome.request, held.wanted
        self._hook(
            FlowDecided(
                self._store.pool,
                request.priority,
                how,
                outcome.waited_seconds,
                held.caller,
                wanted.model,
                held.ticket.requested,
                request.tokens,
            )
        )


def _ignore_count(count: int) -> None:
    """No other replica is to know it."""


def _no_limit(view: EndpointView, evidence: Evidence, limits: RoomLimits, now: float) -> Room:
    """The detector where no request is held."""
    return _UNLIMITED


def _view_of(snapshot: Snapshot, address: str) -> EndpointView:
    """The endpoint in a snapshot of the store that has it."""
    return snapshot.endpoints[bisect_left(snapshot.addresses, address)]


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


def _message(outcome: RefusedRequest) -> str:
    """Why a request is refused, and what its client may do."""
    again = f" Try again in {outcome.retry_after} s." if outcome.retry_after else ""
    match outcome.reason:
        case "shed":
            priority = outcome.request.priority
            why = f"The model servers are saturated, and requests of priority {priority} are refused first."
        case "displaced":
            why = "The model servers are saturated, and the queue of the gateway is full."
        case "expired":
            why = f"No model server had room for the request within {outcome.waited_seconds:.1f} s."
        case _:
            why = "The gateway's endpoint picker stops."
    return why + again
