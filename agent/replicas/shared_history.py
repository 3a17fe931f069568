"""A pool's demand history as it is in a report. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from agent.replicas.report import (
    MAX_COUNT,
    MAX_ENDPOINTS,
    MAX_SAMPLES,
    MAX_SPANS,
    SharedBatch,
    SharedHistory,
    SharedSample,
    SharedSpan,
)
from agent.scaling.demand_history import ArrivalSpan, BatchRecord, DemandHistory, LevelSample

_MAX_AGE_MS: Final = 86_400_000


def shared(history: DemandHistory, now: float, place: Callable[[str], int | None]) -> SharedHistory:
    """The history as of `now` (monotonic seconds). `place` returns the place of an endpoint in the report, None where
    the report has no room for it."""
    batches = ((place(address), each) for address, each in history.batches.items())
    return SharedHistory(
        [_span(each, now) for each in history.arrivals[-MAX_SPANS:]],
        _samples(history.slots, now),
        _samples(history.kv, now),
        [_age(at, now) for at in history.loading[-MAX_ENDPOINTS:]],
        [
            SharedBatch(found, _count(each.started), _count(each.largest), _count(each.beside_queue), each.times)
            for found, each in batches
            if found is not None
        ],
    )


def restored(history: SharedHistory, endpoints: Sequence[str], now: float) -> DemandHistory:
    """The history of a report that has arrived at `now` (monotonic seconds), with these endpoints."""
    return DemandHistory(
        [
            ArrivalSpan(
                now - each.age_ms / 1000,
                now - each.age_ms / 1000 + each.length_ms / 1000,
                each.thousandths / 1000,
                each.seen_ms / 1000,
                each.due_ms / 1000,
            )
            for each in history.arrivals
        ],
        _levels(history.slots, now),
        _levels(history.kv, now),
        [now - age / 1000 for age in history.loading],
        {
            endpoints[each.endpoint]: BatchRecord(
                float(each.started), float(each.largest), float(each.beside_queue), each.times
            )
            for each in history.batches
        },
    )


def _span(span: ArrivalSpan, now: float) -> SharedSpan:
    thousandths = max(-MAX_COUNT, min(MAX_COUNT, round(span.arrivals * 1000)))
    length_ms = min(_MAX_AGE_MS, max(0, round((span.end - span.begin) * 1000)))
    return SharedSpan(_age(span.begin, now), length_ms, thousandths, _count(span.seen * 1000), _count(span.due * 1000))


def _samples(samples: Sequence[LevelSample], now: float) -> list[SharedSample]:
    return [SharedSample(_age(each.at, now), _count(each.value * 1e6)) for each in samples[-MAX_SAMPLES:]]


def _levels(samples: Iterable[SharedSample], now: float) -> list[LevelSample]:
    return [LevelSample(now - each.age_ms / 1000, each.millionths / 1e6) for each in samples]


def _age(at: float, now: float) -> int:
    return min(_MAX_AGE_MS, max(0, round((now - at) * 1000)))


def _count(value: float) -> int:
    return min(MAX_COUNT, max(0, round(value)))
