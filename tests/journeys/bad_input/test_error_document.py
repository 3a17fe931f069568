"""docs/reference/errors.md has exactly the reasons and codes of the code."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.accelerators.faults import FAULTS
from agent.clock import SystemClock
from agent.engines.table import REFUSALS
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, bootstrap
from agent.flow.outcomes import CANCELLED
from agent.flow.outcomes import REFUSALS as FLOW_REFUSALS
from agent.instruments.hook import Instruments
from agent.requests.rejections import REJECTIONS
from agent.requests.response import RESULTS
from agent.scrape.reasons import REASONS
from agent.state.health import HEALTH_REASONS, evaluate
from agent.state.outliers import EJECTION_REASONS
from exporters.catalog import CATALOG

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")


def documented(heading: str, column: str) -> list[list[str]]:
    """The cells of each row of the table in this section whose first column has the name `column`."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = section[section.index(f"\n| {column} |") + 1 :].split("\n\n")[0]
    return [[cell.strip(" `") for cell in row.strip("|").split(" | ")] for row in table.splitlines()[2:]]


def first(heading: str, column: str = "reason") -> list[str]:
    return [row[0] for row in documented(heading, column)]


def calls(path: str, *names: str) -> Iterator[list[object]]:
    """The arguments of each call of these functions in a file; None for an argument that is not a constant."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in names:
                yield [argument.value if isinstance(argument, ast.Constant) else None for argument in node.args]


def refusals() -> set[tuple[str, str]]:
    """Reason and status of each rejection of the agent."""
    return {(reason, str(row.status)) for reason, row in REJECTIONS.items()}


def rejected() -> set[str]:
    """The reasons with which the code rejects requests."""
    found = {arguments[0] for arguments in calls("agent/serve/ext_proc/session.py", "Rejection")}
    found |= {arguments[0] for arguments in calls("agent/requests/body.py", "BodyRefused")}
    found |= {arguments[1] for arguments in calls("agent/pick/picker.py", "NoPick")}
    found |= {reason for reason in FLOW_REFUSALS if reason != CANCELLED}  # to a client that has left nothing is sent
    return {str(reason) for reason in found}


def codes(data: object) -> Iterator[str]:
    """The codes of all errors in a rendered configuration."""
    if isinstance(data, dict):
        if "json_format" in data:
            yield data["json_format"]["error"]["code"]
        for value in data.values():
            yield from codes(value)
    elif isinstance(data, list):
        for value in data:
            yield from codes(value)


def test_every_reason_of_a_failed_scrape_is_documented() -> None:
    assert first("A model server cannot be scraped") == list(REASONS)


def test_every_reason_of_health_is_documented() -> None:
    beside = {evaluate(9.0, None, 0, "", 1.0).reason, evaluate(9.0, 0.0, 0, "", 1.0).reason, *FAULTS}
    assert set(first("A model server cannot be scraped", "reason beside health")) == beside


def test_every_reason_of_a_health_path_is_documented() -> None:
    assert first("A model server cannot be scraped", "reason of the health path") == list(HEALTH_REASONS)


def test_every_result_of_a_response_is_documented_with_whether_it_is_a_failure() -> None:
    rows = documented("The requests of an endpoint fail", "result")
    assert [(row[0], row[1] == "yes", row[2]) for row in rows] == [
        (name, row.failure, row.meaning) for name, row in RESULTS.items()
    ]


def test_every_reason_of_an_ejection_is_documented() -> None:
    rows = documented("The requests of an endpoint fail", "reason of an ejection")
    assert {row[0]: row[1] for row in rows} == EJECTION_REASONS


def test_every_reason_to_refuse_a_value_is_documented() -> None:
    assert first("A value is refused") == list(REFUSALS)


def test_every_refusal_is_documented_with_its_status() -> None:
    assert {(row[0], row[1]) for row in documented("A request is rejected", "reason")} == refusals()


def test_the_table_of_rejections_has_exactly_the_reasons_that_are_used() -> None:
    assert rejected() == set(REJECTIONS)


def test_every_error_that_the_rendered_envoy_returns_is_documented() -> None:
    settings = EnvoyConfig(
        (EnvoyPool("pool", ("127.0.0.1:1",), "127.0.0.1:2"),), (EnvoyListener("in", "127.0.0.1:0", "pool"),)
    )
    rendered = json.loads(json.dumps(bootstrap(settings)))
    assert set(first("A request is rejected", "`code` from Envoy")) == set(codes(rendered))


def test_every_reason_of_a_failed_stream_is_documented() -> None:
    broken = {arguments[0] for arguments in calls("agent/serve/ext_proc/session.py", "ProtocolViolation")}
    broken |= {arguments[0] for arguments in calls("agent/serve/ext_proc/server.py", "_fail")}
    broken |= {arguments[1] for arguments in calls("agent/serve/ext_proc/server.py", "StreamBroken") if arguments[1]}
    assert set(first("An ext_proc stream fails")) == broken


def test_every_reason_to_disconnect_a_reader_is_documented() -> None:
    registry = Instruments(SystemClock()).registry
    found = {
        sample.labels["reason"]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "igw_watchers_dropped_total"
    }
    assert set(first("A reader of the admin address is disconnected")) == found


def test_every_error_of_the_admin_address_is_documented() -> None:
    files = [path for part in ("http", "admin", "state") for path in (ROOT / "agent/serve" / part).glob("*.py")]
    found = {tuple(arguments[:2]) for path in files for arguments in calls(str(path), "HttpError")}
    rows = documented("A request to the admin address is refused", "`code`")
    assert {(row[0], row[1]) for row in rows} == {(code, str(status or "4xx")) for status, code in found}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\b(?:igw|llm_d_epp)_\w+", TEXT))))
def test_every_metric_in_the_document_exists_with_these_labels(name: str) -> None:
    assert name in CATALOG
    for labels in re.findall(rf"{name}\{{([^}}]*)\}}", TEXT):
        assert {label.partition("=")[0] for label in labels.split(",")} <= set(CATALOG[name].labels)
