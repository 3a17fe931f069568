"""Requests by model: counted under bounded labels, and the gauge of running requests never drifts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.instruments import model_series
from agent.instruments.event_metrics import EventMetrics
from agent.instruments.model_series import (
    FAIRNESS_ID,
    MODEL_NAMES,
    PRIORITY,
    REWRITTEN_PAIRS,
    UNPINNED_MODEL_NAMES,
    ModelSeries,
)
from tests.fakes.known_names import ScriptedNames


@pytest.fixture
def few_names(monkeypatch: pytest.MonkeyPatch) -> int:
    """A small limit of listed names."""
    monkeypatch.setattr(model_series, "MODEL_NAMES", 10)
    return 10


class Counted:
    """Model series of pools whose names the test sets."""

    def __init__(self, *listed: str) -> None:
        self.metrics = EventMetrics()
        self.names = ScriptedNames(listed)
        self.series = ModelSeries(self.metrics, lambda: self.names)

    def picked(self, model: str, target: str = "") -> None:
        self.series.picked("pool", model, target or model)

    def ended(self, model: str, target: str = "") -> None:
        self.series.ended("pool", model, target or model, 1.0)

    def of(self, metric: str, model: str, target: str = "") -> float | None:
        labels = {"model_name": model, "target_model_name": target or model}
        return self.metrics.registry.get_sample_value(
            metric, {**labels, "fairness_id": FAIRNESS_ID, "priority": PRIORITY}
        )

    def running(self, model: str, target: str = "") -> float | None:
        return self.of("llm_d_epp_request_running", model, target)

    def labels(self) -> set[tuple[str, str]]:
        return {
            (sample.labels["model_name"], sample.labels["target_model_name"])
            for family in self.metrics.registry.collect()
            if family.name == "llm_d_epp_request"
            for sample in family.samples
            if sample.name == "llm_d_epp_request_total"
        }


def test_a_request_that_began_before_its_model_was_listed_ends_under_the_label_that_it_began_with() -> None:
    counted = Counted()
    counted.picked("adapter")
    counted.names.models = {"adapter"}
    counted.picked("adapter")
    assert (counted.running("other"), counted.running("adapter")) == (1, 1)
    counted.ended("adapter")
    counted.ended("adapter")
    assert (counted.running("other"), counted.running("adapter")) == (0, 0)


def test_junk_names_share_one_pair_of_labels_in_a_pool_that_lists_its_models() -> None:
    counted = Counted("real")
    for number in range(MODEL_NAMES + 1):
        counted.picked(f"no-such-{number}")
        counted.series.refused("pool", f"nor-this-{number}", f"nor-this-{number}", "NotFound")
    counted.picked("real")
    assert counted.labels() == {("other", "other"), ("real", "real")}
    assert counted.of("llm_d_epp_request_total", "other") == 2 * (MODEL_NAMES + 1)


def test_a_pool_without_a_list_has_labels_for_its_first_names_and_a_pool_with_one_takes_none_of_them() -> None:
    counted = Counted()
    for number in range(1000):
        counted.series.refused("pool", f"junk-{number}", f"junk-{number}", "NotFound")
    for number in range(1000):
        counted.series.refused("silent", f"model-{number}", f"model-{number}", "NotFound")
    expected = {(f"model-{number}", f"model-{number}") for number in range(UNPINNED_MODEL_NAMES)}
    assert counted.labels() == expected | {("other", "other")}


def test_a_declared_name_is_counted_under_its_own_label_after_as_many_others_as_there_may_be(few_names: int) -> None:
    counted = Counted(*map(str, range(few_names)))
    counted.series.declare(["declared"])
    for number in range(few_names):
        counted.picked(str(number))
    counted.picked("declared")
    assert counted.running("declared") == 1


def test_the_series_of_a_name_that_is_gone_are_removed_when_a_new_one_needs_the_place_but_not_while_it_runs(
    few_names: int,
) -> None:
    counted = Counted(*map(str, range(few_names)))
    for number in range(few_names):
        counted.picked(str(number))
        if number:
            counted.ended(str(number))
        counted.series.refused("pool", str(number), str(number), "NotFound")
    counted.names.models -= {"0", "1"}
    counted.names.models |= {"new", "newer"}
    counted.picked("new")
    assert counted.running("new") == 1
    assert counted.running("0") == 1
    assert counted.running("1") is None
    assert not any(
        sample.labels.get("model_name") == "1"
        for family in counted.metrics.registry.collect()
        for sample in family.samples
    )
    counted.ended("0")
    counted.picked("newer")
    while counted.running("newer") is None:  # a few places are examined at each new name
        counted.picked("newer")
    assert counted.running("0") is None


def test_a_rewritten_model_is_counted_by_what_was_requested_and_what_serves_it() -> None:
    counted = Counted("base", "canary")
    counted.picked("base", "canary")
    counted.picked("alias", "canary")
    assert counted.labels() == {("base", "canary"), ("other", "canary")}


def test_the_number_of_rewritten_pairs_is_bounded() -> None:
    counted = Counted(*(f"{kind}{number}" for kind in "mt" for number in range(30)))
    for model in range(30):
        for target in range(30):
            counted.picked(f"m{model}", f"t{target}")
    pairs = {labels for labels in counted.labels() if labels[0] != "other"}
    assert len(pairs) == REWRITTEN_PAIRS
    assert len(counted.labels()) <= REWRITTEN_PAIRS + 30


events = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["pick", "end"]), st.sampled_from("abc"), st.sampled_from("abc")),
        st.tuples(st.just("list"), st.frozensets(st.sampled_from("abc"))),
    )
)


@given(script=events)
def test_however_lists_change_the_running_requests_add_up_and_none_is_negative(
    script: list[tuple[object, ...]],
) -> None:
    counted = Counted()
    in_flight: Counter[tuple[str, str]] = Counter()
    for what, *arguments in script:
        if what == "list":
            counted.names.models = set(arguments[0])  # type: ignore[call-overload]
            continue
        model, target = map(str, arguments)
        if what == "pick":
            counted.picked(model, target)
            in_flight[model, target] += 1
        elif in_flight[model, target]:
            counted.ended(model, target)
            in_flight[model, target] -= 1
        shown = [
            sample.value
            for family in counted.metrics.registry.collect()
            if family.name == "llm_d_epp_request_running"
            for sample in family.samples
        ]
        assert sum(shown) == in_flight.total()
        assert all(value >= 0 for value in shown)
