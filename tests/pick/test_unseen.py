"""Endpoints whose load no page shows: their cost, and their share of the requests beside seen ones."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.pick.candidates import Candidates, load_of_unseen
from agent.pick.decision import Pick
from agent.pick.picker import pick
from agent.pick.profile import Profile, build
from agent.pick.request import PickRequest
from agent.profiles import PRESETS
from agent.signals import KV_USAGE, LORA_RUNNING, RUNNING, WAITING, Value
from agent.state.health import Health
from agent.state.snapshot import EndpointView
from tests.fakes.views import FixedIndex, snapshot, view
from tests.pick.simulated_fleet import LoadPhase, SimulatedFleet

PROFILES = {name: build(spec) for name, spec in PRESETS.items()}
EVERY_PRESET = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
BUSY: dict[str, Value] = {RUNNING: 8.0, WAITING: 20.0, KV_USAGE: 0.9}


def blind(address: str, *, requests: int = 0, backlog_seconds: float = 0.0) -> EndpointView:
    """A blind endpoint whose old page showed nothing to do."""
    return view(address, health=Health.BLIND, requests=requests, backlog_seconds=backlog_seconds, corrected=False)


def picked(profile: Profile, *views: EndpointView, model: str = "m", count: int = 1) -> Counter[str]:
    """Where requests go that do not change the fleet."""
    found: Counter[str] = Counter()
    for number in range(count):
        request = PickRequest(f"request {number}", model, 640, (), 64)
        decision = pick(snapshot(*views), request, profile, FixedIndex(), 0.0)
        assert isinstance(decision, Pick)
        found[decision.endpoint] += 1
    return found


# -- the cost ----------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e6), st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 1e6))
def test_the_load_of_an_unseen_endpoint_is_that_of_the_busiest_for_as_many_requests_and_grows_with_them(
    busiest: float, there: int, requests: int, own: float
) -> None:
    assert load_of_unseen(busiest, there, there, 0.0) == pytest.approx(busiest)
    assert load_of_unseen(busiest, there, requests + 1, own) >= load_of_unseen(busiest, there, requests, own)
    assert load_of_unseen(busiest, 0, requests, own) == busiest + own


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 100), st.booleans()), min_size=1, max_size=6))
def test_an_unseen_endpoint_costs_at_least_as_much_as_the_busiest_seen_one_with_as_many_requests(
    fleet: list[tuple[float, int, bool]],
) -> None:
    views = [
        view(f"e{place}:1", backlog_seconds=seconds, requests=requests, corrected=seen)
        for place, (seconds, requests, seen) in enumerate(fleet)
    ]
    backlog = Candidates(PickRequest("r", "m", 1), 0.0, views, [0] * len(views)).backlog_seconds
    seen = [(seconds, requests) for seconds, requests, seen in fleet if seen]
    for (own, requests, is_seen), found in zip(fleet, backlog, strict=True):
        assert found == own if is_seen or not seen else found >= own
        if seen and not is_seen:
            busiest, there = max(seen, key=lambda each: (each[0], -each[1]))
            assert requests < there or found >= busiest * (1 - 1e-9)


@EVERY_PRESET
def test_a_blind_endpoint_does_not_attract_what_others_keep_from_a_full_one(profile: Profile) -> None:
    full = view("full:1", BUSY, backlog_seconds=10.0)
    free = view("free:1", {RUNNING: 1.0, WAITING: 0.0, KV_USAGE: 0.1})
    assert picked(profile, full, free, blind("blind:1"), count=50) == {"free:1": 50}


@EVERY_PRESET
def test_a_blind_endpoint_with_fewer_requests_than_a_full_one_gets_the_next(profile: Profile) -> None:
    fleet = [view(f"{name}:1", BUSY, backlog_seconds=10.0, requests=20) for name in "ab"]
    assert picked(profile, *fleet, blind("blind:1", requests=5)) == {"blind:1": 1}
    assert picked(profile, *fleet, blind("blind:1", requests=30)).keys() <= {"a:1", "b:1"}


@EVERY_PRESET
def test_the_old_page_of_a_blind_endpoint_decides_nothing(profile: Profile) -> None:
    idle, busy = (
        [view("a:1", BUSY, backlog_seconds=1.0, requests=3), blind("b:1", requests=3)._replace(values=values)]
        for values in ({RUNNING: 0.0, WAITING: 0.0, KV_USAGE: 0.0}, BUSY)
    )
    assert picked(profile, *idle, count=20) == picked(profile, *busy, count=20)


@EVERY_PRESET
def test_an_all_blind_pool_is_served_by_requests_in_flight(profile: Profile) -> None:
    fleet = [blind("a:1", requests=4, backlog_seconds=0.4), blind("b:1", requests=3, backlog_seconds=0.3)]
    assert picked(profile, *fleet, blind("c:1", requests=1, backlog_seconds=0.1), count=20) == {"c:1": 20}
    shares = picked(profile, *(blind(f"{name}:1") for name in "abcd"), count=400)
    assert all(50 < shares[f"{name}:1"] < 150 for name in "abcd")


def test_an_adapter_draws_no_request_away_from_blind_endpoints_while_every_seen_one_runs_it() -> None:
    running: dict[str, Value] = {RUNNING: 1.0, WAITING: 0.0, LORA_RUNNING: frozenset({"m"})}
    shares = picked(PROFILES["least-cost"], view("a:1", running), blind("b:1"), count=400)
    assert 130 < shares["b:1"] < 270
    without: dict[str, Value] = {RUNNING: 1.0, WAITING: 0.0, LORA_RUNNING: frozenset()}
    assert picked(PROFILES["least-cost"], view("a:1", running), view("c:1", without), blind("b:1"), count=20) == {
        "a:1": 20
    }


# -- shares of a simulated fleet ---------------------------------------------------------------------------------------

# From an idle fleet to one that gets more than it can serve, and back.
LOADS = (
    LoadPhase(30, 0.5),
    LoadPhase(30, 2.0),
    LoadPhase(40, 4.0),
    LoadPhase(40, 6.0),
    LoadPhase(60, 2.0),
    LoadPhase(60, 0.5),
)
FLEETS = {"one of four": (3,), "half": (2, 3), "three of four": (1, 2, 3)}


@EVERY_PRESET
@pytest.mark.parametrize("unseen", FLEETS.values(), ids=FLEETS)
def test_neither_seen_nor_blind_endpoints_starve_while_the_load_rises_and_falls(
    profile: Profile, unseen: tuple[int, ...]
) -> None:
    fleet = SimulatedFleet(4, profile, blind=unseen)
    shares = fleet.run(LOADS)
    assert {view.health for view in fleet.views} == {Health.HEALTHY, Health.BLIND}
    for phase, share in zip(LOADS, shares, strict=True):
        if phase.rate >= 2.0:  # below, some forty requests are all
            assert all(0.35 < each < 1.75 for each in share), (phase, share)
        groups = [sum(share[place] for place in group) / len(group) for group in (unseen, fleet.others(unseen))]
        assert all(0.35 < each < 1.75 for each in groups), (phase, share)


@pytest.mark.parametrize("others", [0.5, 1.0])
def test_half_a_blind_fleet_does_not_starve_beside_the_requests_of_another_gateway(others: float) -> None:
    fleet = SimulatedFleet(4, PROFILES["least-cost"], blind=(2, 3), others=others / 4)
    for phase, share in zip(LOADS[:4], fleet.run(LOADS[:4]), strict=True):
        halves = (share[0] + share[1]) / 2, (share[2] + share[3]) / 2
        assert all(0.5 < each < 1.5 for each in halves), (phase, share)


def test_the_first_token_of_a_blind_fleet_comes_within_two_and_a_quarter_times_that_of_a_seen_one() -> None:
    waits = []
    for unseen in ((), (2, 3), (0, 1, 2, 3)):
        fleet = SimulatedFleet(4, PROFILES["least-cost"], blind=unseen)
        fleet.run((LoadPhase(30, 2.0), LoadPhase(90, 4.0)))
        waits.append(fleet.first_token_seconds(0.9))
    assert max(waits[1:]) < 2.25 * waits[0], waits
