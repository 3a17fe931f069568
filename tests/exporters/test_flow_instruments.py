"""Events of flow control become metrics under the reference's names and ours, in bounded series."""

from __future__ import annotations

import pytest

from agent.events.flow import HELD, DispatchRun, FlowDecided, HeldAtZero, RequestHeld, RequestSubmitted
from agent.flow.outcomes import DIRECT, DISPLACED, EXPIRED, NO_ENDPOINTS, PLANNED, REFUSALS, SHED, STOLEN
from agent.instruments import caller_labels, flow
from agent.instruments.caller_labels import CALLER_NAMES, PRIORITIES
from agent.instruments.flow import FIELD_OUTCOMES
from agent.instruments.hook import Instruments
from tests.fakes.clock import ManualClock
from tests.fakes.known_names import ScriptedNames

QUEUE = "llm_d_epp_flow_control_request_queue_duration_seconds"
FIELD = "llm_d_epp_flow_control_requests_total"


@pytest.fixture
def instruments() -> Instruments:
    made = Instruments(ManualClock())
    made.set_names(ScriptedNames(["m", "n"]))
    return made


def decided(
    outcome: str = PLANNED,
    waited: float = 1.0,
    *,
    caller: str = "a",
    priority: int = 0,
    model: str = "m",
    requested: str = "",
    tokens: int = 10,
) -> FlowDecided:
    return FlowDecided("pool", priority, outcome, waited, caller, model, requested, tokens)


def sample(instruments: Instruments, name: str, **labels: str) -> float | None:
    return instruments.registry.get_sample_value(name, labels)


def label_values(instruments: Instruments, metric: str, label: str) -> set[str]:
    return {
        each.labels[label]
        for family in instruments.registry.collect()
        for each in family.samples
        if each.name.startswith(metric) and label in each.labels
    }


def test_every_outcome_has_a_name_of_the_reference() -> None:
    assert FIELD_OUTCOMES.keys() == {DIRECT, PLANNED, STOLEN, *REFUSALS}


@pytest.mark.parametrize(
    ("outcome", "waited", "theirs"),
    [
        (DIRECT, 0.0, "Dispatched"),
        (STOLEN, 2.0, "Dispatched"),
        (SHED, 0.0, "RejectedCapacity"),
        (DISPLACED, 0.0, "RejectedCapacity"),
        (DISPLACED, 2.0, "EvictedOther"),
        (EXPIRED, 2.0, "EvictedTTL"),
        (NO_ENDPOINTS, 0.0, "RejectedNoEndpoints"),
        (NO_ENDPOINTS, 2.0, "EvictedNoEndpoints"),
    ],
)
def test_an_outcome_is_counted_in_our_word_and_in_the_reference_s(
    instruments: Instruments, outcome: str, waited: float, theirs: str
) -> None:
    instruments(decided(outcome, waited))
    assert sample(instruments, FIELD, outcome=theirs, priority="0", inference_pool="pool") == 1
    assert sample(instruments, "igw_flow_requests_total", pool="pool", priority="0", outcome=outcome) == 1
    labels = {"fairness_id": "a", "priority": "0", "outcome": theirs, "inference_pool": "pool"}
    assert sample(instruments, QUEUE + "_sum", **labels, model_name="m", target_model_name="m") == waited
    waits = sample(instruments, "igw_flow_wait_seconds_count", pool="pool", priority="0", outcome=outcome)
    assert waits == (1 if waited else 0)


def test_dispatched_tokens_are_those_of_dispatched_requests_by_caller(instruments: Instruments) -> None:
    for event in (decided(tokens=7), decided(DIRECT, 0.0, tokens=5), decided(EXPIRED, 60.0, tokens=100)):
        instruments(event)
    labels = {"pool": "pool", "priority": "0", "fairness_id": "a"}
    assert sample(instruments, "igw_flow_dispatched_tokens_total", **labels) == 12


def test_a_caller_that_waits_has_dispatched_tokens_from_0_on(instruments: Instruments) -> None:
    instruments(RequestSubmitted("pool", 0, "a", HELD, 0.0001))
    labels = {"pool": "pool", "priority": "0", "fairness_id": "a"}
    assert sample(instruments, "igw_flow_dispatched_tokens_total", **labels) == 0


def test_the_tokens_of_a_caller_stay_its_own_when_its_model_is_counted_as_other(
    monkeypatch: pytest.MonkeyPatch, instruments: Instruments
) -> None:
    monkeypatch.setattr(flow, "COMBINATIONS", 1)
    instruments(decided(caller="a"))
    instruments(decided(caller="b", tokens=7))
    assert label_values(instruments, QUEUE, "fairness_id") == {"a", "other"}
    labels = {"pool": "pool", "priority": "0", "fairness_id": "b"}
    assert sample(instruments, "igw_flow_dispatched_tokens_total", **labels) == 7


def test_a_request_without_a_caller_is_of_the_default_flow(instruments: Instruments) -> None:
    instruments(decided(caller=""))
    assert label_values(instruments, QUEUE, "fairness_id") == {"default-flow"}


def test_a_rewritten_model_has_both_names(instruments: Instruments) -> None:
    instruments(decided(model="n", requested="m"))
    assert label_values(instruments, QUEUE, "model_name") == {"m"}
    assert label_values(instruments, QUEUE, "target_model_name") == {"n"}


def test_the_steps_of_flow_control_are_timed(instruments: Instruments) -> None:
    instruments(RequestHeld("pool", -1))
    instruments(RequestSubmitted("pool", -1, "a", HELD, 0.0002))
    instruments(RequestSubmitted("pool", -1, "a", SHED, 0.0001))
    instruments(RequestSubmitted("pool", -1, "a", "none_healthy", 0.0001))
    instruments(DispatchRun("pool", 0.003))
    name = "llm_d_epp_flow_control_request_enqueue_duration_seconds_count"
    for outcome in ("NotYetFinalized", "RejectedCapacity", "RejectedOther"):
        assert sample(instruments, name, fairness_id="a", priority="-1", outcome=outcome) == 1
    assert sample(instruments, "llm_d_epp_flow_control_dispatch_cycle_duration_seconds_sum") == 0.003
    assert sample(instruments, "igw_flow_held_total", pool="pool", priority="-1") == 1


def test_a_hundred_thousand_callers_get_a_bounded_number_of_labels_and_declared_ones_keep_theirs(
    instruments: Instruments,
) -> None:
    instruments.declare_callers(["declared"])
    for number in range(100_000):
        instruments(decided(caller=f"caller-{number}"))
    instruments(decided(caller="declared"))
    instruments(decided(caller="x" * 10_000))
    found = label_values(instruments, QUEUE, "fairness_id")
    assert len(found) == CALLER_NAMES + 2  # and `other`
    assert {"declared", "other", "caller-0"} <= found
    assert sample(instruments, FIELD, outcome="Dispatched", priority="0", inference_pool="pool") == 100_002


def test_priorities_are_bounded_too(instruments: Instruments) -> None:
    for number in range(1000):
        instruments(decided(priority=2**40 + number))
        instruments(RequestHeld("pool", 2**40 + number))
    found = label_values(instruments, "igw_flow_requests_total", "priority")
    assert len(found) == PRIORITIES + 1
    assert label_values(instruments, "igw_flow_held_total", "priority") == found


def test_a_model_that_no_server_lists_is_other(instruments: Instruments) -> None:
    for number in range(50):
        instruments(decided(model=f"junk-{number}"))
    assert label_values(instruments, QUEUE, "model_name") == {"other"}


def test_a_model_that_left_gives_its_series_to_a_new_one(
    instruments: Instruments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "MODEL_NAMES", 1)
    instruments = Instruments(ManualClock())
    names = ScriptedNames(["old"])
    instruments.set_names(names)
    instruments(decided(model="old"))
    assert label_values(instruments, QUEUE, "model_name") == {"old"}
    names.models = {"new"}
    instruments(decided(model="new"))
    assert label_values(instruments, QUEUE, "model_name") == {"new"}
    instruments(decided(model="old"))
    assert label_values(instruments, QUEUE, "model_name") == {"new", "other"}


def test_combinations_of_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "COMBINATIONS", 5)
    monkeypatch.setattr(caller_labels, "CALLER_PAIRS", 8)
    instruments = Instruments(ManualClock())
    instruments.set_names(ScriptedNames(["m"]))
    instruments.declare_callers(["declared"])
    for number in range(20):
        for priority in range(3):
            instruments(decided(caller=f"caller-{number}", priority=priority))
            instruments(RequestSubmitted("pool", priority, f"caller-{number}", HELD, 0.001))
    instruments(decided(caller="declared"))
    found = {
        tuple(sorted(each.labels.items()))
        for family in instruments.registry.collect()
        for each in family.samples
        if each.name == QUEUE + "_count"
    }
    assert len(found) <= 5 + 3 + 1
    assert "declared" in label_values(instruments, QUEUE, "fairness_id")
    pairs = {
        (each.labels["fairness_id"], each.labels["priority"])
        for family in instruments.registry.collect()
        for each in family.samples
        if each.name == "llm_d_epp_flow_control_request_enqueue_duration_seconds_count"
    }
    assert len(pairs) <= 8 + 3


def test_the_first_request_that_an_empty_pool_holds_is_counted(instruments: Instruments) -> None:
    instruments(HeldAtZero("pool", 1))
    assert sample(instruments, "igw_flow_held_at_zero_total", pool="pool") == 1
