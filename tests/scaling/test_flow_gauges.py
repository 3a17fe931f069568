"""The gauges of flow control: what waits, in bounded series, and what is unknown is withheld."""

from __future__ import annotations

import pytest

from agent.flow.room import BLIND, Room
from agent.scaling.flow import MAX_BANDS, MAX_QUEUES
from agent.scaling.gauges import gauge_set
from exporters.catalog import flow as rows
from exporters.catalog.metric import Metric
from exporters.gauge import GaugeSet
from tests.fakes.flows import band, caller, flow_report

ZERO = ("default-flow", "0", "pool", "", "")


def values(found: GaugeSet, metric: Metric) -> dict[tuple[str, ...], float]:
    return {gauge.labels: gauge.value for gauge in found.gauges if gauge.metric is metric}


def reasons(found: GaugeSet, metric: Metric) -> dict[tuple[str, ...], str]:
    return {row.labels: row.reason for row in found.withheld if row.metric is metric}


def test_what_waits_is_published_by_priority_by_caller_and_by_model() -> None:
    report = flow_report(band(10, caller("a", 2, 3.0), caller("b", 1, 1.0)), band(0, caller("a", 4, 9.0)))
    found = gauge_set((), 0.0, flows=[report])
    assert values(found, rows.QUEUED_REQUESTS) == {("pool", "10"): 3, ("pool", "0"): 4}
    assert values(found, rows.QUEUED_BYTES) == {("pool", "10"): 300, ("pool", "0"): 400}
    assert values(found, rows.QUEUED_TOKENS) == {("pool", "10"): 150, ("pool", "0"): 200}
    assert values(found, rows.OLDEST) == {("pool", "10"): 3.0, ("pool", "0"): 9.0}
    assert values(found, rows.HELD_REQUESTS) == {("pool",): 7}
    sizes = {("a", "10", "pool", "m", "m"): 2, ("b", "10", "pool", "m", "m"): 1, ("a", "0", "pool", "m", "m"): 4}
    assert values(found, rows.QUEUE_SIZE) == sizes | {ZERO: 0}
    assert values(found, rows.QUEUE_BYTES) == {labels: 100 * size for labels, size in sizes.items()} | {ZERO: 0}
    assert values(found, rows.OLDEST_OF_CALLER)["pool", "0", "a"] == 9.0


def test_where_nothing_waits_the_gauges_that_autoscalers_read_are_zero_and_not_absent() -> None:
    found = gauge_set((), 0.0, flows=[flow_report(band(0), rooms=[Room(4.0)])])
    assert values(found, rows.QUEUE_SIZE) == {ZERO: 0}
    assert values(found, rows.HELD_REQUESTS) == {("pool",): 0}
    assert values(found, rows.HELD_AT_ZERO) == {("pool",): 0}
    assert values(found, rows.OLDEST) == {("pool", "0"): 0}


def test_requests_that_are_held_for_the_first_endpoint_have_a_gauge_of_their_own() -> None:
    found = gauge_set((), 0.0, flows=[flow_report(band(0, caller("a", 3)), rooms=())])
    assert values(found, rows.HELD_AT_ZERO) == {("pool",): 3}
    assert reasons(found, rows.SATURATION) == {("pool",): "no_endpoints"}
    assert values(found, rows.WITH_ROOM) == {("pool",): 0}
    ready = gauge_set((), 0.0, flows=[flow_report(band(0, caller("a", 3)))])
    assert values(ready, rows.HELD_AT_ZERO) == {("pool",): 0}


def test_an_unknown_rate_is_withheld_and_so_is_a_wait_that_follows_from_it() -> None:
    found = gauge_set((), 0.0, flows=[flow_report(band(0, caller("a"), expected=None), drain=None)])
    assert values(found, rows.DRAIN) == values(found, rows.EXPECTED_WAIT) == {}
    assert reasons(found, rows.DRAIN) == {("pool",): "no_rate"}
    assert reasons(found, rows.EXPECTED_WAIT) == {("pool", "0"): "no_rate"}


def test_a_pool_without_flow_control_has_no_room_and_no_rate() -> None:
    found = gauge_set((), 0.0, flows=[flow_report(band(0), enabled=False)])
    for metric in (rows.DRAIN, rows.SATURATION, rows.WITH_ROOM):
        assert reasons(found, metric) == {("pool",): "flow_control_off"}
        assert values(found, metric) == {}
    assert values(found, rows.STALE_ENDPOINTS) == {}


def test_saturation_is_the_mean_over_the_endpoints_and_room_counts_those_that_may_be_sent_to_now() -> None:
    rooms = [
        Room(0.0, saturation=1.5),
        Room(2.0, saturation=0.5),
        Room(2.0, opens_at=0.1, saturation=0.25, limited_by=BLIND),  # without room: at least 1
    ]
    found = gauge_set((), 0.0, flows=[flow_report(band(0), rooms=rooms)])
    assert values(found, rows.SATURATION) == {("pool",): pytest.approx(1.0)}
    assert values(found, rows.WITH_ROOM) == {("pool",): 1}
    assert values(found, rows.STALE_ENDPOINTS) == {("headroom",): 1}


def test_the_used_part_of_a_bound_is_published_where_there_is_a_bound() -> None:
    bands = (band(0, caller("a", 3), max_requests=4), band(-1, caller("a", 1)))
    found = gauge_set((), 0.0, flows=[flow_report(*bands, max_requests=8, max_bytes=1000)])
    assert values(found, rows.BAND_REQUESTS) == {("0", "pool"): 0.75}
    assert values(found, rows.BAND_BYTES) == {}
    assert values(found, rows.ALL_REQUESTS) == {("pool",): 0.5}
    assert values(found, rows.ALL_BYTES) == {("pool",): 0.4}
    none = gauge_set((), 0.0, flows=[flow_report(band(0), max_requests=0)])
    assert values(none, rows.ALL_REQUESTS) == {("pool",): 1.0}


def test_only_a_negative_priority_has_a_probability_of_shedding() -> None:
    found = gauge_set((), 0.0, flows=[flow_report(band(0), band(-1, shed=0.25))])
    assert values(found, rows.SHED_PROBABILITY) == {("pool", "-1"): 0.25}


def test_a_hundred_thousand_callers_and_priorities_make_a_bounded_number_of_series_and_lose_no_request() -> None:
    many = [caller(f"caller-{number}", 1 + number % 3) for number in range(1000)]
    long = caller("x" * 10_000, 5)
    report = flow_report(band(0, *many, long), *(band(number, caller("a")) for number in range(1, 200)))
    found = gauge_set((), 0.0, flows=[report])
    sizes = values(found, rows.QUEUE_SIZE)
    assert sum(sizes.values()) == report.requests
    assert len(sizes) <= MAX_QUEUES + MAX_BANDS + 2
    assert len(values(found, rows.QUEUED_REQUESTS)) == MAX_BANDS
    assert ("pool", "0") in values(found, rows.QUEUED_REQUESTS)
    assert len(values(found, rows.OLDEST_OF_CALLER)) <= MAX_QUEUES
    assert all(len(label) <= 256 for labels in sizes for label in labels)
