"""The ranking behind a pick, with and without planned work, and a pick that is redirected."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.pick.decision import NoPick, Pick
from agent.pick.picker import TIE, admitted_addresses, pick, planned, rank, redirected
from agent.pick.profile import Profile, build
from agent.pick.request import PickRequest
from agent.profiles import PRESETS
from agent.signals import KV_USAGE, WAITING
from agent.state.health import Health
from agent.state.outliers import Errors
from agent.state.snapshot import EndpointView
from tests.fakes.views import FixedIndex, snapshot, view

EVERY_PRESET = pytest.mark.parametrize(
    "profile", [build(spec) for spec in PRESETS.values()], ids=lambda profile: profile.name
)
REQUEST = PickRequest("r", "m", 640, range(10))


@st.composite
def fleets(draw: st.DrawFn) -> list[EndpointView]:
    """Some endpoints whose queue is known, of which at least one may be picked."""
    count = draw(st.integers(1, 5))
    return [
        view(
            f"e{number}:1",
            {WAITING: float(draw(st.integers(0, 9))), KV_USAGE: draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))},
            health=Health.HEALTHY if not number else draw(st.sampled_from([Health.HEALTHY, Health.DOWN])),
            backlog_seconds=draw(st.floats(0, 100)),
            rate=draw(st.sampled_from([100.0, 1_000.0, 8_000.0])),
            requests=draw(st.integers(0, 20)),
        )
        for number in range(count)
    ]


warm = st.dictionaries(st.sampled_from(["e0:1", "e2:1"]), st.integers(0, 9))


@EVERY_PRESET
@given(views=fleets(), hits=warm, fallbacks=st.integers(0, 3))
def test_the_best_of_a_ranking_is_the_endpoint_of_the_pick(
    profile: Profile, views: list[EndpointView], hits: dict[str, int], fallbacks: int
) -> None:
    index = FixedIndex(hits)
    ranking = rank(snapshot(*views), REQUEST, profile, index, 0.0)
    decision = pick(snapshot(*views), REQUEST, profile, index, 0.0, fallbacks)
    assert not isinstance(ranking, NoPick)
    assert isinstance(decision, Pick)
    assert (ranking.addresses, ranking.totals, ranking.scores) == (decision.addresses, decision.totals, decision.scores)
    place = list(ranking.addresses).index(decision.endpoint)
    assert ranking.totals[place] >= max(ranking.totals) - TIE


@EVERY_PRESET
@given(views=fleets(), hits=warm, seconds=st.floats(0, 100), of=st.integers(0, 4))
def test_planned_work_is_a_longer_wait_at_its_endpoint_and_at_no_other(
    profile: Profile, views: list[EndpointView], hits: dict[str, int], seconds: float, of: int
) -> None:
    address = views[of % len(views)].address
    index, fleet = FixedIndex(hits), snapshot(*views)
    before = rank(fleet, REQUEST, profile._replace(filters=()), index, 0.0)
    after = rank(fleet, REQUEST, profile._replace(filters=()), index, 0.0, {address: seconds})
    assert not isinstance(before, NoPick)
    assert not isinstance(after, NoPick)
    assert before.addresses == after.addresses
    for place, each in enumerate(before.addresses):
        for column in ("prefill_seconds", "backlog_seconds"):
            more = getattr(after.candidates, column)[place] - getattr(before.candidates, column)[place]
            assert more == pytest.approx(seconds if each == address else 0.0, abs=1e-9)
        assert after.candidates.works[place].requests == before.candidates.works[place].requests


@given(views=fleets(), hits=warm, seconds=st.floats(0, 100))
def test_planned_work_never_wins_a_request_for_its_endpoint(
    views: list[EndpointView], hits: dict[str, int], seconds: float
) -> None:
    index, fleet, profile = FixedIndex(hits), snapshot(*views), build(PRESETS["least-cost"])
    before = rank(fleet, REQUEST, profile, index, 0.0)
    assert not isinstance(before, NoPick)
    best = max(before.totals)
    losers = [address for address, total in zip(before.addresses, before.totals, strict=True) if total < best - 1e-6]
    for loser in losers:
        after = rank(fleet, REQUEST, profile, index, 0.0, {loser: seconds})
        assert not isinstance(after, NoPick)
        assert after.totals[list(after.addresses).index(loser)] < max(after.totals)


def test_planned_work_begins_after_what_an_endpoint_has_to_do() -> None:
    idle, busy = view("a:1", backlog_seconds=-5.0).work, view("b:1", backlog_seconds=2.0).work
    assert planned(idle, 3.0, 1.0).busy_until == 4.0
    assert planned(busy, 3.0, 1.0).busy_until == 5.0
    assert planned(busy, 0.0, 1.0) is busy


@given(views=fleets(), hits=warm, which=st.integers(0, 4), fallbacks=st.integers(0, 3))
def test_a_redirected_pick_is_that_of_another_candidate_with_its_own_hit_and_fallbacks(
    views: list[EndpointView], hits: dict[str, int], which: int, fallbacks: int
) -> None:
    decision = pick(snapshot(*views), REQUEST, build(PRESETS["blend"]), FixedIndex(hits), 0.0, fallbacks)
    assert isinstance(decision, Pick)
    address = decision.addresses[which % len(decision.addresses)]
    other = redirected(decision, address, "room")
    if address == decision.endpoint:
        assert other is decision
        return
    assert (other.endpoint, other.decided_by) == (address, "room")
    assert other.hit_tokens == min(640, 64 * min(10, hits.get(address, 0)))
    assert address not in other.fallbacks
    assert len(other.fallbacks) == min(fallbacks, len(decision.addresses) - 1) == len(decision.fallbacks)
    totals = dict(zip(decision.addresses, decision.totals, strict=True))
    assert [totals[each] for each in other.fallbacks] == sorted(
        (total for each, total in totals.items() if each != address), reverse=True
    )[: len(other.fallbacks)]
    assert other.totals is decision.totals


def test_a_pick_is_not_redirected_to_an_endpoint_that_is_no_candidate() -> None:
    decision = pick(snapshot(view("a:1"), view("b:1")), REQUEST, build(PRESETS["blend"]), FixedIndex(), 0.0)
    assert isinstance(decision, Pick)
    with pytest.raises(ValueError, match="not in"):
        redirected(decision, "c:1", "room")


def test_the_admitted_addresses_are_those_that_a_request_without_a_subset_may_get() -> None:
    trial_due = view("due:1", health=Health.FAILING)._replace(errors=Errors(3, 1.0, 3.0, 0.0, "reset", "x", 1, 5.0))
    later = view("later:1", health=Health.FAILING)._replace(errors=Errors(3, 1.0, 3.0, 0.0, "reset", "x", 1, 9.0))
    fleet = snapshot(view("a:1"), view("down:1", health=Health.DOWN), trial_due, later)
    assert admitted_addresses(fleet, 4.0) == ["a:1"]
    assert admitted_addresses(fleet, 5.0) == ["a:1", "due:1"]
    assert admitted_addresses(snapshot(later, view("down:1", health=Health.DOWN)), 4.0) == ["later:1"]
    assert admitted_addresses(snapshot(), 0.0) == []
