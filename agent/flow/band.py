"""The waiting requests of one priority, and the order in which they leave.

Flows share a band by deficit round robin on estimated tokens. Each round gives every flow a quantum of credit. A flow
is dispatched from while it has credit, and its last request may take more than is left; the debt is paid by the next
rounds. A new round begins when no flow with credit has a request for the endpoint.

A round does not prescribe the order of the flows in it, and the order follows the caches: an endpoint gets a request
that is planned to it where such a flow has credit. Where none has, a flow may overdraw its credit by half a quantum
while the flows with credit wait for their own endpoints (`patience`); then the endpoint steals one of theirs. In a flow
the first by the ordering of the band (`agent.flow.ordering`) that is planned to the endpoint leaves first.

So credit is never more than a quantum, and debt never more than half a quantum and one request: two flows that both
wait differ by less than one and a half quanta and a request. A small quantum is fair in a shorter time, and costs
caches: with eight callers on the Mooncake trace, prefix hits are .87 of the ideal with a quantum of 65,536 tokens and
.80 with 16,384; with one caller they are .95.

Credit is kept as two sums that only grow: what each flow was given so far (`level`, equal for all) and what it has
used. Flows with credit are in a ring; those without are in a heap by what they have used, and the next round takes from
it those that get credit.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Final, TypeVar

from agent.flow.dispatch_rate import DispatchRate
from agent.flow.ordering import EARLIEST_DEADLINE, due_at
from agent.flow.request import FOREVER, FlowRequest
from agent.flow.room import NO_ROOM, Room

# How many requests are compared for the one to steal.
STEAL_SEARCH: Final = 32
# The longest that a request waits for its own cache while others would serve it, in seconds: its endpoint may be stuck.
MAX_PATIENCE_SECONDS: Final = 10.0
# Entries of requests that have left stay in a heap until they reach its top, or until they outnumber the others by
# this many.
_MANY: Final = 32
# Flows without requests that are kept for what they have used. With more of them a round begins early.
KEPT_FLOWS: Final = 1024
T = TypeVar("T")


class PlannedRequests:
    """The requests of one flow that are planned to one endpoint, the first by the ordering of their band first."""

    __slots__ = ("count", "endpoint", "flow", "heap", "listed")

    def __init__(self, flow: Flow, endpoint: EndpointPlan) -> None:
        self.flow = flow
        self.endpoint = endpoint
        self.count = 0
        self.heap: list[tuple[float, int, int, FlowRequest]] = []
        self.listed = False

    def add(self, request: FlowRequest) -> None:
        """Add a request that is planned to nothing."""
        request.planned = self
        heapq.heappush(self.heap, (request.due_at, request.sequence, request.push, request))
        self.count += 1

    def remove(self, request: FlowRequest) -> None:
        """Remove a request; its entry in the heap stays until it is found."""
        request.planned = None
        request.push += 1
        self.count -= 1
        heap = self.heap
        if len(heap) > 2 * self.count + _MANY:
            heap[:] = [entry for entry in heap if entry[3].planned is self and entry[3].push == entry[2]]
            heapq.heapify(heap)

    def first(self) -> FlowRequest:
        """The first request; there is one."""
        heap = self.heap
        while True:
            _, _, push, request = heap[0]
            if request.planned is self and request.push == push:
                return request
            heapq.heappop(heap)


class PlannedFlows:
    """The flows of one band with requests that are planned to one endpoint, the least credit used first."""

    __slots__ = ("count", "flows", "heap", "pushes")

    def __init__(self) -> None:
        self.count = 0  # requests
        self.flows = 0
        self.pushes = 0
        self.heap: list[tuple[int, int, int, PlannedRequests]] = []

    def changed(self, planned: PlannedRequests, more: int) -> None:
        """A request was added to `planned` (`more` is 1) or removed from it (-1)."""
        self.count += more
        if more > 0:
            if planned.count == 1:
                self.flows += 1
                if not planned.listed:
                    planned.listed = True
                    self.pushes += 1
                    heapq.heappush(self.heap, (planned.flow.used, planned.flow.number, self.pushes, planned))
        elif not planned.count:
            self.flows -= 1
            if len(self.heap) > 2 * self.flows + _MANY:
                kept = [entry for entry in self.heap if entry[3].count]
                for entry in self.heap:
                    entry[3].listed = entry[3].count > 0
                self.heap = kept
                heapq.heapify(kept)

    def first(self) -> PlannedRequests | None:
        """That of the flow which has used the least credit."""
        heap = self.heap
        while heap:
            used, number, push, planned = heap[0]
            if not planned.count:
                planned.listed = False
                heapq.heappop(heap)
            elif planned.flow.used != used:
                heapq.heapreplace(heap, (planned.flow.used, number, push, planned))
            else:
                return planned
        return None


class EndpointPlan:
    """One endpoint: its room, and the requests that are planned to it, by priority. `place` is its place in columns."""

    __slots__ = ("address", "bands", "blocked", "count", "opens_at", "place", "room")

    def __init__(self, address: str, place: int) -> None:
        self.address = address
        self.place = place
        self.room: Room = NO_ROOM
        self.opens_at = FOREVER  # when it has room by the passing of time
        self.blocked = False  # it has room, and the next request for it does not fit
        self.count = 0
        self.bands: dict[int, PlannedFlows] = {}


class Flow:
    """The waiting requests of one caller in one band, in the order of their arrival."""

    __slots__ = ("bytes", "name", "number", "planned", "requests", "spent", "tokens", "used")

    def __init__(self, name: str, number: int, used: int) -> None:
        self.name = name
        self.number = number
        self.used = used
        self.spent = False  # without credit, in the heap of such flows
        self.requests: OrderedDict[FlowRequest, None] = OrderedDict()
        self.tokens = 0
        self.bytes = 0
        self.planned: dict[str, PlannedRequests] = {}  # by address


class Band:
    """The band of one priority. `ahead` are the seconds of work that are planned to each endpoint in this band and the
    bands above it: what a request of this priority has before it."""

    __slots__ = (
        "_numbers",
        "ahead",
        "busy",
        "bytes",
        "flows",
        "idle",
        "level",
        "ordering",
        "passed_over",
        "priority",
        "quantum",
        "rate",
        "requests",
        "ring",
        "served_by",
        "spent",
        "tokens",
    )

    def __init__(self, priority: int, quantum: int, ordering: str = EARLIEST_DEADLINE) -> None:
        self.priority = priority
        self.quantum = quantum
        self.ordering = ordering
        self.requests: OrderedDict[FlowRequest, None] = OrderedDict()  # in the order of their arrival
        self.tokens = 0
        self.bytes = 0
        self.ahead: list[float] = []
        self.rate = DispatchRate()
        self.level = 0
        self.flows: dict[str, Flow] = {}
        self.busy = 0  # flows with requests
        self.ring: OrderedDict[Flow, None] = OrderedDict()  # with credit and requests
        self.spent: list[tuple[int, int, Flow]] = []  # without credit; some have no requests any more
        self.idle: dict[str, Flow] = {}  # with credit, without requests
        self.served_by: dict[frozenset[str] | None, int] = {}  # sets of endpoints -> their requests
        self.passed_over = False
        self._numbers = 0

    # -- requests come and go ----------------------------------------------------------------------------------------

    def add(self, request: FlowRequest) -> None:
        """Add a request that is planned to nothing."""
        flow = self.flows.get(request.flow_name)
        if flow is None:
            while len(self.flows) - self.busy >= KEPT_FLOWS:
                self._begin_round()
            self._numbers += 1
            flow = Flow(request.flow_name, self._numbers, self.level - self.quantum)
            self.flows[flow.name] = flow
        if not flow.requests:
            self.busy += 1
            if not flow.spent:
                self.idle.pop(flow.name, None)
                self.ring[flow] = None
        flow.requests[request] = None
        flow.tokens += request.tokens
        flow.bytes += request.size
        self.requests[request] = None
        self.tokens += request.tokens
        self.bytes += request.size
        request.band = self
        request.flow = flow
        served_by = request.served_by
        self.served_by[served_by] = self.served_by.get(served_by, 0) + 1

    def remove(self, request: FlowRequest) -> None:
        """Remove a request that is planned to nothing."""
        flow = request.flow
        if flow is None:
            raise ValueError("the request is in no band")
        request.band = None
        request.flow = None
        del flow.requests[request]
        flow.tokens -= request.tokens
        flow.bytes -= request.size
        del self.requests[request]
        self.tokens -= request.tokens
        self.bytes -= request.size
        self._not_served_by(request.served_by)
        if not flow.requests:
            self.busy -= 1
            if not flow.spent:
                self.ring.pop(flow, None)
                self.idle[flow.name] = flow

    def set_served_by(self, request: FlowRequest, served_by: frozenset[str] | None) -> None:
        """Set the endpoints that may serve a waiting request."""
        self._not_served_by(request.served_by)
        request.served_by = served_by
        self.served_by[served_by] = self.served_by.get(served_by, 0) + 1

    def plan(self, request: FlowRequest, endpoint: EndpointPlan) -> None:
        """Plan a request, which is planned to nothing, to an endpoint."""
        flow = request.flow
        if flow is None:
            raise ValueError("the request is in no band")
        planned = flow.planned.get(endpoint.address)
        if planned is None:
            planned = flow.planned[endpoint.address] = PlannedRequests(flow, endpoint)
        planned.add(request)
        flows = endpoint.bands.get(self.priority)
        if flows is None:
            flows = endpoint.bands[self.priority] = PlannedFlows()
        flows.changed(planned, 1)
        endpoint.count += 1

    def unplan(self, request: FlowRequest) -> None:
        """Plan a request to nothing."""
        planned = request.planned
        if planned is None:
            return
        endpoint = planned.endpoint
        planned.remove(request)
        flows = endpoint.bands[self.priority]
        flows.changed(planned, -1)
        endpoint.count -= 1
        if not planned.count:
            del planned.flow.planned[endpoint.address]
            if not flows.count:
                del endpoint.bands[self.priority]

    def charge(self, flow: Flow, tokens: int) -> None:
        """Take the credit for a dispatched request."""
        flow.used = max(flow.used, self.level - self.quantum) + tokens
        if flow.used >= self.level and not flow.spent:
            flow.spent = True
            self.ring.pop(flow, None)
            self.idle.pop(flow.name, None)
            heapq.heappush(self.spent, (flow.used, flow.number, flow))

    def credit(self, flow: Flow) -> int:
        """The credit of a flow in tokens, negative where it is in debt."""
        return min(self.level - flow.used, self.quantum)

    def set_ordering(self, ordering: str) -> None:
        """Order the waiting requests of each flow by another ordering."""
        self.ordering = ordering
        for request in self.requests:
            request.due_at = due_at(ordering, request)
            planned = request.planned
            if planned is not None:
                planned.remove(request)
                planned.add(request)

    # -- the next request for an endpoint ----------------------------------------------------------------------------

    def serves(self, address: str) -> bool:
        """Whether a request waits here that the endpoint may serve."""
        sets = self.served_by
        if None in sets:
            return True
        return any(address in addresses for addresses in sets if addresses is not None)

    def next_request(self, endpoint: EndpointPlan, now: float, patience: float) -> FlowRequest | None:
        """The next request for the endpoint: one that is planned to it, or one that it steals because no flow that may
        be served has one planned to it. New rounds begin until there is one, or one of a flow with credit is fixed to
        another endpoint."""
        if not self.serves(endpoint.address):
            return None
        flows = endpoint.bands.get(self.priority)
        while True:
            planned = None if flows is None else flows.first()
            if planned is not None and planned.flow.used < self.level:
                return planned.first()
            if planned is not None and self.ring and planned.flow.used < self.level + self.quantum // 2:
                return self.steal(endpoint, now, patience) or planned.first()
            stolen = self.steal(endpoint, fixed=planned is not None)
            if stolen is not None or not self.spent or (planned is None and self.passed_over):
                return stolen
            self._begin_round()

    def steal(
        self, endpoint: EndpointPlan, now: float = FOREVER, patience: float = 0.0, *, fixed: bool = True
    ) -> FlowRequest | None:
        """The request of a flow with credit that adds the least work at the endpoint, of the first that the endpoint
        may serve. With `patience`, only a request that has waited since it was planned for so many times the work that
        it would add here and not where it is planned, or for MAX_PATIENCE_SECONDS. Without `fixed`, none that is fixed
        to its endpoint; `passed_over` then says whether one was found."""
        best: FlowRequest | None = None
        least = FOREVER
        address, place, places = endpoint.address, endpoint.place, None
        self.passed_over = False
        left = STEAL_SEARCH
        for flow in self.ring:
            for request in flow.requests:
                if request.places is not places:
                    found = request.places.get(address)
                    if found is None:
                        continue
                    places, place = request.places, found
                seconds = request.seconds[place]
                if seconds == FOREVER:
                    continue
                left -= 1
                if request.fixed and not fixed:
                    self.passed_over = True
                elif seconds < least and (
                    not patience
                    or request.planned is None
                    or now - request.planned_at
                    >= min(MAX_PATIENCE_SECONDS, patience * (seconds - request.planned_seconds))
                ):
                    best, least = request, seconds
                if not left:
                    return best
        return best

    def steal_patiently(self, endpoint: EndpointPlan, now: float, patience: float) -> FlowRequest | None:
        """As `steal`; where no flow has credit, a new round begins first."""
        while not self.ring and self.spent:
            self._begin_round()
        return self.steal(endpoint, now, patience)

    def _begin_round(self) -> None:
        """Give every flow one quantum, or as many as it takes until a flow without credit has some."""
        before = self.level
        spent = self.spent
        while spent and spent[0][0] != spent[0][2].used:  # it was dispatched from meanwhile
            _, number, flow = spent[0]
            heapq.heapreplace(spent, (flow.used, number, flow))
        rounds = (self.spent[0][0] - before) // self.quantum + 1 if self.spent else 1
        level = self.level = before + rounds * self.quantum
        for name in self.idle:  # they would have a quantum of credit, as a new flow has
            del self.flows[name]
        self.idle = {}
        while spent and spent[0][0] < level:
            _, number, flow = heapq.heappop(spent)
            if flow.used >= level:
                heapq.heappush(spent, (flow.used, number, flow))
                continue
            flow.spent = False
            if flow.requests:
                self.ring[flow] = None
            else:
                del self.flows[flow.name]

    def _not_served_by(self, served_by: frozenset[str] | None) -> None:
        count = self.served_by[served_by] - 1
        if count:
            self.served_by[served_by] = count
        else:
            del self.served_by[served_by]
