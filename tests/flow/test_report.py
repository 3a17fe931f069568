"""What a report of flow control contains, and that its size does not follow the number of requests."""

from __future__ import annotations

import pytest

from agent.flow.control import BandLimits, Estimate, FlowControl, FlowLimits
from agent.flow.report import BandReport, EndpointReport, report
from agent.flow.request import FlowRequest
from agent.flow.room import BLIND, KV_CACHE, SLOTS, TOKENS, WAIT, Room

DEFAULTS = FlowLimits()


class FlowPool:
    """Flow control of one endpoint, `a`."""

    def __init__(self, limits: FlowLimits = DEFAULTS) -> None:
        self.control = FlowControl(limits, lambda _request, _ahead: Estimate([0.0], [1.0]), lambda: 1.0)
        self.control.set_endpoints("a", 0.0)

    def held(self, priority: int = 0, flow: str = "", tokens: int = 10, now: float = 0.0) -> None:
        request = FlowRequest(None, priority=priority, flow=flow, tokens=tokens, size=1, ttl=1e6)
        assert self.control.submit(request, now) == []

    def bands(self, now: float) -> dict[int, BandReport]:
        return {band.priority: band for band in report(self.control, now).bands}


def test_the_oldest_request_of_a_band_and_of_each_caller_is_reported_with_its_wait() -> None:
    pool = FlowPool()
    for now, flow in ((0.0, "x"), (3.0, "y"), (4.0, "x")):
        pool.held(flow=flow, now=now)
    band = pool.bands(10.0)[0]
    assert band.oldest_seconds == 10.0
    assert {flow.name: (flow.requests, flow.oldest_seconds) for flow in band.flows} == {"x": (2, 10.0), "y": (1, 7.0)}


def test_an_idle_pool_reports_the_bands_of_priority_0_and_minus_1_and_those_with_limits_of_their_own() -> None:
    pool = FlowPool(FlowLimits(bands={5: BandLimits(max_requests=2, ttl=9.0)}))
    found = pool.bands(0.0)
    assert list(found) == [5, 0, -1]
    assert all((band.requests, band.oldest_seconds, band.flows) == (0, 0.0, ()) for band in found.values())
    assert (found[5].max_requests, found[5].ttl_seconds, found[0].ttl_seconds) == (2, 9.0, 60.0)


def test_a_band_that_is_empty_again_is_still_reported() -> None:
    pool = FlowPool()
    pool.held(priority=7)
    pool.control.offer("a", Room(1.0), 1.0)
    assert pool.bands(1.0)[7].requests == 0


def test_a_request_of_priority_minus_1_would_be_shed_by_what_waits_before_it() -> None:
    pool = FlowPool()
    for _ in range(100):
        pool.held()
    pool.control.offer("a", Room(1.0), 1.0)
    band = pool.bands(2.0)[-1]
    assert band.requests == 0
    assert band.expected_wait_seconds is not None
    assert band.expected_wait_seconds > band.ttl_seconds
    assert band.shed_probability == 1.0


def test_a_wait_is_unknown_until_something_shows_the_rate_and_0_where_nothing_is_before_it() -> None:
    pool = FlowPool()
    pool.held(priority=-1)
    assert {priority: band.expected_wait_seconds for priority, band in pool.bands(0.0).items()} == {0: 0.0, -1: None}


@pytest.mark.parametrize(
    ("room", "blocked", "expected"),
    [
        (Room(2.0, saturation=0.25, limited_by=SLOTS), False, (True, SLOTS, 0.25)),
        (Room(0.0, saturation=0.9, limited_by=KV_CACHE), False, (False, SLOTS, 1.0)),
        (Room(-1.0, saturation=2.0, limited_by=BLIND), False, (False, BLIND, 2.0)),
        (Room(2.0, opens_at=3.5, saturation=0.2, limited_by=KV_CACHE), False, (False, WAIT, 1.0)),
        (Room(2.0, opens_at=3.5, saturation=1.5, limited_by=TOKENS), False, (False, TOKENS, 1.5)),
        (Room(2.0, saturation=0.5, limited_by=SLOTS), True, (False, KV_CACHE, 1.0)),
    ],
)
def test_an_endpoint_without_room_shows_what_leaves_none_and_a_saturation_of_1_or_more(
    room: Room, blocked: bool, expected: tuple[bool, str, float]
) -> None:
    found = EndpointReport("a", room, blocked, 0, 0.0)
    assert (found.has_room(3.0), found.limited_by(3.0), found.saturation(3.0)) == expected


def test_a_report_has_as_many_parts_for_10000_requests_as_for_10() -> None:
    small, large = FlowPool(), FlowPool()
    for pool, count in ((small, 10), (large, 10_000)):
        for number in range(count):
            pool.held(flow=f"caller-{number % 5}")

    def parts(pool: FlowPool) -> int:
        found = report(pool.control, 1.0)
        return len(found.bands) + sum(len(band.flows) for band in found.bands) + len(found.endpoints)

    assert parts(small) == parts(large)
    assert report(large.control, 1.0).requests == 10_000


@pytest.mark.source  # it replaces a method
def test_the_rooms_of_a_fleet_in_which_nothing_waits_are_set_without_a_search_for_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A report of an idle pool sets them all: with a search for each, its cost would be quadratic."""
    searches: list[str] = []
    monkeypatch.setattr(FlowControl, "_next", lambda _self, endpoint, _now: searches.append(endpoint.address))
    addresses = [f"{number}:1" for number in range(100)]
    control = FlowControl(DEFAULTS, lambda _request, _ahead: Estimate([0.0] * 100, [1.0] * 100), lambda: 1.0)
    control.set_endpoints(addresses, 0.0)
    for address in addresses:
        assert control.offer(address, Room(1.0), 0.0) == []
    assert searches == []
    assert all(each.has_room(0.0) for each in report(control, 0.0).endpoints)
