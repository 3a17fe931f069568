"""The headers by which a request says how it is served when requests wait: what is read, and what is not used."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.requests.control_headers import CONTROL, CONTROL_HEADERS, TERMS
from agent.requests.flow_headers import (
    CALLER_LENGTH,
    NOTHING_READ,
    OBJECTIVE_LENGTH,
    REASONS,
    FlowHeaderRules,
    IgnoredHeader,
    duration_seconds,
    read_flow_headers,
)
from agent.requests.flow_terms import NO_FLOW_HEADERS, FlowHeaders

RULES = FlowHeaderRules()
OBJECTIVE = "x-llm-d-inference-objective"
FAIRNESS = "x-llm-d-inference-fairness-id"
TTL = "x-llm-d-inference-ttl"
TTFT = "x-llm-d-slo-ttft-ms"
TPOT = "x-llm-d-slo-tpot-ms"


def read(headers: dict[str, str], rules: FlowHeaderRules = RULES) -> FlowHeaders:
    """The headers, where none of them is ignored."""
    found = read_flow_headers(headers, rules)
    assert found.ignored == ()
    return found.headers


def ignored(name: str, value: str, rules: FlowHeaderRules = RULES) -> str:
    """The reason for which the value of the one header is not used."""
    found = read_flow_headers({name: value}, rules)
    assert found.headers == NO_FLOW_HEADERS
    ((_, reason),) = found.ignored
    return reason


def test_each_header_is_read() -> None:
    headers = {OBJECTIVE: "chat", FAIRNESS: "team-a", TTL: "1m30s", TTFT: "250"}
    assert read(headers) == FlowHeaders("chat", "team-a", 90.0, 0.25)


def test_the_former_names_are_read() -> None:
    headers = {
        "x-gateway-inference-objective": "chat",
        "x-gateway-inference-fairness-id": "team-a",
        "x-slo-ttft-ms": "2000",
        "x-slo-tpot-ms": "40",
    }
    assert read(headers) == FlowHeaders("chat", "team-a", None, 2.0, 0.04)


def test_the_present_name_goes_before_the_former_one() -> None:
    headers = {OBJECTIVE: "new", "x-gateway-inference-objective": "old", FAIRNESS: "", TTFT: "1"}
    headers |= {"x-gateway-inference-fairness-id": "old", "x-slo-ttft-ms": "9"}
    assert read(headers) == FlowHeaders("new", "old", None, 0.001)


def test_the_configured_header_names_the_caller_where_no_fairness_id_does() -> None:
    rules = FlowHeaderRules(caller_header="x-tenant")
    assert read({"x-tenant": "team-b"}, rules).caller == "team-b"
    assert read({"x-tenant": "team-b", FAIRNESS: "team-a"}, rules).caller == "team-a"
    assert read({"x-tenant": "team-b"}).caller == ""


def test_headers_that_are_not_believed_are_not_read() -> None:
    rules = FlowHeaderRules(believed=False, caller_header="x-tenant")
    headers = {OBJECTIVE: "x" * 10_000, FAIRNESS: "team-a", TTL: "nan", TTFT: "250", "x-tenant": "team-b"}
    assert read_flow_headers(headers, rules, (OBJECTIVE,)) is NOTHING_READ


def test_a_request_without_such_headers_gets_the_shared_value() -> None:
    headers = {"content-type": "application/json", OBJECTIVE: ""}
    assert read_flow_headers(headers, RULES).headers is NO_FLOW_HEADERS


def test_a_caller_may_have_a_name_in_any_script() -> None:
    sent = "équipe-数".encode().decode("latin-1")
    assert read({FAIRNESS: sent}).caller == "équipe-数"
    assert read({FAIRNESS: "caf\xe9"}).caller == "café"  # a client that sends Latin-1


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (OBJECTIVE, "x" * 10_000, "too_long"),
        (OBJECTIVE, "x" * (OBJECTIVE_LENGTH + 1), "too_long"),
        (FAIRNESS, "x" * (CALLER_LENGTH + 1), "too_long"),
        (OBJECTIVE, "chat\tbatch", "not_printable"),
        (FAIRNESS, "a\x1b[2J", "not_printable"),
        (TTL, "30", "not_a_duration"),
        (TTL, "soon", "not_a_duration"),
        (TTL, "NaN", "not_a_duration"),
        (TTL, "infs", "not_a_duration"),
        (TTL, "1s2", "not_a_duration"),
        (TTL, "9" * 10_000 + "s", "not_a_duration"),
        (TTL, "0", "not_positive"),
        (TTL, "0s", "not_positive"),
        (TTL, "-5s", "not_positive"),
        (TPOT, "0", "not_positive"),
        (TPOT, "fast", "not_a_number"),
        (TTFT, "0", "not_positive"),
        (TTFT, "-100", "not_positive"),
        (TTFT, "nan", "not_a_number"),
        (TTFT, "1e3", "not_a_number"),
        (TTFT, "200ms", "not_a_number"),
        (TTFT, "9" * 400, "not_a_number"),
    ],
)
def test_a_value_that_cannot_be_used_counts_as_absent_with_the_reason(name: str, value: str, reason: str) -> None:
    assert ignored(name, value) == reason
    assert reason in REASONS


def test_a_value_that_cannot_be_used_takes_no_other_header_with_it() -> None:
    found = read_flow_headers({OBJECTIVE: "chat", TTL: "0s", FAIRNESS: "a\x00", TTFT: "-1"}, RULES)
    assert found.headers == FlowHeaders("chat")
    assert found.ignored == (
        IgnoredHeader(FAIRNESS, "not_printable"),
        IgnoredHeader(TTL, "not_positive"),
        IgnoredHeader(TTFT, "not_positive"),
    )


def test_a_repeated_header_is_counted_and_its_last_value_used() -> None:
    rules = FlowHeaderRules(caller_header="x-tenant")
    repeated = ("x-gateway-inference-objective", "x-tenant", "accept", "x-llm-d-model-name-rewrite")
    found = read_flow_headers({"x-gateway-inference-objective": "last", "x-tenant": "b"}, rules, repeated)
    assert found.headers == FlowHeaders("last", "b")
    assert found.ignored == (IgnoredHeader(OBJECTIVE, "repeated"), IgnoredHeader("x-tenant", "repeated"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1.s", 1.0), ("1.5h", 5400.0), ("500ms", 0.5), ("2m.5s", 120.5), ("+3s", 3.0), ("1us", 1e-6), ("-1m", -60.0)],
)
def test_durations_are_those_of_go(text: str, seconds: float) -> None:
    assert duration_seconds(text) == pytest.approx(seconds)


@given(headers=st.dictionaries(st.sampled_from([*TERMS, "x-tenant", "accept"]), st.text(max_size=400)))
def test_no_text_fails_and_what_is_read_can_be_used(headers: dict[str, str]) -> None:
    found, problems = read_flow_headers(headers, FlowHeaderRules(caller_header="x-tenant"))
    assert len(found.objective) <= OBJECTIVE_LENGTH
    assert len(found.caller) <= CALLER_LENGTH
    assert (found.objective + found.caller).isprintable()
    for seconds in (found.ttl_seconds, found.ttft_seconds):
        assert seconds is None or (math.isfinite(seconds) and seconds > 0)
    for name, reason in problems:
        assert name in {*TERMS, "x-tenant"}
        assert reason in REASONS


signs, units = st.sampled_from(["", "-", "+"]), st.sampled_from(["", "s", "ms", "h", "us", "x"])
quantities = st.builds("{}{}{}".format, signs, st.text("0123456789.", max_size=12), units)


@given(text=quantities | st.text("0123456789.smhnu-+eNaInf", max_size=40))
def test_any_quantity_is_a_positive_time_or_has_a_reason(text: str) -> None:
    for name in (TTL, TTFT):
        found, problems = read_flow_headers({name: text}, RULES)
        value = found.ttl_seconds if name == TTL else found.ttft_seconds
        assert (value is not None) + len(problems) == (1 if text else 0)
        assert value is None or 0 < value < math.inf


@given(milliseconds=st.integers(1, 10**12))
def test_a_whole_number_of_milliseconds_is_read_exactly(milliseconds: int) -> None:
    found = read({TTFT: str(milliseconds), TTL: f"{milliseconds}ms"})
    assert found.ttft_seconds == milliseconds / 1000
    assert found.ttl_seconds == pytest.approx(milliseconds / 1000)


def test_each_control_header_is_in_the_table_once_and_in_lower_case() -> None:
    names = [name for header in CONTROL_HEADERS for name in (header.name, header.former) if name]
    assert sorted(names) == sorted(CONTROL)
    assert all(name == name.lower() for name in names)
    assert set(TERMS) < CONTROL
