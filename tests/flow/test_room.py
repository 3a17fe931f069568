"""The room of an endpoint by each detector, and the evidence that it needs beside a snapshot."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.flow.evidence import EndpointEvidence, Evidence
from agent.flow.room import DETECTORS, Detector, Room, RoomLimits, concurrency, headroom, utilization
from agent.signals import BLOCK_SIZE, BLOCKS, KV_TOKENS, KV_USAGE, RUNNING, SLOTS_USAGE, WAITING
from agent.state.health import Health
from tests.fakes.views import view, views

LIMITS = RoomLimits(slots=8.0, queued=1.0, max_wait_seconds=0.5)
NOTHING = Evidence()


def page(running: float, waiting: float = 0.0, **more: float) -> dict[str, float]:
    return {RUNNING: float(running), WAITING: float(waiting), **more}


def test_room_is_the_free_slots_and_the_requests_that_may_wait_behind_them() -> None:
    assert headroom(view("a", page(3), requests=2, foreign=1), NOTHING, LIMITS, 0.0).requests == 6
    full = headroom(view("a", page(8, 1), requests=9), NOTHING, LIMITS, 0.0)
    assert (full.requests, full.limited_by) == (0, "slots")
    assert full.saturation > 1


def test_slots_are_configured_else_declared_by_the_engine_else_learnt() -> None:
    busy = view("a", page(4, **{SLOTS_USAGE: 0.25}), requests=4)
    assert headroom(busy, NOTHING, LIMITS, 0.0).requests == 5
    declared = RoomLimits(slots=None)
    assert headroom(busy, Evidence(slots=5), declared, 0.0).requests == 13
    assert headroom(view("a", page(4), requests=4), Evidence(slots=5), declared, 0.0).requests == 2
    assert headroom(view("a", page(4), requests=4), NOTHING, declared, 0.0).requests == math.inf


def test_a_prompt_has_to_fit_into_the_free_kv_cache() -> None:
    for capacity in ({KV_TOKENS: 1000.0}, {BLOCKS: 100.0, BLOCK_SIZE: 10.0}):
        room = headroom(view("a", page(1, **{KV_USAGE: 0.75}, **capacity), requests=1), NOTHING, LIMITS, 0.0)
        assert (room.kv_tokens, room.kv_capacity) == (250, 1000)
        sent = headroom(
            view("a", page(1, **{KV_USAGE: 0.75}, **capacity), requests=1), Evidence(sent_tokens=200), LIMITS, 0.0
        )
        assert sent.fits(50)
        assert not sent.fits(51)
        assert sent.fits(1001)
    assert headroom(view("a", page(1), requests=1), NOTHING, LIMITS, 0.0).kv_tokens == math.inf


def test_room_comes_when_the_prefill_before_a_request_takes_less_than_the_bound() -> None:
    room = headroom(view("a", page(1), requests=1, backlog_seconds=2.0), NOTHING, LIMITS, 0.0)
    assert (room.opens_at, room.limited_by, room.saturation) == (1.5, "wait", 4.0)


def test_a_queue_that_something_else_than_prefill_delays_leaves_no_room() -> None:
    room = headroom(view("a", page(1), requests=1, queue_seconds=0.75), NOTHING, LIMITS, 0.0)
    assert (room.requests, room.limited_by) == (0, "queue")


def test_a_blind_endpoint_has_room_by_the_agents_own_requests() -> None:
    limits = RoomLimits(blind_requests=4.0)
    for detector in DETECTORS.values():
        for own, expected in ((0, True), (3, True), (4, False)):
            blind = view("a", page(99, 99), requests=own, foreign=50, corrected=False, health=Health.BLIND)
            room = detector(blind, NOTHING, limits, 0.0)
            assert (room.requests >= 1) is expected, detector
        assert detector(view("a", {}, corrected=False, health=Health.BLIND), NOTHING, limits, 0.0).requests >= 1


@pytest.mark.parametrize("detector", DETECTORS.values())
def test_with_a_bound_of_0_a_blind_endpoint_has_room_for_one_request_at_a_time(detector: Detector) -> None:
    limits = RoomLimits(slots=64.0, blind_requests=0.0)
    for own, expected in ((0, 1), (1, 0)):
        blind = view("a", page(0, 0), requests=own, corrected=False, health=Health.BLIND)
        assert max(0.0, detector(blind, NOTHING, limits, 0.0).requests) == expected


def test_an_idle_endpoint_has_room_for_one_whatever_its_size() -> None:
    usage = page(0, **{KV_USAGE: 0.99, KV_TOKENS: 1000.0})
    room = headroom(view("a", usage), Evidence(share=0.1), RoomLimits(slots=1.0, queued=0.0), 0.0)
    assert room.requests == 1
    assert room.fits(500)


def test_each_of_two_replicas_claims_half_of_what_is_free_on_the_page() -> None:
    limits = RoomLimits(slots=10.0, queued=0.0)
    fresh = view("a", page(2), requests=1, foreign=1)
    half = headroom(fresh, Evidence(share=0.5), limits, 0.0)
    assert half.requests == 4
    sent = view("a", page(2), requests=4, foreign=1)
    assert headroom(sent, Evidence(share=0.5, sent_requests=3), limits, 0.0).requests == 1
    ended = view("a", page(2), requests=3, foreign=1)  # the one that was on the page has ended: its slot is its own
    assert headroom(ended, Evidence(share=0.5, sent_requests=3, ended_requests=1), limits, 0.0).requests == 2


def test_utilization_has_the_thresholds_of_the_reference() -> None:
    limits = RoomLimits()
    for waiting, usage, expected in ((4.0, 0.79, True), (5.0, 0.0, False), (0.0, 0.8, False)):
        room = utilization(view("a", page(9, waiting, **{KV_USAGE: usage}), requests=50), NOTHING, limits, 0.0)
        assert (room.requests >= 1) is expected
        assert (room.saturation < 1) is expected


def test_concurrency_counts_requests_and_prompt_tokens_in_flight() -> None:
    limits = RoomLimits(max_requests=10.0, max_tokens=1000.0)
    assert concurrency(view("a", page(1), requests=6, foreign=1), NOTHING, limits, 0.0).requests == 3
    full = concurrency(view("a", page(1), requests=6, backlog_seconds=1.0, rate=1000.0), NOTHING, limits, 0.0)
    assert (full.requests, full.limited_by) == (0, "tokens")


def test_a_dispatch_uses_room_up() -> None:
    room = Room(3.0, opens_at=-5.0, wait_seconds=1.0, kv_tokens=100.0).after(30, 2.0, 10.0)
    assert (room.requests, room.kv_tokens) == (2, 70)
    assert room.opens_at == 11.0  # 2 s of work, of which 1 s may be left
    assert Room(3.0).after(30, 2.0, 10.0).opens_at == -math.inf


@given(views, st.integers(0, 9), st.integers(0, 9), st.sampled_from([1.0, 0.5, 0.1]), st.floats(0, 100))
def test_every_detector_gives_numbers_for_any_endpoint(
    endpoint: object, sent: int, ended: int, share: float, now: float
) -> None:
    evidence = Evidence(sent_requests=sent, ended_requests=ended, share=share)
    for detector in DETECTORS.values():
        room = detector(endpoint, evidence, RoomLimits(), now)  # type: ignore[arg-type]
        assert not any(math.isnan(number) for number in room if isinstance(number, float))
        assert room.saturation >= 0


@given(views)
def test_an_endpoint_with_more_requests_never_has_more_room(endpoint: object) -> None:
    busier = endpoint._replace(work=endpoint.work._replace(requests=endpoint.work.requests + 1))  # type: ignore[attr-defined]
    for detector in (headroom, concurrency):
        room, less = (detector(each, NOTHING, LIMITS, 0.0) for each in (endpoint, busier))  # type: ignore[arg-type]
        assert less.requests <= room.requests


# -- evidence ----------------------------------------------------------------------------------------------------------


def test_slots_are_learnt_from_the_largest_batch_beside_a_queue() -> None:
    evidence = EndpointEvidence()
    evidence.observe(view("a", page(3, 1), at=1.0))
    assert evidence.evidence().slots == math.inf  # it may have arrived within a step
    evidence.observe(view("a", page(3, 1), at=2.0))
    assert evidence.evidence().slots == 3
    evidence.observe(view("a", page(5, 0), at=3.0))
    assert evidence.evidence().slots == math.inf
    evidence.observe(view("a", page(4, 6), at=4.0))
    assert evidence.evidence().slots == 4
    evidence.reset()
    assert evidence.evidence() == Evidence()


def test_what_was_sent_counts_until_a_page_shows_it() -> None:
    evidence = EndpointEvidence()
    evidence.sent(100, 1.0)
    evidence.sent(50, 2.0)
    assert evidence.evidence(0.5) == Evidence(sent_requests=2, sent_tokens=150, share=0.5)
    evidence.observe(view("a", page(1), at=1.5))
    evidence.observe(view("a", page(9), at=1.25))  # an older page changes nothing
    assert evidence.evidence().sent_requests == 1
    evidence.ended(1.0, 2.5)  # was on the page
    evidence.ended(2.0, 2.5)  # was not
    assert evidence.evidence()[1:4] == (0, 50, 1)
    evidence.observe(view("a", page(0), at=3.0))
    assert evidence.evidence() == Evidence()


def test_a_queue_beside_an_unknown_batch_is_behind_a_full_one() -> None:
    evidence = EndpointEvidence()
    evidence.observe(view("a", {WAITING: 2.0}, at=1.0, requests=6))
    assert evidence.evidence().slots == 4


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_has_the_name_of_its_function(name: str) -> None:
    assert DETECTORS[name].__name__ == name
