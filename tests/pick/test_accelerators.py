"""Picking by accelerator readings: only where a profile uses them, and only fresh ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.accelerators.combine import Accelerators, DeviceSet, combine
from agent.accelerators.device import Device
from agent.accelerators.table import UTILIZATION
from agent.pick.candidates import Candidates
from agent.pick.decision import Pick
from agent.pick.filters import FILTERS
from agent.pick.parameters import BadParameter
from agent.pick.picker import pick
from agent.pick.profile import build
from agent.pick.request import PickRequest
from agent.profiles import PRESETS, ProfileSpec, plugin
from agent.state.snapshot import EndpointView
from tests.fakes.views import FixedIndex, snapshot, view

BUSY = st.one_of(st.none(), st.floats(0, 1))


def source(busy: float | None, *, at: float = 0.0, picked_on: bool = True) -> Accelerators:
    values = {} if busy is None else {UTILIZATION: busy}
    return combine("dcgm", "x:1", DeviceSet([Device("0", "0", values)]), at, 15.0, picked_on=picked_on)


def endpoint(address: str, *sources: Accelerators) -> EndpointView:
    return view(address)._replace(accelerators=sources)


def left(ceiling: float, *busy: float | None) -> list[int]:
    views = [endpoint(f"{place}:1", source(each)) for place, each in enumerate(busy)]
    keep = FILTERS["accelerator-utilization-filter"]({"maxUtilization": ceiling})
    return list(keep(Candidates(PickRequest("r", "m", 10), 0.0, views, [0] * len(views))))


@given(st.floats(0, 1), st.lists(BUSY, min_size=1, max_size=5))
def test_endpoints_known_to_be_above_the_ceiling_are_removed_unless_all_are(ceiling, busy) -> None:
    below = [place for place, each in enumerate(busy) if each is None or each <= ceiling]
    assert left(ceiling, *busy) == (below or list(range(len(busy))))


def test_the_ceiling_is_a_ratio() -> None:
    with pytest.raises(BadParameter, match="write a number from 0 to 1"):
        FILTERS["accelerator-utilization-filter"]({"maxUtilization": 90})


def test_no_preset_uses_accelerators() -> None:
    views = [endpoint("a:1", source(1.0)), endpoint("b:1", source(0.0))]
    for spec in PRESETS.values():
        for number in range(8):
            request = PickRequest(str(number), "m", 10)
            with_them = pick(snapshot(*views), request, build(spec), FixedIndex(), 0.0)
            without = pick(snapshot(view("a:1"), view("b:1")), request, build(spec), FixedIndex(), 0.0)
            assert isinstance(with_them, Pick)
            assert isinstance(without, Pick)
            assert (with_them.endpoint, with_them.totals) == (without.endpoint, without.totals)


PROFILE = build(
    ProfileSpec("mine", (plugin("accelerator-utilization-filter"),), ((plugin("accelerator-utilization-scorer"), 1.0),))
)


def chosen(*views: EndpointView, now: float = 0.0) -> Pick:
    found = pick(snapshot(*views), PickRequest("r", "m", 10), PROFILE, FixedIndex(), now)
    assert isinstance(found, Pick)
    return found


def test_a_profile_with_the_scorer_picks_the_idlest() -> None:
    found = chosen(endpoint("a:1", source(0.7)), endpoint("b:1", source(0.2)), endpoint("c:1", source(0.99)))
    assert (found.endpoint, found.decided_by) == ("b:1", "accelerator-utilization-scorer")
    assert list(found.addresses) == ["a:1", "b:1"]


def test_a_stale_reading_and_one_that_may_not_be_picked_on_are_unknown_and_never_win() -> None:
    old, shown = source(0.0, at=-15.0), source(0.0, picked_on=False)
    found = chosen(endpoint("a:1", old), endpoint("b:1", source(0.5)), endpoint("c:1", shown))
    assert dict(zip(found.addresses, found.totals, strict=True)) == {"a:1": 0.5, "b:1": 0.5, "c:1": 0.5}


def test_the_source_that_may_be_picked_on_is_used_beside_one_that_may_not() -> None:
    found = chosen(endpoint("a:1", source(0.0, picked_on=False), source(0.9)), endpoint("b:1", source(0.5)))
    assert found.endpoint == "b:1"
