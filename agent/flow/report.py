"""What a person or a page needs to know of flow control: who waits, for what, and what would be refused now."""

from __future__ import annotations

from typing import NamedTuple

from agent.flow.band import Band
from agent.flow.control import FlowControl
from agent.flow.room import Room
from agent.flow.shedding import shed_probability


class FlowDepth(NamedTuple):
    """What waits of one caller in one band; `credit` in tokens, negative where it is in debt."""

    name: str
    requests: int
    bytes: int
    tokens: int
    credit: int


class BandReport(NamedTuple):
    """One band in which requests wait. `oldest_seconds` is for how long the oldest waits; `shed_probability` that of a
    request that arrives now with the band's TTL."""

    priority: int
    requests: int
    bytes: int
    tokens: int
    oldest_seconds: float
    expected_wait_seconds: float
    shed_probability: float
    flows: tuple[FlowDepth, ...]


class EndpointReport(NamedTuple):
    """The room of one endpoint and what is planned to it. `blocked`: its next request does not fit into the room."""

    address: str
    room: Room
    blocked: bool
    planned_requests: int
    planned_seconds: float


class FlowReport(NamedTuple):
    """Flow control of one pool at one time. `drain_tokens_per_second` is None before anything was observed."""

    requests: int
    bytes: int
    drain_tokens_per_second: float | None
    bands: tuple[BandReport, ...]
    endpoints: tuple[EndpointReport, ...]


def report(control: FlowControl, now: float) -> FlowReport:
    """The report; its cost grows with the flows and the endpoints, not with the requests."""
    bands = control.bands()
    lowest = bands[-1].ahead if bands else None
    return FlowReport(
        control.waiting,
        control.bytes,
        control.drain_rate(now),
        tuple(_band(control, band, now) for band in bands),
        tuple(
            EndpointReport(each.address, each.room, each.blocked, each.count, lowest[each.place] if lowest else 0.0)
            for each in control.endpoints()
        ),
    )


def _band(control: FlowControl, band: Band, now: float) -> BandReport:
    oldest = next(iter(band.requests))
    wait = control.expected_wait(band.priority, now)
    limits = control.limits
    likely = shed_probability(wait, limits.of(band.priority).ttl, limits.shed_from) if band.priority < 0 else 0.0
    flows = tuple(
        FlowDepth(flow.name, len(flow.requests), flow.bytes, flow.tokens, band.credit(flow))
        for flow in band.flows.values()
        if flow.requests
    )
    return BandReport(
        band.priority,
        len(band.requests),
        band.bytes,
        band.tokens,
        max(0.0, now - oldest.arrived_at),
        wait,
        likely,
        flows,
    )
