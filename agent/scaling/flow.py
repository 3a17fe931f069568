"""The gauges of flow control, from the reports of the pools.

Clients choose callers and models, so each pool has at most MAX_QUEUES series by caller and model. The rest of what
waits is in one more of each priority, `other`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from agent.flow.flow_names import DEFAULT_FLOW, OTHER_FLOW
from agent.flow.report import BandReport, FlowReport, ModelDepth
from agent.flow.request import FOREVER
from agent.flow.room import BLIND
from agent.scaling.accelerators import GaugeCollector
from exporters.catalog import flow as rows
from exporters.catalog.metric import Metric

# Series of a pool by caller and model, and by caller alone: those with the most requests, and the oldest.
MAX_QUEUES: Final = 100
# Bands of a pool: those with the most requests.
MAX_BANDS: Final = 32
NAME_LENGTH: Final = 256  # of a label value, in characters


def of_pools(gauges: GaugeCollector, reports: Sequence[FlowReport]) -> None:
    """The gauges of all pools."""
    stale: dict[str, int] = {}
    for report in reports:
        _pool(gauges, report)
        if report.enabled:
            blind = sum(each.room.limited_by == BLIND for each in report.endpoints)
            stale[report.detector] = stale.get(report.detector, 0) + blind
    for detector, count in stale.items():
        gauges.known(rows.STALE_ENDPOINTS, (detector,), count)


def _pool(gauges: GaugeCollector, report: FlowReport) -> None:
    pool = (report.pool,)
    gauges.known(rows.HELD_REQUESTS, pool, report.requests)
    gauges.known(rows.HELD_AT_ZERO, pool, 0 if report.endpoints else report.requests)
    if not report.enabled:
        for metric in (rows.DRAIN, rows.SATURATION, rows.WITH_ROOM):
            gauges.withhold(metric, pool, "flow_control_off")
    else:
        if report.drain_tokens_per_second is None:
            gauges.withhold(rows.DRAIN, pool, "no_rate")
        else:
            gauges.known(rows.DRAIN, pool, report.drain_tokens_per_second)
        used = [each.saturation(report.at) for each in report.endpoints]
        if used:
            gauges.known(rows.SATURATION, pool, sum(used) / len(used))
        else:
            gauges.withhold(rows.SATURATION, pool, "no_endpoints")
        gauges.known(rows.WITH_ROOM, pool, sum(each.has_room(report.at) for each in report.endpoints))
    _used(gauges, rows.ALL_REQUESTS, pool, report.requests, report.max_requests)
    _used(gauges, rows.ALL_BYTES, pool, report.bytes, report.max_bytes)
    for band in _bands(report.bands):
        _band(gauges, report, band)
    _queues(gauges, report)
    _callers(gauges, report)


def _band(gauges: GaugeCollector, report: FlowReport, band: BandReport) -> None:
    priority = str(band.priority)
    labels = (report.pool, priority)
    gauges.known(rows.QUEUED_REQUESTS, labels, band.requests)
    gauges.known(rows.QUEUED_BYTES, labels, band.bytes)
    gauges.known(rows.QUEUED_TOKENS, labels, band.tokens)
    gauges.known(rows.OLDEST, labels, band.oldest_seconds)
    if band.expected_wait_seconds is None:
        gauges.withhold(rows.EXPECTED_WAIT, labels, "no_rate")
    else:
        gauges.known(rows.EXPECTED_WAIT, labels, band.expected_wait_seconds)
    if band.priority < 0:
        gauges.known(rows.SHED_PROBABILITY, labels, band.shed_probability)
    _used(gauges, rows.BAND_REQUESTS, (priority, report.pool), band.requests, band.max_requests)
    _used(gauges, rows.BAND_BYTES, (priority, report.pool), band.bytes, band.max_bytes)


def _bands(bands: Iterable[BandReport]) -> list[BandReport]:
    """The bands that have series: of too many, those with the most requests."""
    return sorted(bands, key=lambda band: (-band.requests, abs(band.priority)))[:MAX_BANDS]


def _queues(gauges: GaugeCollector, report: FlowReport) -> None:
    """The reference's queue sizes. A pool in which nothing waits has one of 0: an absent metric stops an autoscaler."""
    listed = {str(band.priority) for band in _bands(report.bands)}
    found: dict[tuple[str, ...], tuple[int, int]] = {(DEFAULT_FLOW, "0", report.pool, "", ""): (0, 0)}
    largest = sorted(report.models, key=lambda each: -each.requests)
    for place, each in enumerate(largest):
        labels = _labels(each, report.pool, listed, own=place < MAX_QUEUES)
        requests, size = found.get(labels, (0, 0))
        found[labels] = (requests + each.requests, size + each.bytes)
    for labels, (requests, size) in found.items():
        gauges.known(rows.QUEUE_SIZE, labels, requests)
        gauges.known(rows.QUEUE_BYTES, labels, size)


def _labels(each: ModelDepth, pool: str, listed: set[str], *, own: bool) -> tuple[str, ...]:
    priority = str(each.priority)
    if priority not in listed:
        priority = OTHER_FLOW
    if not own:
        return OTHER_FLOW, priority, pool, OTHER_FLOW, OTHER_FLOW
    return _name(each.caller), priority, pool, _name(each.requested), _name(each.model)


def _callers(gauges: GaugeCollector, report: FlowReport) -> None:
    found = sorted(
        ((flow.oldest_seconds, flow.name, str(band.priority)) for band in _bands(report.bands) for flow in band.flows),
        reverse=True,
    )
    for oldest, name, priority in found[:MAX_QUEUES]:
        gauges.known(rows.OLDEST_OF_CALLER, (report.pool, priority, _name(name)), oldest)


def _used(gauges: GaugeCollector, metric: Metric, labels: tuple[str, ...], used: float, limit: float) -> None:
    if limit < FOREVER:
        gauges.known(metric, labels, used / limit if limit > 0 else 1.0)


def _name(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else OTHER_FLOW
