"""The section `objectives`: what is read, and what each mistake is answered with."""

from __future__ import annotations

import pytest

from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.difference import differences
from agent.config.nodes import BadConfig
from agent.config.objectives import ObjectiveConfig

HEAD = """apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
pools:
- {name: chat, extProcAddress: '127.0.0.1:9002', endpoints: ['10.0.0.1:8000']}
- {name: code, extProcAddress: '127.0.0.1:9003', endpoints: ['10.0.0.2:8000']}
"""


def read(*entries: str) -> tuple[ObjectiveConfig, ...]:
    return parse(text(*entries), "igw.yaml", VOCABULARY).objectives


def text(*entries: str) -> str:
    return HEAD + "objectives:\n" + "".join(f"- {{{entry}}}\n" for entry in entries)


def test_an_objective_has_a_name_a_priority_and_may_have_models_and_a_pool() -> None:
    assert read("name: high, priority: 10", "name: batch, priority: -1, models: [qwen, llama], pool: code") == (
        ObjectiveConfig("high", 10),
        ObjectiveConfig("batch", -1, ("qwen", "llama"), "code"),
    )


def test_an_objective_may_have_a_wanted_time_to_the_first_token_and_per_output_token() -> None:
    (found,) = read("name: chat, priority: 0, ttft: 500ms, timePerOutputToken: 40ms")
    assert (found.ttft, found.time_per_output_token) == (0.5, 0.04)


def test_pools_may_have_objectives_of_the_same_name() -> None:
    entries = ("name: high, priority: 10, pool: chat, models: [m]", "name: high, priority: 5, pool: code, models: [m]")
    assert [each.priority for each in read(*entries)] == [10, 5]


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (("priority: 1",), ":7: objectives[0].name: missing; write a name, such as batch"),
        (("name: a",), ":7: objectives[0].priority: missing; write a whole number, such as 10"),
        (
            (f"name: a, priority: {2**40}",),
            "1099511627776 is out of range; write a whole number from -2147483648 to 2147483647",
        ),
        (("name: a, priority: 1.5",), "1.5 is out of range"),
        (("name: a, priority: high",), "'high' is not a number"),
        (
            ("name: a, priority: 1, pool: chatt",),
            ":7: objectives[0].pool: there is no pool 'chatt'; did you mean 'chat'?",
        ),
        (("name: a, priority: 1", "name: a, priority: 2"), "objectives[1].name: objectives[0] is an objective 'a'"),
        (("name: a, priority: 1", "name: a, priority: 2, pool: code"), "objectives[1].name: objectives[0] is"),
        (
            ("name: a, priority: 1, models: [m]", "name: b, priority: 2, models: [m]"),
            "objectives[1].models: 'm' has the objective of objectives[0] already; remove it from one of them",
        ),
        (("name: a, priority: 1, model: m",), "unknown key; did you mean 'models'?"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(entries: tuple[str, ...], problem: str) -> None:
    with pytest.raises(BadConfig) as bad:
        read(*entries)
    assert problem in "\n".join(bad.value.lines())


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("trustHeaders: clients", "'clients' is not valid; valid values: gateway, all, none"),
        ("callerHeader: Authorization", "'Authorization' holds a credential, which metrics and /v1/flow would show"),
        ("callerHeader: X-Request-Id", "'X-Request-Id' does not name a caller; write a header that does"),
        ("callerHeader: ':path'", "':path' is not the name of a header; write letters, digits"),
        ("callerHeader: x-tenant, trustHeaders: none", "it has no effect with trustHeaders: none; remove it"),
    ],
)
def test_a_header_that_cannot_name_the_caller_is_refused(section: str, problem: str) -> None:
    with pytest.raises(BadConfig) as bad:
        parse(f"{HEAD}flowControl: {{{section}}}\n", "igw.yaml", VOCABULARY)
    assert problem in "\n".join(bad.value.lines())


def test_the_header_of_the_caller_is_read_in_lower_case_and_only_the_gateway_is_trusted_by_default() -> None:
    flow = parse(f"{HEAD}flowControl: {{callerHeader: X-Tenant}}\n", "igw.yaml", VOCABULARY).flow_control
    assert (flow.trust_headers, flow.caller_header) == ("gateway", "x-tenant")


def test_a_reload_names_the_objectives_that_change() -> None:
    before = parse(text("name: a, priority: 1", "name: b, priority: 2, pool: code"), "igw.yaml", VOCABULARY)
    after = parse(text("name: a, priority: 3", "name: c, priority: 2"), "igw.yaml", VOCABULARY)
    assert differences(before, after) == ["objectives +c -b of code", "objectives[a].priority 1 -> 3"]
