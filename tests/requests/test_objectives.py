"""The priority of a request: of the objective that it names, else of the one that its model is bound to, else 0."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config.flow_control import MAX_PRIORITY, MIN_PRIORITY
from agent.config.objectives import ObjectiveConfig
from agent.events import Event
from agent.events.exchange import NO_SLO, Slo
from agent.events.objectives import UnknownObjective
from agent.kube.objectives import NO_OBJECTIVES, PoolObjectives
from agent.requests.flow_terms import FlowHeaders, FlowTerms
from agent.requests.objectives import REMEMBERED_NAMES, RequestTerms


def terms_of(
    *declared: ObjectiveConfig, objects: PoolObjectives = NO_OBJECTIVES, events: list[Event] | None = None
) -> RequestTerms:
    terms = RequestTerms("chat", ([] if events is None else events).append)
    terms.set_declared(declared)
    terms.set_objects(objects)
    return terms


def priority(terms: RequestTerms, objective: str = "", model: str = "m") -> int:
    return terms.terms(FlowHeaders(objective), model).priority


def test_the_named_objective_goes_before_that_of_the_model() -> None:
    terms = terms_of(ObjectiveConfig("high", 10), ObjectiveConfig("batch", -1, ("qwen",)))
    assert priority(terms, "high", "qwen") == 10
    assert priority(terms, "", "qwen") == -1
    assert priority(terms, "", "llama") == 0


def test_an_objective_that_does_not_exist_is_priority_0_whatever_the_model() -> None:
    assert priority(terms_of(ObjectiveConfig("high", 10, ("qwen",))), "hihg", "qwen") == 0


def test_the_other_terms_are_those_of_the_headers() -> None:
    headers = FlowHeaders("high", "team-a", 30.0, 0.5)
    assert terms_of(ObjectiveConfig("high", 10)).terms(headers, "m") == FlowTerms(10, "team-a", 30.0, 0.5, Slo(0.5))


def test_what_a_response_is_measured_against_is_of_the_headers_else_of_the_objective_else_of_the_model() -> None:
    terms = terms_of(
        ObjectiveConfig("high", 10, ttft=0.5, time_per_output_token=0.04),
        ObjectiveConfig("batch", -1, ("qwen",), ttft=30.0),
        objects=PoolObjectives({"high": 1}, (), {"llama": "high"}),
    )

    def slo(headers: FlowHeaders, model: str = "m") -> Slo:
        return terms.terms(headers, model).slo

    assert slo(FlowHeaders("high")) == Slo(0.5, 0.04)
    assert slo(FlowHeaders("high", ttft_seconds=2.0)) == Slo(2.0, 0.04)
    assert slo(FlowHeaders("high", tpot_seconds=0.1)) == Slo(0.5, 0.1)
    assert slo(FlowHeaders(), "qwen") == Slo(30.0)
    assert slo(FlowHeaders(), "llama") == Slo(0.5, 0.04)  # bound by the object to an objective of the configuration
    assert slo(FlowHeaders("unknown"), "qwen") == slo(FlowHeaders()) == NO_SLO


def test_the_wanted_times_of_the_configuration_do_not_change_the_order() -> None:
    terms = terms_of(ObjectiveConfig("high", 10, ttft=0.5))
    assert terms.terms(FlowHeaders("high"), "m").ttft_seconds is None


def test_objects_have_objectives_too() -> None:
    terms = terms_of(objects=PoolObjectives({"batch": -1, "high": 10}, (), {"qwen": "batch"}))
    assert [priority(terms, "high"), priority(terms, "", "qwen")] == [10, -1]


def test_the_configuration_goes_before_an_object_of_the_same_name() -> None:
    objects = PoolObjectives({"batch": -1}, (), {"qwen": "batch"})
    terms = terms_of(ObjectiveConfig("batch", -7), objects=objects)
    assert priority(terms, "batch") == -7
    assert priority(terms, "", "qwen") == -7  # the object still says which model it is for


def test_the_configuration_goes_before_an_object_that_binds_the_same_model() -> None:
    terms = terms_of(
        ObjectiveConfig("high", 10, ("qwen",)), objects=PoolObjectives({"batch": -1}, (), {"qwen": "batch"})
    )
    assert priority(terms, "", "qwen") == 10
    terms.set_declared([])
    assert priority(terms, "", "qwen") == -1


def test_objectives_of_another_pool_do_not_exist_here() -> None:
    terms = terms_of(ObjectiveConfig("high", 10, ("qwen",), pool="other"), ObjectiveConfig("low", -1, pool="chat"))
    assert [priority(terms, "high"), priority(terms, "", "qwen"), priority(terms, "low")] == [0, 0, -1]


def test_objectives_that_are_replaced_apply_to_the_next_request() -> None:
    terms = terms_of(ObjectiveConfig("high", 10))
    terms.set_declared([ObjectiveConfig("high", 3)])
    terms.set_objects(PoolObjectives({"low": -2}))
    assert [priority(terms, "high"), priority(terms, "low")] == [3, -2]
    terms.set_objects(NO_OBJECTIVES)
    assert priority(terms, "low") == 0


def test_an_unknown_objective_is_reported_at_each_request_and_named_once() -> None:
    events: list[Event] = []
    terms = terms_of(ObjectiveConfig("high", 10), events=events)
    for name in ("typo", "typo", "", "high", "other"):
        terms.check(FlowHeaders(name))
    assert events == [
        UnknownObjective("chat", "typo", first=True),
        UnknownObjective("chat", "typo", first=False),
        UnknownObjective("chat", "other", first=True),
    ]


def test_names_that_a_client_invents_are_remembered_up_to_a_bound() -> None:
    events: list[Event] = []
    terms = terms_of(events=events)
    for number in range(100_000):
        terms.check(FlowHeaders(f"objective-{number}"))
    unknown = [event for event in events if isinstance(event, UnknownObjective)]
    assert len(unknown) == 100_000
    assert [event.first for event in unknown].count(True) == REMEMBERED_NAMES
    assert [event.objective for event in unknown if event.last_named] == [f"objective-{REMEMBERED_NAMES - 1}"]


def test_an_objective_that_existed_meanwhile_is_named_again() -> None:
    events: list[Event] = []
    terms = terms_of(events=events)
    terms.check(FlowHeaders("late"))
    terms.set_declared([ObjectiveConfig("late", 1)])
    terms.check(FlowHeaders("late"))
    terms.set_declared([])
    terms.check(FlowHeaders("late"))
    assert events == [UnknownObjective("chat", "late", first=True)] * 2


names = st.sampled_from(["a", "b", "c", "d", ""])
numbers = st.integers(MIN_PRIORITY, MAX_PRIORITY)
pools, models = st.sampled_from(["", "chat", "other"]), st.lists(names, max_size=2).map(tuple)
declared = st.builds(ObjectiveConfig, names, numbers, models, pools)
objects = st.builds(PoolObjectives, st.dictionaries(names, numbers), st.just(()), st.dictionaries(names, names))


@given(st.lists(declared, max_size=5), objects, names, names)
def test_any_priority_is_one_of_those_that_apply_to_the_pool(
    ours: list[ObjectiveConfig], theirs: PoolObjectives, objective: str, model: str
) -> None:
    terms = terms_of(*ours, objects=theirs)
    of_pool = [each for each in ours if each.pool in ("", "chat")]
    possible = {0, *(each.priority for each in of_pool), *theirs.priorities.values()}
    found = priority(terms, objective, model)
    assert found in possible
    if objective:
        same = [each.priority for each in of_pool if each.name == objective]
        assert found == (same[-1] if same else theirs.priorities.get(objective, 0))
    elif not any(model in each.models for each in of_pool) and model not in theirs.models:
        assert found == 0


@pytest.mark.parametrize("priority_", [MIN_PRIORITY, MAX_PRIORITY])
def test_the_range_is_that_of_an_inference_objective(priority_: int) -> None:
    assert priority(terms_of(ObjectiveConfig("edge", priority_)), "edge") == priority_
