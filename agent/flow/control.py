"""Flow control of one pool: which request waits, which is served next, and which is refused.

Use:

    control = FlowControl(FlowLimits(), estimate, random)
    control.set_endpoints(addresses, now); control.replan(now)
    control.offer(address, room, now)       # after each page, and each end of a request at the endpoint
    control.submit(request, now)            # a request arrives
    control.cancel(request, now)            # its client leaves
    control.advance(now)                    # not later than `control.next_due()`

Each call returns outcomes, in order; a request without one waits. The caller starts a dispatched request at once: its
room is already used up here. `now` may step; a clock that goes back is taken to stand still.

On arrival a request is planned to the endpoint of the least cost, where the work planned before it counts
(`Estimator`), so that it waits for the cache that it needs. It is dispatched when that endpoint has room. Which request
an endpoint with room gets:

    1. of the highest band that has one planned to the endpoint: the next one of that band (`agent.flow.band`);
    2. before it, one of a higher band that is planned elsewhere and has waited long enough for its cache: as long as
       the work takes that would be done twice here, times `FlowLimits.patience`;
    3. where nothing is planned to it, one that is planned elsewhere, the highest band first, once it may be stolen.

A request may be stolen as soon as that costs nothing: another endpoint has as much of its cache. Else it waits for its
cache for at most IDLE_PATIENCE times the work that would be done twice. A burst is often shorter than that, and a cache
that is lost in it costs more than the wait: on the Mooncake trace at .6 of what the servers can do, the hits are .306
with an IDLE_PATIENCE of 0, .335 with 4 and .338 without flow control; at .9 the p90 of all requests is 3.9 s with 0 and
3.1 s with 4.

So no endpoint has room while a request waits that it may serve, but for this time; and a request of a higher band is
overtaken by one of a lower band only while it waits for its own cache, for at most MAX_PATIENCE_SECONDS. With a
patience of 0 it is never overtaken, and loses its cache: on the same trace at twice what the servers can do, prefix
hits of the highest band are .66 of the ideal with a patience of 0, .89 with 1 and .95 with 20, and it is served sooner
with 20 than with 0.

An endpoint whose next request does not fit into its KV cache has no room: a smaller request that went first would use
what the larger one waits for.

Where the bound of the queue is reached, the newest request of the lowest band leaves. Only where that is the arriving
one, or where even all lower bands would not make enough space, the arriving one is refused.

Costs: a call takes O(log n) of the waiting requests, apart from `set_endpoints` and `replan`, and from requests that
only some endpoints may serve: those are skipped one by one.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from agent.flow.band import MAX_PATIENCE_SECONDS, Band, EndpointPlan
from agent.flow.dispatch_rate import DispatchRate
from agent.flow.flow_names import ONE_FLOW, FlowNames
from agent.flow.ordering import EARLIEST_DEADLINE, due_at
from agent.flow.outcomes import (
    CANCELLED,
    DIRECT,
    DISPLACED,
    EXPIRED,
    NO_ENDPOINTS,
    PLANNED,
    REFUSALS,
    SHED,
    SHUTTING_DOWN,
    STOLEN,
    Dispatched,
    Outcome,
    RefusedRequest,
)
from agent.flow.request import FOREVER, NOWHERE, FlowRequest
from agent.flow.room import Room
from agent.flow.shedding import retry_after, shed_probability

_LONG_AGO: Final = float("-inf")
# Bands that are kept while they are empty, for the rates and debts in them.
_KEPT_BANDS: Final = 64
# Entries of requests that have left are removed from a heap when they outnumber the others by this many.
_MANY: Final = 64
# A request is not stolen before it has waited for so many times the work that would be done twice then.
IDLE_PATIENCE: Final = 4.0
# The wait that a client is given where no rate is known: the pool has no endpoints, or the agent stops.
UNKNOWN_RETRY_SECONDS: Final = 4.0


class BandLimits(NamedTuple):
    """The limits of one band: requests and bytes that may wait, and the TTL in seconds. `by_caller`: each caller has a
    flow of its own, else all share one. `ordering` is that of a flow, one of ORDERINGS of `agent.flow.ordering`."""

    max_requests: float = FOREVER
    max_bytes: float = FOREVER
    ttl: float = 60.0
    by_caller: bool = True
    ordering: str = EARLIEST_DEADLINE


class FlowLimits(NamedTuple):
    """The limits of a pool.

    `max_requests` and `max_bytes` bound all bands together; `bands` has the limits of single priorities, `negative`
    those of the other negative ones (None: as `band`), `band` those of the rest. `empty_ttl` is how long a request
    waits for the first endpoint of an empty pool, 0 where it does not; this time is not counted against its TTL.
    `shed_from` is the part of the TTL from which on requests of a negative priority are shed. `quantum` is the credit
    of a round in tokens, at least 1, and `patience` as above (infinite: only an endpoint without planned work steals,
    or after MAX_PATIENCE_SECONDS of `agent.flow.band`); where it is less than IDLE_PATIENCE, that is as little. The
    declared `callers` have a flow of their own each, and at most `max_flows` others at a time. `hold` is the longest
    time in seconds for which a request may wait at all, whatever its TTL and however long the pool is empty. A request
    keeps the longest wait that it had when it arrived (`longest_wait`), because the proxy waits no longer than that.
    """

    max_requests: float = FOREVER
    max_bytes: float = FOREVER
    band: BandLimits = BandLimits()
    bands: Mapping[int, BandLimits] = {}
    negative: BandLimits | None = None
    empty_ttl: float = 0.0
    shed_from: float = 0.5
    quantum: int = 65_536
    patience: float = 20.0
    hold: float = FOREVER
    callers: frozenset[str] = frozenset()
    max_flows: int = 1_000

    def of(self, priority: int) -> BandLimits:
        """The limits of the band of a priority."""
        band = self.bands.get(priority)
        if band is None:
            band = self.negative if priority < 0 else None
        return self.band if band is None else band

    def longest_wait(self, ttl: float) -> float:
        """The seconds for which a request with this TTL may wait, however often the pool is empty meanwhile."""
        return min(self.hold, ttl + self.empty_ttl)


class Estimate(NamedTuple):
    """What a request costs at each endpoint, in their order, the waits there included; and the seconds of work that it
    adds there. An infinite cost: the endpoint may not serve it."""

    costs: Sequence[float]
    seconds: Sequence[float]


# (request, seconds of planned work before it at each endpoint) -> estimate, aligned with `FlowControl.addresses`
Estimator = Callable[[FlowRequest, Sequence[float]], Estimate]
# (request, address, whether it is planned there from now on, or not any more)
PlanChanged = Callable[[FlowRequest, str, bool], None]


def _ignore(request: FlowRequest, address: str, planned: bool) -> None:  # noqa: FBT001  a callback
    """No one follows the plans."""


class FlowControl:
    """The waiting requests of one pool. `estimate` is the profile's cost; `random` returns numbers from 0 to 1;
    `plan_changed` is called when a waiting request is planned to an endpoint, and when that plan is over."""

    def __init__(
        self,
        limits: FlowLimits,
        estimate: Estimator,
        random: Callable[[], float],
        plan_changed: PlanChanged = _ignore,
    ) -> None:
        self.limits = limits
        self._estimate = estimate
        self._plan_changed = plan_changed
        self._random = random
        self._names = FlowNames(limits.max_flows, limits.callers)
        self._now = _LONG_AGO
        self.addresses: tuple[str, ...] = ()
        self._places: dict[str, int] = {}
        self._endpoints: dict[str, EndpointPlan] = {}
        self._nothing: list[float] = []  # the work before a request where nothing is planned
        self._open: dict[EndpointPlan, None] = {}  # with room now
        self._openings: list[tuple[float, int, EndpointPlan]] = []  # with room later, by the passing of time
        self._bands: list[Band] = []  # with waiting requests, the highest first
        self._order: list[int] = []  # their negated priorities
        self._known: dict[int, Band] = {}  # by priority; some are empty
        self._expiries: list[tuple[float, int, FlowRequest]] = []
        self._stale: deque[FlowRequest] = deque()  # to be planned again
        self._fixed = 0  # requests that may not be stolen yet
        self._releases: list[tuple[float, int, FlowRequest]] = []  # when they may
        self._released = False  # some may, and endpoints with room have not been searched since
        self._rate = DispatchRate()
        self._sequence = 0
        self._empty_since: float | None = _LONG_AGO
        self._empty_ttl = limits.empty_ttl  # the longest one since the pool is empty: what is held for it stays
        self._shut = False
        self.waiting = 0
        self.bytes = 0

    # -- what changes ------------------------------------------------------------------------------------------------

    def apply(self, limits: FlowLimits) -> None:
        """Replace the limits. Requests that wait stay, also where they are more than the new limits allow."""
        self.limits = limits
        self._names.apply(limits.max_flows, limits.callers)
        self._empty_ttl = max(self._empty_ttl, limits.empty_ttl)
        for band in self._known.values():
            band.quantum = max(1, limits.quantum)
            ordering = limits.of(band.priority).ordering
            if ordering != band.ordering:
                band.set_ordering(ordering)

    def set_endpoints(self, addresses: Sequence[str], now: float) -> None:
        """Replace the endpoints that may be picked. `replan` then plans the waiting requests again; until then the new
        endpoints get none of them."""
        now = self._enter(now)
        if tuple(addresses) == self.addresses:
            return
        before, places = self._endpoints, self._places
        self.addresses = tuple(addresses)
        self._places = {address: place for place, address in enumerate(self.addresses)}
        self._nothing = [0.0] * len(self.addresses)
        self._stale = deque(request for band in self._bands for request in band.requests)
        for request in self._stale:
            if request.planned is not None and request.endpoint not in self._places:
                self._unplan(request)
        kept = [places.get(address) for address in self.addresses]
        for band in self._bands:
            band.ahead = [0.0 if place is None else band.ahead[place] for place in kept]
        self._endpoints = {}
        for address, place in self._places.items():
            endpoint = before.pop(address, None) or EndpointPlan(address, place)
            endpoint.place = place
            self._endpoints[address] = endpoint
        for endpoint in before.values():
            self._open.pop(endpoint, None)
            endpoint.opens_at = FOREVER
        if not self._endpoints:
            self._begin_emptiness(now)
        elif self._empty_since is not None:
            self._end_emptiness(self._empty_since, now)

    def replan(self, now: float, limit: int | None = None) -> list[Outcome]:
        """Plan waiting requests again after a change of the endpoints, at most `limit` of them, the highest band first;
        endpoints with room get what they may serve of them. `stale` is the number that is left."""
        now = self._enter(now)
        out: list[Outcome] = []
        self._expire(now, out)
        if not self._endpoints:
            self._stale.clear()
        left = len(self._stale) if limit is None else limit
        while self._stale and left > 0:
            request = self._stale.popleft()
            band = request.band
            if band is None:  # it has left
                continue
            left -= 1
            self._unplan(request)
            estimate = self._estimate(request, self._ahead(request.priority))
            band.set_served_by(request, self._set_seconds(request, estimate))
            if request.served_by == NOWHERE:
                self._remove(request, now)
                self._refuse(request, NO_ENDPOINTS, now, out)
            else:
                self._plan(request, estimate, now)
        self._fill_open(now, out)
        return out

    @property
    def stale(self) -> int:
        """Requests that `replan` has still to plan, those that have left meanwhile included."""
        return len(self._stale)

    def offer(self, address: str, room: Room, now: float) -> list[Outcome]:
        """Set the room of an endpoint; it gets the requests for which it has room."""
        now = self._enter(now)
        out: list[Outcome] = []
        self._expire(now, out)
        endpoint = self._endpoints.get(address)
        if endpoint is not None:
            self._set_room(endpoint, room, now)
            if self.waiting:  # else a fleet with room costs as much for each endpoint as it has endpoints
                self._fill(endpoint, now, out)
                self._fill_open(now, out)
            else:
                endpoint.blocked = False
        return out

    def submit(self, request: FlowRequest, now: float) -> list[Outcome]:
        """A request arrives. The outcomes are those of this request and of others that it displaces; without one of its
        own it waits."""
        if request.outcome is not None or request.band is not None:
            raise ValueError("a request is submitted once")
        now = self._enter(now)
        out: list[Outcome] = []
        self._expire(now, out)
        self._open_due(now, out)
        self._sequence += 1
        request.sequence = self._sequence
        request.arrived_at = now
        priority, limits = request.priority, self.limits
        ttl = limits.of(priority).ttl if request.ttl is None else request.ttl
        longest = min(ttl, limits.hold, request.hold)
        if self._shut:
            self._refuse(request, SHUTTING_DOWN, now, out)
            return out
        estimate: Estimate | None = None
        cheapest: EndpointPlan | None = None
        if self._endpoints:
            estimate = self._estimate(request, self._ahead(priority))
            request.served_by = self._set_seconds(request, estimate)
            if request.served_by == NOWHERE:
                self._refuse(request, NO_ENDPOINTS, now, out)
                return out
            if self._open:
                cheapest = self._cheapest_with_room(request, estimate)
                # While others wait for their caches, this one may wait for its own too.
                if cheapest is not None and (not self.waiting or estimate.costs[cheapest.place] <= min(estimate.costs)):
                    self._use_room(request, cheapest, DIRECT, now, out)
                    return out
        elif limits.empty_ttl <= 0 or longest <= 0:
            self._refuse(request, NO_ENDPOINTS, now, out)
            return out
        refusal = self._why_not_held(request, longest, ttl if estimate is not None else FOREVER, now, out)
        if refusal and cheapest is not None:
            self._use_room(request, cheapest, DIRECT, now, out)
        elif refusal:
            self._refuse(request, refusal, now, out)
        else:
            self._hold(request, ttl, now)
            if estimate is not None:
                self._plan(request, estimate, now)
            self._fill_open(now, out)
        return out

    def cancel(self, request: FlowRequest, now: float) -> list[Outcome]:
        """The client of a waiting request left; without effect on one that does not wait."""
        now = self._enter(now)
        out: list[Outcome] = []
        if request.band is not None:
            self._remove(request, now)
            self._refuse(request, CANCELLED, now, out)
            self._fill_open(now, out)
        return out

    def advance(self, now: float) -> list[Outcome]:
        """What happens by the passing of time: requests expire, and endpoints have room again."""
        now = self._enter(now)
        out: list[Outcome] = []
        self._expire(now, out)
        self._open_due(now, out)
        return out

    def next_due(self) -> float:
        """When `advance` has to be called at the latest (monotonic seconds); infinite: not before another call."""
        if not self.waiting:
            return FOREVER
        openings, expiries = self._openings, self._expiries
        while openings and openings[0][2].opens_at != openings[0][0]:
            heapq.heappop(openings)
        while expiries and not _is_expiry(expiries[0]):
            heapq.heappop(expiries)
        due = min(openings[0][0] if openings else FOREVER, expiries[0][0] if expiries else FOREVER)
        if self._open and self._fixed:
            releases = self._releases
            while not _is_release(releases[0]):
                heapq.heappop(releases)
            due = min(due, releases[0][0])
        return due

    def shut_down(self, now: float) -> list[Outcome]:
        """Refuse every waiting request, the highest band first, and those that arrive from now on."""
        now = self._enter(now)
        out: list[Outcome] = []
        self._shut = True
        for request in [request for band in self._bands for request in band.requests]:
            self._remove(request, now)
            self._refuse(request, SHUTTING_DOWN, now, out)
        return out

    # -- what is known -----------------------------------------------------------------------------------------------

    def expected_wait(self, priority: int, now: float) -> float:
        """The seconds that a request of this priority is expected to wait, 0 where none waits before it.

        The longest of these: the backlog of its band and the bands above it, over the rate of all bands; and the
        backlog of each of them, over the rate of that band, which is low while higher bands take what is dispatched.
        """
        now = max(now, self._now)
        tokens = requests = 0
        own = 0.0
        for band in self._bands:
            if band.priority < priority:
                break
            tokens += band.tokens
            requests += len(band.requests)
            own = max(own, band.tokens / band.rate.per_second(band.tokens / len(band.requests), now))
        return max(own, tokens / self._rate.per_second(tokens / requests, now)) if requests else 0.0

    def drain_rate(self, now: float) -> float | None:
        """Tokens per second that were dispatched while requests waited; None before anything was observed."""
        rate = self._rate.per_second(0.0, max(now, self._now))
        return None if rate == FOREVER else rate

    def bands(self) -> tuple[Band, ...]:
        """The bands in which requests wait, the highest first, to be read."""
        return tuple(self._bands)

    def known_priorities(self) -> tuple[int, ...]:
        """The priorities of which requests wait, or have waited and not long ago."""
        return tuple(self._known)

    def endpoints(self) -> tuple[EndpointPlan, ...]:
        """The endpoints, to be read."""
        return tuple(self._endpoints.values())

    # -- within: dispatch --------------------------------------------------------------------------------------------

    def _enter(self, now: float) -> float:
        self._now = now = max(self._now, now)
        releases = self._releases
        while releases and releases[0][0] <= now:
            entry = heapq.heappop(releases)
            if _is_release(entry):
                self._release(entry[2])
                self._released = True
        return now

    def _next(self, endpoint: EndpointPlan, now: float) -> FlowRequest | None:
        """The request that the endpoint gets next."""
        patience = self.limits.patience
        if endpoint.count and patience > 0:
            for band in self._bands:
                if band.priority in endpoint.bands:
                    return band.next_request(endpoint, now, patience)
                found = band.steal_patiently(endpoint, now, patience)
                if found is not None:
                    return found
        if not endpoint.count and self._fixed == self.waiting:
            return None
        for band in self._bands:
            found = band.next_request(endpoint, now, patience)
            if found is not None:
                return found
        return None

    def _fill(self, endpoint: EndpointPlan, now: float, out: list[Outcome]) -> None:
        """Dispatch to an endpoint for as long as it has room."""
        while endpoint in self._open:
            request = self._next(endpoint, now)
            if request is None:
                endpoint.blocked = False
                return
            if not endpoint.room.fits(request.prompt_tokens):
                endpoint.blocked = True
                return
            endpoint.blocked = False
            self._dispatch(request, endpoint, now, out)

    def _fill_open(self, now: float, out: list[Outcome]) -> None:
        """Dispatch to all endpoints that have room; few have any while requests wait."""
        while self._open:
            before = len(out)
            for endpoint in sorted(self._open, key=_by_place):
                self._fill(endpoint, now, out)
            if len(out) == before:
                return  # else a request may have left that did not fit at one of the others

    def _open_due(self, now: float, out: list[Outcome]) -> None:
        """Dispatch what may be by the passing of time: to endpoints that have room, and what may be stolen."""
        openings = self._openings
        if not self._released and (not openings or openings[0][0] > now):
            return
        self._released = False
        while openings and openings[0][0] <= now:
            at, _, endpoint = heapq.heappop(openings)
            if endpoint.opens_at == at:
                endpoint.opens_at = FOREVER
                self._open[endpoint] = None
                self._fill(endpoint, now, out)
        self._fill_open(now, out)

    def _dispatch(self, request: FlowRequest, endpoint: EndpointPlan, now: float, out: list[Outcome]) -> None:
        band, flow, planned = request.band, request.flow, request.planned
        if band is None or flow is None:
            raise ValueError("a request is dispatched from its band")
        how = PLANNED if planned is not None and planned.endpoint is endpoint else STOLEN
        band.rate.dispatched(request.tokens, now)
        self._rate.dispatched(request.tokens, now)
        self._remove(request, now)
        band.charge(flow, request.tokens)
        self._use_room(request, endpoint, how, now, out)

    def _cheapest_with_room(self, request: FlowRequest, estimate: Estimate) -> EndpointPlan | None:
        """The endpoint of the least cost that has room for an arriving request; None: none has.

        No waiting request may be dispatched to an endpoint that has room, unless it does not fit there (`blocked`).
        """
        best: EndpointPlan | None = None
        least = FOREVER
        for endpoint in sorted(self._open, key=_by_place) if len(self._open) > 1 else self._open:
            cost = estimate.costs[endpoint.place]
            if cost < least and not endpoint.blocked and endpoint.room.fits(request.prompt_tokens):
                best, least = endpoint, cost
        return best

    def _use_room(self, request: FlowRequest, endpoint: EndpointPlan, how: str, now: float, out: list[Outcome]) -> None:
        room = endpoint.room.after(request.prompt_tokens, request.seconds_at(endpoint.address), now)
        self._set_room(endpoint, room, now)
        outcome = Dispatched(request, endpoint.address, now - request.arrived_at, how)
        request.outcome = outcome
        out.append(outcome)

    def _set_room(self, endpoint: EndpointPlan, room: Room, now: float) -> None:
        endpoint.room = room
        opens_at = room.opens_at if room.requests >= 1 else FOREVER
        if opens_at <= now:
            endpoint.opens_at = FOREVER
            self._open[endpoint] = None
            return
        self._open.pop(endpoint, None)
        if endpoint.opens_at != opens_at:
            endpoint.opens_at = opens_at
            if opens_at < FOREVER:
                openings = self._openings
                self._sequence += 1
                heapq.heappush(openings, (opens_at, self._sequence, endpoint))
                if len(openings) > 2 * len(self._endpoints) + _MANY:
                    openings[:] = [entry for entry in openings if entry[2].opens_at == entry[0]]
                    heapq.heapify(openings)

    # -- within: the queue -------------------------------------------------------------------------------------------

    def _hold(self, request: FlowRequest, ttl: float, now: float) -> None:
        """Add a request to its band."""
        limits = self.limits.of(request.priority)
        request.flow_name = self._names.take(request.flow_name) if limits.by_caller else ONE_FLOW
        request.expires_at = now + ttl
        request.due_at = due_at(limits.ordering, request)
        band = self._known.get(request.priority)
        if band is None or not band.requests:
            band = self._begin_band(request.priority, band, now)
        band.add(request)
        if not self.waiting and self._empty_since is None:
            self._rate.start(now)
        self.waiting += 1
        self.bytes += request.size
        request.latest = now + min(request.hold, self.limits.longest_wait(ttl))
        self._push_expiry(request, self._expires_at(request))

    def _begin_band(self, priority: int, band: Band | None, now: float) -> Band:
        """The band of a priority, made if need be, among those in which requests wait."""
        known = self._known
        if band is None:
            if len(known) >= len(self._bands) + _KEPT_BANDS:
                del known[next(each for each, kept in known.items() if not kept.requests)]
            band = Band(priority, max(1, self.limits.quantum), self.limits.of(priority).ordering)
        else:
            del known[priority]
        known[priority] = band  # the last, so that the one that was empty for longest is removed first
        place = bisect_right(self._order, -priority)
        self._order.insert(place, -priority)
        self._bands.insert(place, band)
        band.ahead = list(self._bands[place - 1].ahead if place else self._nothing)
        if self._empty_since is None:
            band.rate.start(now)
        return band

    def _remove(self, request: FlowRequest, now: float) -> None:
        """Remove a request from its band."""
        band = request.band
        if band is None:
            raise ValueError("the request does not wait")
        self._unplan(request)
        band.remove(request)
        self._names.release(request.flow_name)
        self.waiting -= 1
        self.bytes -= request.size
        if not band.requests:
            place = self._bands.index(band)
            del self._bands[place], self._order[place]
            band.rate.stop(now)
            if not self.waiting:
                self._rate.stop(now)

    def _refuse(self, request: FlowRequest, reason: str, now: float, out: list[Outcome]) -> None:
        seconds = 0
        if REFUSALS[reason].retry:
            unknown = self._shut or not self._endpoints
            wait = UNKNOWN_RETRY_SECONDS if unknown else self.expected_wait(request.priority, now)
            seconds = retry_after(wait, self._random())
        outcome = RefusedRequest(request, reason, now - request.arrived_at, seconds)
        request.outcome = outcome
        out.append(outcome)

    def _why_not_held(self, request: FlowRequest, longest: float, ttl: float, now: float, out: list[Outcome]) -> str:
        """Why an arriving request may not wait; empty: it may, and there is space for it. `ttl` is infinite where the
        pool is empty, so that nothing is shed."""
        if longest <= 0:
            return EXPIRED
        if request.priority < 0:
            likely = shed_probability(self.expected_wait(request.priority, now), ttl, self.limits.shed_from)
            if likely > 0 and self._random() < likely:
                return SHED
        return "" if self._make_space(request, now, out) else DISPLACED

    def _make_space(self, request: FlowRequest, now: float, out: list[Outcome]) -> bool:
        """Displace what has to leave for an arriving request; False, and nothing leaves, where it cannot be held."""
        limits, size = self.limits, request.size
        own = limits.of(request.priority)
        band = self._known.get(request.priority)
        held = 0 if band is None else len(band.requests)
        if held >= own.max_requests or size + (0 if band is None else band.bytes) > own.max_bytes:
            return False
        # Where a reload has made the bound smaller than what waits, one leaves for one that arrives.
        requests = 1 if self.waiting >= limits.max_requests else 0
        excess = min(float(size), self.bytes + size - limits.max_bytes)
        if not requests and excess <= 0:
            return True
        if size > limits.max_bytes or limits.max_requests < 1:
            return False
        lower = self._bands[bisect_right(self._order, -request.priority) :]
        if sum(len(each.requests) for each in lower) < requests or sum(each.bytes for each in lower) < excess:
            return False
        while requests > 0 or excess > 0:
            newest = next(reversed(self._bands[-1].requests))
            requests -= 1
            excess -= newest.size
            self._remove(newest, now)
            self._refuse(newest, DISPLACED, now, out)
        return True

    def _expire(self, now: float, out: list[Outcome]) -> None:
        expiries = self._expiries
        if not expiries or expiries[0][0] > now:
            return
        before = len(out)
        while expiries and expiries[0][0] <= now:
            entry = heapq.heappop(expiries)
            if not _is_expiry(entry):
                continue
            request = entry[2]
            due = self._expires_at(request)
            if due > now:
                self._push_expiry(request, due)
            else:
                self._remove(request, now)
                self._refuse(request, EXPIRED if self._endpoints else NO_ENDPOINTS, now, out)
        if len(out) > before:
            self._fill_open(now, out)

    def _expires_at(self, request: FlowRequest) -> float:
        since, empty_ttl = self._empty_since, self._empty_ttl
        at = request.expires_at
        if since is not None and empty_ttl > 0:
            at = max(request.arrived_at, since) + empty_ttl
        return min(at, request.latest)

    def _push_expiry(self, request: FlowRequest, at: float) -> None:
        request.expiry = at
        if at == FOREVER:
            return
        expiries = self._expiries
        self._sequence += 1
        heapq.heappush(expiries, (at, self._sequence, request))
        if len(expiries) > 2 * self.waiting + _MANY:
            expiries[:] = [entry for entry in expiries if _is_expiry(entry)]
            heapq.heapify(expiries)

    def _begin_emptiness(self, now: float) -> None:
        """The last endpoint has left."""
        if self._empty_since is not None:
            return
        self._empty_since, self._empty_ttl = now, self.limits.empty_ttl
        self._rate.stop(now)
        for band in self._bands:
            band.rate.stop(now)
            if self._empty_ttl > 0:
                for request in band.requests:
                    self._push_expiry(request, self._expires_at(request))

    def _end_emptiness(self, since: float, now: float) -> None:
        """The first endpoint has come."""
        self._empty_since = None
        if self.waiting:
            self._rate.start(now)
        for band in self._bands:
            band.rate.start(now)
            if self._empty_ttl > 0:
                for request in band.requests:
                    request.expires_at += now - max(request.arrived_at, since)
                    self._push_expiry(request, self._expires_at(request))

    # -- within: the plan --------------------------------------------------------------------------------------------

    def _ahead(self, priority: int) -> Sequence[float]:
        """The seconds of planned work before a request of this priority at each endpoint."""
        place = bisect_right(self._order, -priority)
        return self._bands[place - 1].ahead if place else self._nothing

    def _set_seconds(self, request: FlowRequest, estimate: Estimate) -> frozenset[str] | None:
        """Set what the request adds at each endpoint; returns those that may serve it, None for all."""
        costs, seconds = estimate
        request.places = self._places
        if max(costs) < FOREVER:
            request.seconds = array("f", seconds)
            return None
        pairs = list(zip(costs, seconds, strict=True))
        request.seconds = array("f", [FOREVER if cost == FOREVER else each for cost, each in pairs])
        return frozenset([address for address, cost in zip(self.addresses, costs, strict=True) if cost < FOREVER])

    def _plan(self, request: FlowRequest, estimate: Estimate, now: float) -> None:
        """Plan a waiting request to the endpoint of the least cost."""
        costs = estimate.costs
        place = costs.index(min(costs))
        band = request.band
        if band is None:
            raise ValueError("the request does not wait")
        request.planned_at = now
        request.planned_seconds = seconds = request.seconds[place]
        band.plan(request, self._endpoints[self.addresses[place]])
        self._fix(request, place, now)
        self._plan_changed(request, self.addresses[place], True)
        for each in self._bands[bisect_right(self._order, -request.priority) - 1 :]:
            each.ahead[place] += seconds

    def _unplan(self, request: FlowRequest) -> None:
        planned, band = request.planned, request.band
        if planned is None or band is None:
            return
        place = planned.endpoint.place
        for each in self._bands[bisect_right(self._order, -request.priority) - 1 :]:
            each.ahead[place] -= request.planned_seconds
        self._plan_changed(request, planned.endpoint.address, False)
        band.unplan(request)
        if request.fixed:
            self._release(request)

    def _fix(self, request: FlowRequest, place: int, now: float) -> None:
        """Let no other endpoint steal a request for as long as its wait costs less than the work done twice."""
        patience = min(self.limits.patience, IDLE_PATIENCE)
        if patience <= 0:
            return
        seconds = request.seconds.tolist()
        own = seconds.pop(place)
        more = min(seconds, default=FOREVER) - own
        if not 0 < more < FOREVER:
            return
        request.fixed = True
        request.released_at = now + min(MAX_PATIENCE_SECONDS, patience * more)
        self._fixed += 1
        self._sequence += 1
        releases = self._releases
        heapq.heappush(releases, (request.released_at, self._sequence, request))
        if len(releases) > 2 * self._fixed + _MANY:
            releases[:] = [entry for entry in releases if _is_release(entry)]
            heapq.heapify(releases)

    def _release(self, request: FlowRequest) -> None:
        request.fixed = False
        self._fixed -= 1


def _by_place(endpoint: EndpointPlan) -> int:
    return endpoint.place


def _is_expiry(entry: tuple[float, int, FlowRequest]) -> bool:
    """Whether the entry is the one by which its request expires."""
    request = entry[2]
    return request.band is not None and request.expiry == entry[0]


def _is_release(entry: tuple[float, int, FlowRequest]) -> bool:
    """Whether the entry is the one by which its request may be stolen from then on."""
    request = entry[2]
    return request.fixed and request.released_at == entry[0]
