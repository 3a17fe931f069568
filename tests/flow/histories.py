"""Random histories of flow control: what arrives, what changes, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st

from agent.flow.control import BandLimits, Estimate, FlowControl, FlowLimits, PlanChanged
from agent.flow.ordering import FIRST_COME, WANTED_TOKEN
from agent.flow.outcomes import Dispatched, Outcome
from agent.flow.request import FlowRequest
from agent.flow.room import Room

ADDRESSES = ("a", "b", "c")
INFINITE = math.inf


class Arrives(NamedTuple):
    """A request; `costs` are the seconds that it adds at each of ADDRESSES."""

    priority: int
    flow: str
    tokens: int
    prompt_tokens: int
    size: int
    ttl: float | None
    deadline_in: float | None
    costs: tuple[float, ...]


class Offered(NamedTuple):
    """Room at an address, from so many seconds from now on."""

    address: str
    requests: float
    opens_in: float
    kv_tokens: float


class Leaves(NamedTuple):
    """The client of one of the requests so far leaves."""

    which: int


class Endpoints(NamedTuple):
    """The pool has these endpoints."""

    addresses: tuple[str, ...]


class Passes(NamedTuple):
    """Nothing but time passes."""


Step = Arrives | Offered | Leaves | Endpoints | Passes
seconds = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0])
arrivals = st.builds(
    Arrives,
    priority=st.sampled_from([-1, 0, 0, 10]),
    flow=st.sampled_from(["x", "y", "z"]),
    tokens=st.sampled_from([1, 5, 16, 40]),
    prompt_tokens=st.sampled_from([1, 10, 30]),
    size=st.integers(1, 4),
    ttl=st.sampled_from([None, None, None, 0.0, 2.0, INFINITE]),
    deadline_in=st.sampled_from([None, None, -5.0, 1.0, 3.0]),
    costs=st.tuples(*[st.one_of(seconds, seconds, seconds, st.just(INFINITE))] * 3),
)
offers = st.builds(
    Offered,
    st.sampled_from(ADDRESSES),
    st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0]),
    st.sampled_from([0.0, 0.0, 0.5, 1.5]),
    st.sampled_from([INFINITE, INFINITE, 10.0, 45.0]),
)
steps = st.one_of(
    arrivals,
    arrivals,
    arrivals,
    offers,
    offers,
    st.builds(Leaves, st.integers(0, 40)),
    st.builds(Endpoints, st.lists(st.sampled_from(ADDRESSES), unique=True).map(tuple)),
    st.just(Passes()),
)
# A clock that may go back, and that may jump over every TTL.
passing = st.sampled_from([0.0, 0.0, 0.125, 0.125, 0.5, 1.0, 9.0, -2.0, 1000.0])
histories = st.lists(st.tuples(passing, steps), min_size=8, max_size=40)
limits = st.builds(
    FlowLimits,
    band=st.sampled_from([BandLimits(), BandLimits(), BandLimits(max_requests=3, max_bytes=8, ttl=4.0)]),
    bands=st.sampled_from(
        [
            {},
            {0: BandLimits(max_requests=2)},
            {0: BandLimits(ordering=FIRST_COME), 10: BandLimits(by_caller=False)},
            {0: BandLimits(by_caller=False, ordering=WANTED_TOKEN), 10: BandLimits(ordering=WANTED_TOKEN)},
        ]
    ),
    negative=st.sampled_from([None, None, BandLimits(max_requests=1, ttl=2.0, by_caller=False)]),
    empty_ttl=st.sampled_from([0.0, 0.0, 3.0, INFINITE]),
    hold=st.sampled_from([INFINITE, INFINITE, INFINITE, 1.5, 0.0]),
    shed_from=st.just(0.5),
    callers=st.just(frozenset[str]()),
    max_flows=st.just(100),
    max_requests=st.sampled_from([INFINITE, INFINITE, 4, 0]),
    max_bytes=st.sampled_from([INFINITE, INFINITE, 9]),
    quantum=st.just(16),
    patience=st.sampled_from([0.0, 1.0, 2.0, 200.0]),
)


def name_of(request: FlowRequest) -> str:
    """The name of a request of a history."""
    item = request.item
    assert isinstance(item, Named)
    return item.name


class Named(NamedTuple):
    """The item of a request: its name, and its seconds at each of ADDRESSES."""

    name: str
    costs: dict[str, float]


class Driver:
    """Flow control and the requests of a history so far."""

    def __init__(self, flow_limits: FlowLimits, draw: float = 1.0, plan_changed: PlanChanged = lambda *_: None) -> None:
        self.control = FlowControl(flow_limits, self.estimate, lambda: draw, plan_changed)
        self.requests: list[FlowRequest] = []
        self.now = 0.0

    def estimate(self, request: FlowRequest, ahead: Sequence[float]) -> Estimate:
        """The work before a request and its own, at each endpoint."""
        item = request.item
        assert isinstance(item, Named)
        own = [item.costs[address] for address in self.control.addresses]
        return Estimate([before + each for before, each in zip(ahead, own, strict=True)], own)

    def request(self, arrives: Arrives) -> FlowRequest:
        """The request of an arrival; its name is its number."""
        name = str(len(self.requests))
        deadline = None if arrives.deadline_in is None else self.now + arrives.deadline_in
        request = FlowRequest(
            Named(name, dict(zip(ADDRESSES, arrives.costs, strict=True))),
            priority=arrives.priority,
            flow=arrives.flow,
            tokens=arrives.tokens,
            prompt_tokens=arrives.prompt_tokens,
            size=arrives.size,
            ttl=arrives.ttl,
            deadline=deadline,
        )
        self.requests.append(request)
        return request

    def room(self, offered: Offered) -> Room:
        """The room that is offered now."""
        wait = 1.0
        return Room(offered.requests, self.now + offered.opens_in, wait, offered.kv_tokens, 1000.0)

    def take(self, passed: float, step: Step) -> list[Outcome]:
        """Do one step of a history."""
        self.now += passed
        control, now = self.control, self.now
        match step:
            case Arrives():
                return control.submit(self.request(step), now)
            case Offered():
                return control.offer(step.address, self.room(step), now)
            case Leaves(which):
                if which < len(self.requests):
                    return control.cancel(self.requests[which], now)
                return control.advance(now)
            case Endpoints(addresses):
                control.set_endpoints(addresses, now)
                return control.replan(now)
            case Passes():
                return control.advance(now)

    def waiting(self) -> list[FlowRequest]:
        """The requests without an outcome."""
        return [request for request in self.requests if request.outcome is None]


def by_kind(outcomes: list[Outcome]) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """The dispatches in their order, and the refusals by name: name, endpoint, how or reason."""
    dispatched = [(name_of(each.request), each.endpoint, each.how) for each in outcomes if isinstance(each, Dispatched)]
    refused = [(name_of(each.request), "", each.reason) for each in outcomes if not isinstance(each, Dispatched)]
    return dispatched, sorted(refused)
