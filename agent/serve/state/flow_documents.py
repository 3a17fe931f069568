"""From reports of flow control to JSON: `/v1/flow`, and the part of `/v1/state` by which a gateway sheds alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent.flow.report import BandReport, EndpointReport, FlowDepth, FlowReport
from agent.flow.room import RoomLimits
from agent.flow.room_inputs import RoomInputs
from agent.serve.state.flow_schema import (
    BandJson,
    CallerJson,
    FlowEndpointJson,
    FlowJson,
    FlowPoolJson,
    RoomInputsJson,
    RoomLimitsJson,
)
from agent.serve.state.moment import Moment, printable, rfc3339
from agent.serve.state.schema import PoolFlowJson, RoomJson, SheddingJson

CALLERS_SHOWN: Final = 100  # of a band
_UNLIMITED: Final = float("inf")


def flow(reports: Sequence[FlowReport], moment: Moment) -> FlowJson:
    """The document of these pools."""
    return FlowJson(rfc3339(moment.wall), [_pool(each) for each in reports])


def pool_flow(report: FlowReport) -> PoolFlowJson:
    """What a gateway needs to know of flow control."""
    return PoolFlowJson(
        report.enabled,
        report.saturated,
        report.requests,
        report.bytes,
        report.drain_tokens_per_second,
        _shedding(report),
        {each.address: _room(each, report.at) for each in report.endpoints} if report.enabled else {},
    )


def changed_flow(before: PoolFlowJson | None, after: PoolFlowJson | None) -> PoolFlowJson | None:
    """`after`, with only the rooms that differ from those of `before`; None for an endpoint that has none any more."""
    if before is None or after is None:
        return after
    known = before.rooms
    rooms: dict[str, RoomJson | None] = dict.fromkeys(known.keys() - after.rooms.keys())
    rooms |= {address: room for address, room in after.rooms.items() if known.get(address) != room}
    return PoolFlowJson(
        after.enabled,
        after.saturated,
        after.waiting_requests,
        after.waiting_bytes,
        after.drain_tokens_per_second,
        after.shedding,
        rooms,
    )


def _pool(report: FlowReport) -> FlowPoolJson:
    return FlowPoolJson(
        report.pool,
        report.enabled,
        report.detector,
        report.saturated,
        report.requests,
        report.bytes,
        not report.endpoints and report.requests > 0,
        max((band.oldest_seconds for band in report.bands), default=0.0),
        report.drain_tokens_per_second,
        _count(report.max_requests),
        _count(report.max_bytes),
        _number(report.empty_ttl),
        report.shed_from,
        _shedding(report),
        {printable(name): priority for name, priority in sorted(report.objectives.items())},
        {printable(name): priority for name, priority in sorted(report.model_priorities.items())},
        [_band(each) for each in report.bands],
        None if report.room_limits is None else _limits(report.room_limits),
        [_endpoint(each, report) for each in report.endpoints],
    )


def _shedding(report: FlowReport) -> list[SheddingJson]:
    return [
        SheddingJson(band.priority, _known(band.expected_wait_seconds), band.shed_probability)
        for band in report.bands
        if band.priority < 0
    ]


def _band(band: BandReport) -> BandJson:
    callers = sorted(band.flows, key=lambda each: (-each.requests, each.name))
    return BandJson(
        band.priority,
        band.requests,
        band.bytes,
        band.tokens,
        band.oldest_seconds,
        _known(band.expected_wait_seconds),
        _number(band.ttl_seconds),
        _count(band.max_requests),
        _count(band.max_bytes),
        [_caller(each) for each in callers[:CALLERS_SHOWN]],
        max(0, len(callers) - CALLERS_SHOWN),
    )


def _caller(each: FlowDepth) -> CallerJson:
    return CallerJson(printable(each.name), each.requests, each.bytes, each.tokens, each.oldest_seconds, each.credit)


def _endpoint(each: EndpointReport, report: FlowReport) -> FlowEndpointJson:
    return FlowEndpointJson(
        each.address,
        _room(each, report.at) if report.enabled else None,
        each.blocked,
        each.planned_requests,
        max(0.0, each.planned_seconds),
        None if each.inputs is None else _inputs(each.inputs),
    )


def _room(each: EndpointReport, now: float) -> RoomJson:
    room = each.room
    return RoomJson(
        each.has_room(now),
        _number(max(0.0, room.requests)),
        _number(max(0.0, room.opens_at - now)) if room.requests >= 1 else None,
        _number(max(0.0, room.kv_tokens)),
        each.saturation(now),
        each.limited_by(now),
    )


def _inputs(inputs: RoomInputs) -> RoomInputsJson:
    return RoomInputsJson(*inputs)


def _limits(limits: RoomLimits) -> RoomLimitsJson:
    return RoomLimitsJson(
        limits.slots,
        limits.queued,
        _number(limits.max_wait_seconds),
        limits.blind_requests,
        limits.queue_threshold,
        limits.kv_threshold,
        _number(limits.max_requests),
        _number(limits.max_tokens),
    )


def _number(value: float) -> float | None:
    """The limit; None where there is none."""
    return None if value == _UNLIMITED else value


def _count(value: float) -> int | None:
    return None if value == _UNLIMITED else int(value)


def _known(wait: float | None) -> float | None:
    """A wait; None where it is unknown, and where the rate is so small that it has no number."""
    return None if wait is None else _number(wait)
