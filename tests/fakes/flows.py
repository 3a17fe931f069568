"""Reports of flow control made by hand, for tests of their readers."""

from __future__ import annotations

from collections.abc import Sequence

from agent.flow.report import BandReport, EndpointReport, FlowDepth, FlowReport, ModelDepth
from agent.flow.room import SLOTS, Room

EMPTY_ROOM = Room(0.0, saturation=1.0, limited_by=SLOTS)


def band(
    priority: int,
    *flows: FlowDepth,
    expected: float | None = 0.0,
    shed: float = 0.0,
    max_requests: float = float("inf"),
) -> BandReport:
    """The band of these callers."""
    return BandReport(
        priority,
        sum(flow.requests for flow in flows),
        sum(flow.bytes for flow in flows),
        sum(flow.tokens for flow in flows),
        max((flow.oldest_seconds for flow in flows), default=0.0),
        expected,
        shed,
        flows,
        max_requests,
        ttl_seconds=60.0,
    )


def caller(name: str, requests: int = 1, oldest: float = 1.0) -> FlowDepth:
    """What waits of one caller: requests of 100 bytes and 50 tokens."""
    return FlowDepth(name, requests, 100 * requests, 50 * requests, 0, oldest)


def flow_report(
    *bands: BandReport,
    rooms: Sequence[Room] = (EMPTY_ROOM,),
    drain: float | None = 1000.0,
    model: str = "m",
    pool: str = "pool",
    enabled: bool = True,
    max_requests: float = float("inf"),
    max_bytes: float = float("inf"),
) -> FlowReport:
    """The report of a pool whose waiting requests are all for one model, at time 0."""
    return FlowReport(
        sum(each.requests for each in bands),
        sum(each.bytes for each in bands),
        drain,
        bands,
        tuple(EndpointReport(f"{place}:1", room, False, 0, 0.0) for place, room in enumerate(rooms)),
        0.0,
        pool,
        enabled,
        "headroom",
        max_requests,
        max_bytes,
        tuple(
            ModelDepth(each.priority, flow.name, model, model, flow.requests, flow.bytes)
            for each in bands
            for flow in each.flows
        ),
    )
