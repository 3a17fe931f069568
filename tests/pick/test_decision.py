"""The explanation of a pick: the filters and what each removed, the candidates, and the parts of the least cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.pick.decision import Explanation, Pick, explain
from agent.pick.picker import pick
from agent.pick.profile import Profile, build
from agent.pick.request import PickRequest
from agent.profiles import PRESETS, ProfileSpec, plugin
from agent.signals import MODELS
from agent.state.health import Health
from agent.state.snapshot import EndpointView
from tests.fakes.views import IDLE, FixedIndex, snapshot, view

LEAST_COST, AFFINITY, BLEND = (build(PRESETS[name]) for name in ("least-cost", "affinity", "blend"))


def decide(
    *views: EndpointView,
    profile: Profile = LEAST_COST,
    warm: dict[str, int] | None = None,
    model: str = "m",
    subset: frozenset[str] | None = None,
    tokens: int = 640,
) -> Pick:
    request = PickRequest("r", model, tokens, range(10), 64, subset)
    decision = pick(snapshot(*views), request, profile, FixedIndex(warm), 0.0)
    assert isinstance(decision, Pick), decision
    return decision


def removed(explanation: Explanation) -> dict[str, tuple[str, ...]]:
    return {each.name: each.removed for each in explanation.filters}


def test_each_filter_is_shown_in_order_with_the_addresses_that_it_removed() -> None:
    serves = {**IDLE, MODELS: frozenset({"m"})}
    decision = decide(
        view("down:1", serves, health=Health.DOWN),
        view("elsewhere:1", serves),
        view("another-model:1", {**IDLE, MODELS: frozenset({"x"})}),
        view("cold:1", serves),
        view("warm:1", serves),
        profile=AFFINITY,
        subset=frozenset({"down:1", "another-model:1", "cold:1", "warm:1"}),
        warm={"warm:1": 10},
    )
    explanation = explain(decision)
    assert list(removed(explanation).items()) == [
        ("health", ("down:1",)),
        ("subset", ("elsewhere:1",)),
        ("model", ("another-model:1",)),
        ("prefix-cache-affinity-filter", ("cold:1",)),
    ]
    assert [each.address for each in explanation.candidates] == ["warm:1"]


def test_a_filter_that_removed_nothing_is_shown_empty() -> None:
    explanation = explain(decide(view("a:1"), view("b:1"), profile=AFFINITY))
    assert removed(explanation) == {"health": (), "subset": (), "model": (), "prefix-cache-affinity-filter": ()}


def test_the_parts_of_the_least_cost_are_those_of_the_published_formula() -> None:
    # w = (1.0, 0.2), u = (0.0, 0.64): W = 0.6, so one second of u costs 1 + 2 x 0.6 = 2.2 s; n costs 20 ms each.
    decision = decide(
        view("a:1", backlog_seconds=1.0, requests=4, decoding=3.0),
        view("b:1", backlog_seconds=0.2, requests=2, foreign=3.0),
        warm={"a:1": 10},
    )
    first, second = explain(decision).candidates
    assert first.cost is not None
    assert second.cost is not None
    assert (first.address, second.address) == ("a:1", "b:1")
    assert tuple(first.cost) == pytest.approx((1.0, 0.0, 3, 1.06, 4, 0))
    assert tuple(second.cost) == pytest.approx((0.2, 0.64, 5, 0.2 + 2.2 * 0.64 + 0.1, 2, 3))
    assert (first.hit_tokens, second.hit_tokens) == (640, 0)


def test_a_queue_that_prefill_does_not_explain_is_a_wait_and_does_not_raise_the_price_of_prefill() -> None:
    decision = decide(view("a:1", queue_seconds=10.0, backlog_seconds=1.0), view("b:1", backlog_seconds=0.2))
    first, second = explain(decision).candidates
    assert first.cost is not None
    assert second.cost is not None
    assert (first.address, second.address) == ("b:1", "a:1")
    assert first.cost.cost_seconds == pytest.approx(0.2 + 2.2 * 0.64)
    assert second.cost.cost_seconds == pytest.approx(10.0 + 2.2 * 0.64)


def test_a_profile_without_the_least_cost_scorer_has_no_cost() -> None:
    explanation = explain(decide(view("a:1"), view("b:1"), profile=BLEND))
    assert [each.cost for each in explanation.candidates] == [None, None]
    assert explanation.weights == {"queue-scorer": 2.0, "kv-cache-utilization-scorer": 2.0}


def test_the_explanation_uses_the_coefficients_with_which_the_pick_was_made() -> None:
    scorer = plugin("least-cost-scorer", kappaPerSecond=0, secondsPerRequest=1)
    profile = build(ProfileSpec("mine", (), ((scorer, 1.0),)))
    (only,) = explain(decide(view("a:1", backlog_seconds=3.0, requests=2), profile=profile)).candidates
    assert only.cost is not None
    assert only.cost.cost_seconds == pytest.approx(3.0 + 0.64 + 2.0)


def test_a_pick_without_its_columns_is_explained_as_far_as_it_goes() -> None:
    bare = Pick("r", "b:1", (), 1, 0, 0, "tie", ("a:1", "b:1"), (0.5, 0.5), {"s": (0.5, 0.5)}, 1)
    explanation = explain(bare)
    assert explanation.filters == ()
    assert [tuple(each) for each in explanation.candidates] == [
        ("b:1", 0.5, {"s": 0.5}, None, None),
        ("a:1", 0.5, {"s": 0.5}, None, None),
    ]


@given(
    ends=st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 50), st.integers(0, 10)), min_size=2, max_size=6),
    tokens=st.integers(0, 1 << 20),
)
def test_the_costs_that_are_shown_are_those_that_were_scored(ends: list[tuple[float, int, int]], tokens: int) -> None:
    views = [view(f"e{i}:1", backlog_seconds=wait, requests=n) for i, (wait, n, _) in enumerate(ends)]
    warm = {f"e{i}:1": blocks for i, (_, _, blocks) in enumerate(ends)}
    explanation = explain(decide(*views, warm=warm, tokens=tokens))
    costs = [each.cost.cost_seconds for each in explanation.candidates if each.cost is not None]
    assert len(costs) == len(ends)
    assert [each.scores["least-cost-scorer"] for each in explanation.candidates] == pytest.approx(
        [1 / (1 + cost - min(costs)) for cost in costs]
    )
