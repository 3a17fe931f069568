"""What a person, a page or another gateway needs to know of flow control: who waits, for what, and what would be
refused now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.flow.band import Band
from agent.flow.control import FlowControl
from agent.flow.request import FOREVER
from agent.flow.room import KV_CACHE, SLOTS, TOKENS, WAIT, Room, RoomLimits
from agent.flow.room_inputs import RoomInputs
from agent.flow.shedding import shed_probability

# Bands that are reported though no request of them waits now: those of normal priority, and the first that is shed.
_ALWAYS: Final = (0, -1)


class FlowDepth(NamedTuple):
    """What waits of one caller in one band; `credit` in tokens, negative where it is in debt; `oldest_seconds` is for
    how long its oldest request waits."""

    name: str
    requests: int
    bytes: int
    tokens: int
    credit: int
    oldest_seconds: float = 0.0


class BandReport(NamedTuple):
    """One band: one in which requests wait or have waited, one with limits of its own, or that of priority 0 or -1.
    `oldest_seconds` is for how long the oldest waits, 0 where none waits; `expected_wait_seconds` is None where no rate
    is known; `shed_probability` is that of a request that arrives now with the band's TTL. `max_requests`, `max_bytes`
    and `ttl_seconds` are its limits."""

    priority: int
    requests: int
    bytes: int
    tokens: int
    oldest_seconds: float
    expected_wait_seconds: float | None
    shed_probability: float
    flows: tuple[FlowDepth, ...]
    max_requests: float = FOREVER
    max_bytes: float = FOREVER
    ttl_seconds: float = FOREVER


class EndpointReport(NamedTuple):
    """The room of one endpoint and what is planned to it. `blocked`: its next request does not fit into the room.
    `inputs` are what the room is computed from; None: they were not requested."""

    address: str
    room: Room
    blocked: bool
    planned_requests: int
    planned_seconds: float
    inputs: RoomInputs | None = None

    def has_room(self, now: float) -> bool:
        """Whether a request may be sent to the endpoint now."""
        return self.room.requests >= 1 and self.room.opens_at <= now and not self.blocked

    def limited_by(self, now: float) -> str:
        """What leaves no room now; where there is room, what is scarcest. A room keeps the name of what was scarcest
        before requests were sent since."""
        room = self.room
        by = room.limited_by
        if room.requests < 1:
            return SLOTS if by in (WAIT, KV_CACHE) else by
        if room.opens_at > now:
            return by if by == TOKENS else WAIT
        return KV_CACHE if self.blocked else by

    def saturation(self, now: float) -> float:
        """The used part of what is scarcest, at least 1 where there is no room."""
        known = max(0.0, self.room.saturation)
        return known if self.has_room(now) else max(1.0, known)


class ModelDepth(NamedTuple):
    """What waits of one caller in one band for one model; `requested` is the model that clients named."""

    priority: int
    caller: str
    model: str
    requested: str
    requests: int
    bytes: int


class FlowReport(NamedTuple):
    """Flow control of one pool at one time (`at`, monotonic seconds). `drain_tokens_per_second` is None before anything
    was observed. `enabled`: requests are held; `detector` computes the rooms within `room_limits`. `models` are what
    waits, by model. `shed_from` is the part of a TTL from which on requests of a negative priority are shed, and
    `empty_ttl` the time in seconds for which a request waits for the first endpoint, 0 where it does not. `objectives`
    are the priorities by the objective that a request names, `model_priorities` those by its model where it names none;
    of others it is 0."""

    requests: int
    bytes: int
    drain_tokens_per_second: float | None
    bands: tuple[BandReport, ...]
    endpoints: tuple[EndpointReport, ...]
    at: float = 0.0
    pool: str = ""
    enabled: bool = True
    detector: str = ""
    max_requests: float = FOREVER
    max_bytes: float = FOREVER
    models: tuple[ModelDepth, ...] = ()
    room_limits: RoomLimits | None = None
    shed_from: float = 0.0
    empty_ttl: float = 0.0
    objectives: Mapping[str, int] = {}
    model_priorities: Mapping[str, int] = {}

    @property
    def saturated(self) -> bool:
        """Whether requests that arrive now wait: others do, or no endpoint has room."""
        return self.enabled and (self.requests > 0 or not any(each.has_room(self.at) for each in self.endpoints))


def report(control: FlowControl, now: float) -> FlowReport:
    """The report; its cost grows with the flows and the endpoints, not with the requests."""
    waiting = {band.priority: band for band in control.bands()}
    lowest = min(waiting) if waiting else None
    ahead = None if lowest is None else waiting[lowest].ahead
    limits = control.limits
    priorities = {*waiting, *control.known_priorities(), *limits.bands, *_ALWAYS}
    rate = control.drain_rate(now)
    return FlowReport(
        control.waiting,
        control.bytes,
        rate,
        tuple(_band(control, waiting.get(each), each, rate, now) for each in sorted(priorities, reverse=True)),
        tuple(
            EndpointReport(each.address, each.room, each.blocked, each.count, ahead[each.place] if ahead else 0.0)
            for each in control.endpoints()
        ),
        now,
        max_requests=limits.max_requests,
        max_bytes=limits.max_bytes,
        shed_from=limits.shed_from,
        empty_ttl=limits.empty_ttl,
    )


def _band(control: FlowControl, band: Band | None, priority: int, rate: float | None, now: float) -> BandReport:
    limits = control.limits
    own = limits.of(priority)
    wait = control.expected_wait(priority, now)
    likely = shed_probability(wait, own.ttl, limits.shed_from) if priority < 0 else 0.0
    known = None if rate is None and any(each.priority >= priority for each in control.bands()) else wait
    if band is None:
        return BandReport(priority, 0, 0, 0, 0.0, known, likely, (), own.max_requests, own.max_bytes, own.ttl)
    flows = tuple(
        FlowDepth(
            flow.name,
            len(flow.requests),
            flow.bytes,
            flow.tokens,
            band.credit(flow),
            max(0.0, now - next(iter(flow.requests)).arrived_at),
        )
        for flow in band.flows.values()
        if flow.requests
    )
    return BandReport(
        priority,
        len(band.requests),
        band.bytes,
        band.tokens,
        max(0.0, now - next(iter(band.requests)).arrived_at),
        known,
        likely,
        flows,
        own.max_requests,
        own.max_bytes,
        own.ttl,
    )
