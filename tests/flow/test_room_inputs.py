"""What the room of an endpoint is computed from, as a reader sees it."""

from __future__ import annotations

import pytest

from agent.flow.evidence import Evidence
from agent.flow.room import RoomLimits, headroom
from agent.flow.room_inputs import CONFIGURED, LEARNT, REPORTED, UNKNOWN, room_inputs
from agent.signals import KV_TOKENS, KV_USAGE, RUNNING, SLOTS_USAGE, WAITING, Value
from tests.fakes.views import view

PAGE: dict[str, Value] = {RUNNING: 4.0, WAITING: 1.0, KV_USAGE: 0.25, KV_TOKENS: 1000.0}


@pytest.mark.parametrize(
    ("limits", "evidence", "values", "expected"),
    [
        (RoomLimits(slots=8.0), Evidence(slots=5.0), PAGE, (8.0, CONFIGURED)),
        (RoomLimits(), Evidence(slots=5.0), {**PAGE, SLOTS_USAGE: 0.5}, (8.0, REPORTED)),
        (RoomLimits(), Evidence(slots=5.0), PAGE, (5.0, LEARNT)),
        (RoomLimits(), Evidence(), PAGE, (None, UNKNOWN)),
    ],
)
def test_the_slots_are_shown_with_where_they_come_from(
    limits: RoomLimits, evidence: Evidence, values: dict[str, Value], expected: tuple[float | None, str]
) -> None:
    found = room_inputs(view("a:1", values), evidence, limits, 0.0)
    assert (found.slots, found.slots_source) == expected


def test_free_kv_tokens_are_those_of_the_room() -> None:
    seen, evidence = view("a:1", PAGE, requests=5), Evidence(8.0, 2, 100, 0, 0.5)
    found, room = room_inputs(seen, evidence, RoomLimits(), 0.0), headroom(seen, evidence, RoomLimits(), 0.0)
    assert found.free_kv_tokens == room.kv_tokens == 275.0
    assert (found.kv_capacity_tokens, found.share, found.sent_tokens) == (1000.0, 0.5, 100)
    assert (found.running, found.waiting, found.own_requests) == (4.0, 1.0, 5)


def test_what_a_blind_endpoint_does_not_show_is_unknown() -> None:
    found = room_inputs(view("a:1", {}, corrected=False, requests=3), Evidence(), RoomLimits(), 0.0)
    assert (found.seen, found.own_requests) == (False, 3)
    assert (found.slots, found.running, found.free_kv_tokens, found.kv_usage) == (None, None, None, None)


def test_the_wait_is_that_of_the_backlog_at_the_endpoint() -> None:
    assert room_inputs(view("a:1", PAGE, backlog_seconds=2.0), Evidence(), RoomLimits(), 0.5).wait_seconds == 1.5
