"""Requests by model: counted under bounded labels, and the gauge of running requests never drifts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.events.exchange import NO_SLO, Exchange, Slo, TokenUsage
from agent.instruments import request_series
from agent.instruments.caller_labels import CALLER_NAMES, CallerLabels
from agent.instruments.event_metrics import EventMetrics
from agent.instruments.request_series import (
    COMBINATIONS,
    MODEL_NAMES,
    REWRITTEN_PAIRS,
    UNPINNED_MODEL_NAMES,
    RequestNames,
    RequestSeries,
)
from tests.fakes.known_names import ScriptedNames


@pytest.fixture
def few_names(monkeypatch: pytest.MonkeyPatch) -> int:
    """A small limit of listed names."""
    monkeypatch.setattr(request_series, "MODEL_NAMES", 10)
    return 10


class Counted:
    """Model series of pools whose names the test sets."""

    def __init__(self, *listed: str) -> None:
        self.metrics = EventMetrics()
        self.names = ScriptedNames(listed)
        self.callers = CallerLabels()
        self.series = RequestSeries(self.metrics, lambda: self.names, self.callers)

    def picked(self, model: str, target: str = "", caller: str = "", priority: int = 0) -> None:
        self.series.picked("pool", RequestNames(model, target or model, caller, priority))

    def ended(self, model: str, target: str = "", caller: str = "", priority: int = 0) -> None:
        self.series.ended("pool", RequestNames(model, target or model, caller, priority), 1.0)

    def refused(self, model: str, pool: str = "pool") -> None:
        self.series.refused(pool, RequestNames(model, model), "NotFound")

    def completed(
        self, exchange: Exchange | None, result: str = "ok", status: int = 200, caller: str = "", slo: Slo = NO_SLO
    ) -> None:
        self.series.completed("pool", RequestNames("m", "m", caller), result, status, exchange, slo)

    def of(
        self, metric: str, model: str, target: str = "", caller: str = "default-flow", priority: str = "0", **more: str
    ) -> float | None:
        labels = {"model_name": model, "target_model_name": target or model}
        return self.metrics.registry.get_sample_value(
            metric, {**labels, "fairness_id": caller, "priority": priority, **more}
        )

    def running(self, model: str, target: str = "") -> float | None:
        return self.of("llm_d_epp_request_running", model, target)

    def series_of(self, model: str) -> set[str]:
        """The names of the samples that have this model as a label."""
        return {
            sample.name
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.labels.get("model_name") == model
        }

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
        counted.refused(f"nor-this-{number}")
    counted.picked("real")
    assert counted.labels() == {("other", "other"), ("real", "real")}
    assert counted.of("llm_d_epp_request_total", "other") == 2 * (MODEL_NAMES + 1)


def test_a_pool_without_a_list_has_labels_for_its_first_names_and_a_pool_with_one_takes_none_of_them() -> None:
    counted = Counted()
    for number in range(1000):
        counted.refused(f"junk-{number}")
    for number in range(1000):
        counted.refused(f"model-{number}", "silent")
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
        counted.refused(str(number))
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


STREAM = Exchange(2.0, 0.5, 1.9, 1_000, 5_000, True, TokenUsage(100, 15, 64))
TTFT = "llm_d_epp_request_ttft_seconds_sum"


def test_a_stream_counts_the_first_token_the_time_per_token_and_all_sizes() -> None:
    counted = Counted("m")
    counted.completed(STREAM)
    assert counted.of(TTFT, "m", streaming="true") == 0.5
    assert counted.of("llm_d_epp_request_streaming_tpot_seconds_sum", "m") == pytest.approx((1.9 - 0.5) / 14)
    assert counted.of("llm_d_epp_request_ntpot_seconds_sum", "m") == pytest.approx(2.0 / 15)
    sums = {"request_size_bytes": 1_000, "response_size_bytes": 5_000, "request_input_tokens": 100}
    for name, expected in {**sums, "request_output_tokens": 15, "request_cached_tokens": 64}.items():
        assert counted.of(f"llm_d_epp_{name}_sum", "m") == expected
    assert counted.of("igw_request_results_total", "m", code="200", result="ok") == 1


def test_a_whole_response_has_a_first_byte_and_no_time_per_token() -> None:
    counted = Counted("m")
    counted.completed(STREAM._replace(streamed=False))
    assert counted.of(TTFT, "m", streaming="false") == 0.5
    assert counted.of("llm_d_epp_request_streaming_tpot_seconds_count", "m") == 0


def test_what_a_response_does_not_say_is_not_counted_as_zero() -> None:
    counted = Counted("m")
    counted.completed(STREAM._replace(usage=TokenUsage(), first_token=None))
    counted.completed(None)
    assert counted.of("llm_d_epp_request_input_tokens_count", "m") == 0
    assert counted.of("llm_d_epp_request_output_tokens_count", "m") == 0
    assert counted.of("llm_d_epp_request_ttft_seconds_count", "m", streaming="true") == 0
    assert counted.of("igw_responses_without_usage_total", "m") == 1
    assert counted.of("igw_request_results_total", "m", code="200", result="ok") == 2


def test_a_failed_request_has_its_code_and_result_and_a_broken_stream_its_first_token() -> None:
    counted = Counted("m")
    counted.completed(STREAM._replace(usage=TokenUsage()), "reset", 200)
    counted.completed(STREAM, "server_error", 500)
    counted.completed(STREAM, "client_left", 0)
    for code, result in (("200", "reset"), ("500", "server_error"), ("0", "client_left")):
        assert counted.of("igw_request_results_total", "m", code=code, result=result) == 1
    assert counted.of("llm_d_epp_request_ttft_seconds_count", "m", streaming="true") == 1
    assert counted.of("llm_d_epp_request_output_tokens_count", "m") == 0
    assert counted.of("igw_responses_without_usage_total", "m") == 0


def test_objectives_are_counted_with_all_results_from_zero_and_goodput_is_what_met_all() -> None:
    counted = Counted("m")
    both = Slo(0.5, 0.1)
    counted.completed(STREAM, slo=both)
    counted.completed(STREAM, slo=Slo(0.5, 0.01))
    counted.completed(STREAM._replace(usage=TokenUsage()), slo=both)
    counted.completed(None, "server_error", 500, slo=both)
    counted.completed(None, "client_left", 0, slo=both)
    counted.series.refused("pool", RequestNames("m", "m"), "ResourceExhausted", both)
    expected = {"ttft": {"met": 3, "missed": 2, "unknown": 0}, "tpot": {"met": 1, "missed": 3, "unknown": 1}}
    for objective, results in expected.items():
        for result, count in results.items():
            name = "igw_slo_requests_total"
            assert counted.of(name, "m", objective=objective, result=result) == count, (objective, result)
    assert counted.of("igw_goodput_requests_total", "m") == 1
    assert counted.of("igw_goodput_output_tokens_total", "m") == 15


def test_a_request_without_an_objective_has_no_series_of_objectives() -> None:
    counted = Counted("m")
    counted.completed(STREAM)
    counted.completed(STREAM, slo=Slo())
    assert counted.of("igw_slo_requests_total", "m", objective="ttft", result="met") is None
    assert counted.of("igw_goodput_requests_total", "m") is None


def test_callers_and_priorities_are_labels_and_those_of_strangers_are_bounded() -> None:
    counted = Counted("m")
    counted.callers.declare(["declared"])
    for number in range(1000):
        counted.picked("m", caller=f"stranger-{number}", priority=number % 3)
    counted.picked("m", caller="declared", priority=7)
    assert counted.of("llm_d_epp_request_total", "m", caller="stranger-0") == 1
    assert counted.of("llm_d_epp_request_total", "m", caller="declared", priority="7") == 1
    callers = {
        sample.labels["fairness_id"]
        for family in counted.metrics.registry.collect()
        if family.name == "llm_d_epp_request"
        for sample in family.samples
    }
    assert len(callers) <= CALLER_NAMES + 3
    total = sum(
        sample.value
        for family in counted.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "llm_d_epp_request_total"
    )
    assert total == 1001


def test_many_models_of_many_callers_have_a_bounded_number_of_series() -> None:
    counted = Counted(*(f"m{number}" for number in range(40)))
    for number in range(4000):
        counted.picked(f"m{number % 40}", caller=f"c{number % 90}", priority=number % 2)
    assert len(counted.series._series) <= COMBINATIONS + 40


def test_the_series_of_a_model_that_is_gone_are_all_removed(few_names: int) -> None:
    counted = Counted("m", *map(str, range(few_names - 1)))
    counted.completed(STREAM, slo=Slo(0.5, 0.1))
    for number in range(few_names - 1):
        counted.picked(str(number))
    before = counted.series_of("m")
    assert {"llm_d_epp_request_ttft_seconds_count", "igw_request_results_total", "igw_slo_requests_total"} <= before
    counted.names.models = {f"new-{number}" for number in range(few_names)}
    for number in range(few_names):  # each needs a place; those of names that are gone are freed
        counted.refused(f"new-{number}")
    assert counted.series_of("m") == set()
