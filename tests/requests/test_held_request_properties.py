"""What holds of held requests on every history of requests, pages, ends, cancellations, endpoints and time.

The shell of these histories calls `run` when it is woken, and only then.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.events.flow import FlowDecided, RequestHeld
from agent.flow.control import BandLimits, FlowLimits
from agent.flow.outcomes import CANCELLED
from agent.flow.room import DETECTORS, RoomLimits
from agent.pick.decision import NoPick, Pick
from agent.pick.picker import admitted_addresses, rank
from agent.pick.profile import build
from agent.profiles import PRESETS
from agent.requests.held_requests import HoldingSettings, _Held
from agent.requests.rejections import Rejection
from agent.signals import BLOCK_SIZE, BLOCKS, KV_USAGE
from tests.fakes.held_pool import HeldPool

ADDRESSES = ("a:1", "b:1", "c:1")


class Arrives(NamedTuple):
    """A request; its prompt continues one of a few conversations."""

    conversation: int
    blocks: int
    priority: int
    caller: str
    ttl: float | None
    subset: frozenset[str] | None
    model: str


class PageComes(NamedTuple):
    """A page of an endpoint, on which so many requests of others run and wait; None: the scrape fails."""

    address: str
    running: float | None
    waiting: float
    kv_usage: float


class Ends(NamedTuple):
    """One of the requests in flight ends."""

    which: int


class Leaves(NamedTuple):
    """The client of one of the held requests leaves."""

    which: int


class Endpoints(NamedTuple):
    """The pool has these endpoints."""

    addresses: tuple[str, ...]


class NewSettings(NamedTuple):
    """The settings are replaced."""

    settings: HoldingSettings


class Passes(NamedTuple):
    """Nothing happens but what time brings."""


Step = Arrives | PageComes | Ends | Leaves | Endpoints | NewSettings | Passes

room_limits = st.builds(
    RoomLimits,
    slots=st.sampled_from([None, 1.0, 2.0]),
    queued=st.sampled_from([0.0, 1.0]),
    max_wait_seconds=st.sampled_from([0.25, 1.0, math.inf]),
    blind_requests=st.sampled_from([1.0, 3.0]),
    queue_threshold=st.just(2.0),
    kv_threshold=st.just(0.8),
    max_requests=st.sampled_from([1.0, 3.0]),
    max_tokens=st.sampled_from([500.0, math.inf]),
)
flow_limits = st.builds(
    FlowLimits,
    max_requests=st.sampled_from([math.inf, math.inf, 3.0, 0.0]),
    max_bytes=st.sampled_from([math.inf, 40.0]),
    band=st.sampled_from([BandLimits(), BandLimits(ttl=3.0), BandLimits(ttl=math.inf, max_requests=2.0)]),
    bands=st.just({}),
    empty_ttl=st.sampled_from([0.0, 5.0, math.inf]),
    shed_from=st.just(0.5),
    quantum=st.sampled_from([1, 500, 65_536]),
    patience=st.sampled_from([0.0, 1.0, 20.0]),
    hold=st.sampled_from([math.inf, math.inf, 2.0]),
    callers=st.just(frozenset[str]()),
    max_flows=st.sampled_from([1, 1_000]),
)
holding = st.builds(
    HoldingSettings,
    enabled=st.sampled_from([True, True, True, False]),
    limits=flow_limits,
    room=room_limits,
    detector=st.sampled_from(sorted(DETECTORS)),
)
arrivals = st.builds(
    Arrives,
    conversation=st.integers(0, 2),
    blocks=st.sampled_from([0, 1, 3, 8]),
    priority=st.sampled_from([-1, 0, 0, 10]),
    caller=st.sampled_from(["", "x", "y"]),
    ttl=st.sampled_from([None, None, None, 0.0, 1.5]),
    subset=st.sampled_from([None, None, None, None, frozenset({"a:1"}), frozenset({"b:1", "c:1"}), frozenset({"z:1"})]),
    model=st.sampled_from(["m", "m", "only-a"]),
)
pages = st.builds(
    PageComes,
    st.sampled_from(ADDRESSES),
    st.sampled_from([0.0, 0.0, 1.0, 2.0, 4.0, None]),
    st.sampled_from([0.0, 0.0, 1.0, 6.0]),
    st.sampled_from([0.0, 0.0, 0.7, 0.9]),
)
steps = st.one_of(
    arrivals,
    arrivals,
    arrivals,
    pages,
    pages,
    st.builds(Ends, st.integers(0, 9)),
    st.builds(Ends, st.integers(0, 9)),
    st.builds(Leaves, st.integers(0, 9)),
    st.builds(Endpoints, st.lists(st.sampled_from(ADDRESSES), unique=True).map(tuple)),
    st.builds(NewSettings, holding),
    st.just(Passes()),
)
passing = st.sampled_from([0.0, 0.0, 0.0, 0.125, 0.25, 0.5, 1.0, 4.0, 70.0])
# Long ones, because a pool has to be full before anything is held.
histories = st.lists(st.tuples(passing, steps), min_size=12, max_size=40)
profiles = st.sampled_from([build(spec) for spec in PRESETS.values()])


class HeldHistory(HeldPool):
    """A pool to which the steps of a history happen."""

    def __init__(self, settings: HoldingSettings, profile_number: int) -> None:
        profile = [build(spec) for spec in PRESETS.values()][profile_number % len(PRESETS)]
        super().__init__(*ADDRESSES, settings=settings, stale_after=3.0, profile=profile)
        self.settings = settings
        self.cancelled: list[str] = []
        self.store.served_models("a:1", frozenset({"m", "only-a"}), 0.0)
        self.store.served_models("b:1", frozenset({"m"}), 0.0)

    def take(self, passed: float, step: Step) -> None:
        self.advance(passed)
        match step:
            case Arrives():
                start = step.conversation * 1_000
                self.submit(
                    f"r{len(self.tickets)}",
                    tokens=64 * step.blocks + 10,
                    chain=range(start, start + step.blocks),
                    priority=step.priority,
                    caller=step.caller,
                    ttl=step.ttl,
                    subset=step.subset,
                    model=step.model,
                    body=b"x" * 10,
                )
            case PageComes(address, None, _, _):
                self.store.failed(address, "timeout", "", self.now, 0.0)
            case PageComes(address, running, waiting, usage):
                own = sum(self.at(name) == address and ticket.picked for name, ticket in self.tickets.items())
                assert running is not None
                more = {KV_USAGE: usage, BLOCKS: 100.0, BLOCK_SIZE: 16.0}
                self.page(address, running=own + running, waiting=waiting, **more)
            case Ends(which):
                in_flight = [name for name, ticket in self.tickets.items() if ticket.picked]
                if in_flight:
                    self.end(in_flight[which % len(in_flight)])
            case Leaves(which):
                if pending := self.waiting():
                    name = pending[which % len(pending)]
                    self.cancelled.append(name)
                    self.tickets[name].cancel()
            case Endpoints(addresses):
                self.set_endpoints(*addresses)
            case NewSettings(settings):
                self.settings = settings
                self.held.apply(settings)
            case Passes():
                pass
        self.settle()

    def waiting(self) -> list[str]:
        return [name for name, ticket in self.tickets.items() if ticket.pending]

    def finish(self) -> None:
        """Refuse what is held and end what is in flight."""
        self.held.shut_down(self.now)
        for name, ticket in self.tickets.items():
            if ticket.picked:
                self.end(name)


@settings(max_examples=150)
@given(histories, holding, st.integers(0, 2))
def test_every_request_has_exactly_one_outcome_and_all_counts_return_to_0(
    history: list[tuple[float, Step]], first: HoldingSettings, profile: int
) -> None:
    pool = HeldHistory(first, profile)
    for passed, step in history:
        pool.take(passed, step)
        assert pool.held.waiting == pool.pipeline.waiting == len(pool.waiting()) == len(pool.held._requests)
        assert pool.pipeline.in_flight == pool.store.in_flight
    pool.finish()
    assert pool.decisions.keys() | set(pool.cancelled) == pool.tickets.keys()
    assert not pool.decisions.keys() & set(pool.cancelled)
    assert pool.held.waiting == pool.pipeline.waiting == pool.pipeline.in_flight == pool.store.in_flight == 0
    assert pool.held.planned_blocks == 0
    assert pool.held._control.bytes == 0
    assert pool.held._requests == {}
    # What flow control has reported is what the clients got.
    decided = [event for event in pool.events if isinstance(event, FlowDecided)]
    held = [event for event in pool.events if isinstance(event, RequestHeld)]
    assert Counter(event.outcome for event in decided)[CANCELLED] == len(pool.cancelled)
    delayed = [each for each in pool.decisions.values() if isinstance(each, Pick) and each.dispatched]
    refused = [
        each for each in pool.decisions.values() if isinstance(each, Rejection) and each.waited_seconds is not None
    ]
    assert len(held) == len(delayed) + len(refused) + len(pool.cancelled)


@settings(max_examples=150)
@given(histories, holding, st.integers(0, 2))
def test_no_endpoint_has_room_beside_a_held_request_that_fits_and_that_it_may_serve(
    history: list[tuple[float, Step]], first: HoldingSettings, profile: int
) -> None:
    """Also where nothing but time has passed since the last event: no wake is missed."""
    pool = HeldHistory(first, profile)
    for passed, step in history:
        pool.take(passed, step)
        snapshot = pool.store.snapshot(pool.now)
        admitted = set(admitted_addresses(snapshot, pool.now))
        rooms = {
            view.address: pool.held._room(view, pool.now) for view in snapshot.endpoints if view.address in admitted
        }
        control = pool.held._control
        for address, room in rooms.items():
            if room.requests < 1 or room.opens_at > pool.now:
                continue
            served = [request for request in pool.held._requests.values() if request.seconds_at(address) < math.inf]
            # The next request for the endpoint waits for cache; smaller ones do not overtake it.
            assert not served or any(not room.fits(request.prompt_tokens) for request in served)
        for request in pool.held._requests.values():
            held = request.item
            assert isinstance(held, _Held)
            ranking = rank(snapshot, held.wanted, pool.held.profile, pool.index, pool.now)
            assert isinstance(ranking, NoPick) == (not control.addresses)
