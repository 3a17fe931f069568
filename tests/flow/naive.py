"""Flow control written in the plainest way: lists that are searched from the beginning, nothing kept in order.

It has the rules of `agent.flow.control` and `agent.flow.band`, without shedding and without Retry-After, and takes and
returns names in place of requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agent.flow.band import MAX_PATIENCE_SECONDS, STEAL_SEARCH
from agent.flow.control import IDLE_PATIENCE, FlowLimits
from agent.flow.flow_names import ONE_FLOW
from agent.flow.ordering import EARLIEST_DEADLINE, FIRST_COME
from agent.flow.room import NO_ROOM, Room


@dataclass
class NaiveRequest:
    """A waiting request. `seconds` are by address; an endpoint that is missing may not serve it."""

    name: str
    priority: int
    flow: str
    tokens: int
    prompt_tokens: int
    size: int
    deadline: float
    arrived_at: float
    expires_at: float
    latest: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    planned: str = ""
    planned_at: float = 0.0
    released_at: float = -math.inf


@dataclass
class NaiveFlow:
    """What a flow has used, when it was made, and since when it is in the ring."""

    used: int
    made: int
    turn: int = 0


@dataclass
class NaiveEndpoint:
    """An endpoint, its room, and whether it has room now; `opening` orders those that have room at the same time."""

    room: Room = NO_ROOM
    open: bool = False
    opens_at: float = math.inf
    opening: int = 0


# What happened to a request: name, endpoint or empty, how or reason.
NaiveOutcome = tuple[str, str, str]


class NaiveControl:
    """As `FlowControl`, of which it takes the limits."""

    def __init__(self, limits: FlowLimits) -> None:
        self.limits = limits
        self.now = self.advanced_at = -math.inf
        self.waiting: list[NaiveRequest] = []  # in the order of arrival
        self.endpoints: dict[str, NaiveEndpoint] = {}
        self.levels: dict[int, int] = {}
        self.flows: dict[tuple[int, str], NaiveFlow] = {}
        self.counter = 0
        self.stale: list[NaiveRequest] = []
        self.empty_since: float | None = -math.inf
        self.out: list[NaiveOutcome] = []

    def count(self) -> int:
        self.counter += 1
        return self.counter

    def enter(self, now: float) -> None:
        self.now = max(self.now, now)
        self.out = []

    # -- calls -------------------------------------------------------------------------------------------------------

    def set_endpoints(self, addresses: list[str], now: float) -> None:
        self.enter(now)
        if addresses == list(self.endpoints):
            return
        self.endpoints = {address: self.endpoints.get(address, NaiveEndpoint()) for address in addresses}
        for request in self.waiting:
            if request.planned not in self.endpoints:
                request.planned = ""
                request.released_at = -math.inf
        self.stale = sorted(self.waiting, key=lambda request: -request.priority)
        if not self.endpoints:
            self.empty_since = self.now
        elif self.empty_since is not None:
            for request in self.waiting:
                if self.limits.empty_ttl > 0:
                    request.expires_at += self.now - max(request.arrived_at, self.empty_since)
            self.empty_since = None

    def replan(self, costs: dict[str, dict[str, float]], now: float) -> list[NaiveOutcome]:
        self.enter(now)
        self.expire()
        for request in self.stale:
            if request not in self.waiting or not self.endpoints:
                continue
            request.planned = ""
            request.seconds = self.served(costs[request.name])
            if request.seconds:
                self.plan(request)
            else:
                self.refuse(request, "no_endpoints")
        self.stale = []
        self.fill_all()
        return self.out

    def offer(self, address: str, room: Room, now: float) -> list[NaiveOutcome]:
        self.enter(now)
        self.expire()
        if address in self.endpoints:
            self.set_room(address, room)
            self.fill(address)
            self.fill_all()
        return self.out

    def submit(self, request: NaiveRequest, costs: dict[str, float], now: float) -> list[NaiveOutcome]:
        self.enter(now)
        self.advance_at_now()
        ttl = request.expires_at - request.arrived_at
        request.arrived_at = self.now
        request.expires_at = self.now + ttl
        request.latest = self.now + min(self.limits.hold, ttl + self.limits.empty_ttl)
        band = self.limits.of(request.priority)
        if not band.by_caller:
            request.flow = ONE_FLOW
        if band.ordering == FIRST_COME:
            request.deadline = self.now
        elif band.ordering == EARLIEST_DEADLINE:
            request.deadline = min(request.deadline, request.expires_at)
        never_waits = ttl <= 0 or self.limits.hold <= 0
        if not self.endpoints:
            if self.limits.empty_ttl <= 0 or never_waits:
                self.out.append((request.name, "", "no_endpoints"))
            elif not self.make_space(request):
                self.out.append((request.name, "", "displaced"))
            else:
                self.hold(request)
            return self.out
        request.seconds = self.served(costs)
        if not request.seconds:
            self.out.append((request.name, "", "no_endpoints"))
            return self.out
        free = [
            address
            for address, endpoint in self.endpoints.items()
            if endpoint.open
            and address in request.seconds
            and endpoint.room.fits(request.prompt_tokens)
            and not self.is_blocked(address)
        ]
        ahead = self.ahead(request.priority)
        costs = {address: ahead[address] + seconds for address, seconds in request.seconds.items()}
        cheapest = min(free, key=costs.__getitem__, default="")
        if cheapest and (not self.waiting or costs[cheapest] == min(costs.values())):
            self.use_room(request, cheapest, "direct")
            return self.out
        if never_waits or not self.make_space(request):
            if cheapest:
                self.use_room(request, cheapest, "direct")
            else:
                self.out.append((request.name, "", "expired" if never_waits else "displaced"))
            return self.out
        self.hold(request)
        self.plan(request)
        self.fill_all()
        return self.out

    def cancel(self, name: str, now: float) -> list[NaiveOutcome]:
        self.enter(now)
        for request in self.waiting:
            if request.name == name:
                self.refuse(request, "cancelled")
                self.fill_all()
                break
        return self.out

    def advance(self, now: float) -> list[NaiveOutcome]:
        self.enter(now)
        self.advance_at_now()
        return self.out

    # -- the order ---------------------------------------------------------------------------------------------------

    def next_request(self, address: str) -> NaiveRequest | None:
        patience = self.limits.patience
        bands = sorted({request.priority for request in self.waiting}, reverse=True)
        if patience > 0 and any(request.planned == address for request in self.waiting):
            for band in bands:
                if any(request.planned == address for request in self.of(band)):
                    return self.next_of_band(band, address)
                while not self.ring(band) and self.spent(band):
                    self.begin_round(band)
                found = self.steal(band, address, patience)
                if found is not None:
                    return found
        for band in bands:
            found = self.next_of_band(band, address)
            if found is not None:
                return found
        return None

    def next_of_band(self, band: int, address: str) -> NaiveRequest | None:
        if not any(address in request.seconds for request in self.of(band)):
            return None
        while True:
            planned = [request for request in self.of(band) if request.planned == address]
            if planned:
                flow = min({request.flow for request in planned}, key=lambda name: self.order(band, name))
                if self.flows[band, flow].used < self.level(band):
                    mine = [request for request in planned if request.flow == flow]
                    return min(mine, key=lambda request: request.deadline)
                if self.ring(band) and self.flows[band, flow].used < self.level(band) + self.limits.quantum // 2:
                    mine = [request for request in planned if request.flow == flow]
                    stolen = self.steal(band, address, self.limits.patience)
                    return stolen or min(mine, key=lambda request: request.deadline)
            stolen = self.steal(band, address, 0.0, fixed=bool(planned))
            if stolen is not None or not self.spent(band):
                return stolen
            if not planned and self.can_steal(band, address):
                return None
            self.begin_round(band)

    def can_steal(self, band: int, address: str) -> list[NaiveRequest]:
        return [
            request
            for flow in self.ring(band)
            for request in self.of(band)
            if request.flow == flow and address in request.seconds
        ][:STEAL_SEARCH]

    def steal(self, band: int, address: str, patience: float, *, fixed: bool = True) -> NaiveRequest | None:
        found = [each for each in self.can_steal(band, address) if fixed or each.released_at <= self.now]
        paid = [request for request in found if not patience or self.has_waited(request, address, patience)]
        return min(paid, key=lambda request: request.seconds[address], default=None)

    def has_waited(self, request: NaiveRequest, address: str, patience: float) -> bool:
        if not request.planned:
            return True
        extra = request.seconds[address] - request.seconds[request.planned]
        return self.now - request.planned_at >= min(patience * extra, MAX_PATIENCE_SECONDS)

    def of(self, band: int) -> list[NaiveRequest]:
        return [request for request in self.waiting if request.priority == band]

    def level(self, band: int) -> int:
        return self.levels.get(band, 0)

    def order(self, band: int, flow: str) -> tuple[int, int]:
        return self.flows[band, flow].used, self.flows[band, flow].made

    def ring(self, band: int) -> list[str]:
        """The flows with credit and requests, in their order."""
        names = {request.flow for request in self.of(band) if self.flows[band, request.flow].used < self.level(band)}
        return sorted(names, key=lambda name: self.flows[band, name].turn)

    def spent(self, band: int) -> list[str]:
        names = [name for priority, name in self.flows if priority == band]
        return sorted(
            (name for name in names if self.flows[band, name].used >= self.level(band)),
            key=lambda name: self.order(band, name),
        )

    def begin_round(self, band: int) -> None:
        spent = self.spent(band)
        before = self.level(band)
        self.levels[band] = before + self.limits.quantum
        while spent and self.flows[band, spent[0]].used >= self.level(band):
            self.levels[band] += self.limits.quantum
        waiting = {request.flow for request in self.of(band)}
        for name in spent:
            if self.flows[band, name].used < self.level(band):
                self.flows[band, name].turn = self.count()
        for priority, name in list(self.flows):
            if priority == band and name not in waiting and self.flows[band, name].used < self.level(band):
                del self.flows[band, name]

    # -- what a call does --------------------------------------------------------------------------------------------

    def served(self, costs: dict[str, float]) -> dict[str, float]:
        return {address: costs[address] for address in self.endpoints if costs[address] < math.inf}

    def ahead(self, priority: int) -> dict[str, float]:
        return {
            address: sum(
                request.seconds[address]
                for request in self.waiting
                if request.planned == address and request.priority >= priority
            )
            for address in self.endpoints
        }

    def plan(self, request: NaiveRequest) -> None:
        ahead = self.ahead(request.priority)
        request.planned = min(request.seconds, key=lambda address: ahead[address] + request.seconds[address])
        request.planned_at = self.now
        own = request.seconds[request.planned]
        more = min([each for address, each in request.seconds.items() if address != request.planned], default=own) - own
        if more > 0:
            patience = min(self.limits.patience, IDLE_PATIENCE)
            request.released_at = self.now + min(patience * more, MAX_PATIENCE_SECONDS)

    def hold(self, request: NaiveRequest) -> None:
        band, key = request.priority, (request.priority, request.flow)
        if key not in self.flows:
            self.flows[key] = NaiveFlow(self.level(band) - self.limits.quantum, self.count())
        if not any(each.flow == request.flow for each in self.of(band)) and self.flows[key].used < self.level(band):
            self.flows[key].turn = self.count()
        self.waiting.append(request)

    def refuse(self, request: NaiveRequest, reason: str) -> None:
        self.waiting.remove(request)
        self.out.append((request.name, "", reason))

    def make_space(self, request: NaiveRequest) -> bool:
        limits = self.limits
        own, band = self.of(request.priority), limits.of(request.priority)
        if len(own) + 1 > band.max_requests or sum(each.size for each in own) + request.size > band.max_bytes:
            return False
        leaving: list[NaiveRequest] = []
        lower = sorted(
            (each for each in reversed(self.waiting) if each.priority < request.priority),
            key=lambda each: each.priority,
        )
        while True:
            staying = [each for each in self.waiting if each not in leaving]
            size = sum(each.size for each in staying) + request.size
            if len(staying) + 1 <= limits.max_requests and size <= limits.max_bytes:
                break
            if not lower:
                return False
            leaving.append(lower.pop(0))
        for each in leaving:
            self.refuse(each, "displaced")
        return True

    def dispatch(self, request: NaiveRequest, address: str) -> None:
        flow, level = self.flows[request.priority, request.flow], self.level(request.priority)
        self.waiting.remove(request)
        flow.used = max(flow.used, level - self.limits.quantum) + request.tokens
        self.use_room(request, address, "planned" if request.planned == address else "stolen")

    def use_room(self, request: NaiveRequest, address: str, how: str) -> None:
        room = self.endpoints[address].room
        self.set_room(address, room.after(request.prompt_tokens, request.seconds[address], self.now))
        self.out.append((request.name, address, how))

    def set_room(self, address: str, room: Room) -> None:
        endpoint = self.endpoints[address]
        endpoint.room = room
        endpoint.open = room.requests >= 1 and room.opens_at <= self.now
        opens_at = room.opens_at if room.requests >= 1 and not endpoint.open else math.inf
        if opens_at != endpoint.opens_at:
            endpoint.opens_at = opens_at
            endpoint.opening = self.count()

    def is_blocked(self, address: str) -> bool:
        return self.next_request(address) is not None

    def fill(self, address: str) -> None:
        while self.endpoints[address].open:
            request = self.next_request(address)
            if request is None or not self.endpoints[address].room.fits(request.prompt_tokens):
                return
            self.dispatch(request, address)

    def fill_all(self) -> None:
        before = -1
        while len(self.out) > before:
            before = len(self.out)
            for address in self.endpoints:
                self.fill(address)

    def expire(self) -> None:
        due = [request for request in self.waiting if self.ends_at(request) <= self.now]
        for request in due:
            self.refuse(request, "expired" if self.endpoints else "no_endpoints")
        if due:
            self.fill_all()

    def ends_at(self, request: NaiveRequest) -> float:
        at = request.expires_at
        if self.empty_since is not None and self.limits.empty_ttl > 0:
            at = max(request.arrived_at, self.empty_since) + self.limits.empty_ttl
        return min(at, request.latest)

    def advance_at_now(self) -> None:
        self.expire()
        opened = any(self.advanced_at < request.released_at <= self.now for request in self.waiting)
        self.advanced_at = self.now
        while True:
            due = [address for address, endpoint in self.endpoints.items() if endpoint.opens_at <= self.now]
            if not due:
                break
            first = min(due, key=lambda each: (self.endpoints[each].opens_at, self.endpoints[each].opening))
            opened = self.endpoints[first].open = True
            self.endpoints[first].opens_at = math.inf
            self.fill(first)
        if opened:
            self.fill_all()
