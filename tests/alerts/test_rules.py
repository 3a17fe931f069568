"""The alert rules are valid, have all their tests and runbooks, and select only metrics that exist."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml

from agent.config.admin import AdminConfig
from agent.instruments.hook import Instruments
from agent.serve.admin.server import AdminServer
from alerts.render import text
from exporters.catalog import ALIASES, CATALOG
from tests.fakes.clock import ManualClock
from tests.promql import family, labels, metrics

ALERTS = Path(__file__).resolve().parents[2] / "alerts"
RULES = ALERTS / "igw.rules.yaml"
TESTS = ALERTS / "igw.test.yaml"
DOCUMENT = ALERTS.parent / "docs" / "reference" / "alerts.md"
KINDS = ("firing", "silent", "absent")
SEVERITIES = {"critical", "warning", "info"}


class Case(NamedTuple):
    """One promtool test: the alert, its kind, the input series, and whether the alert is expected."""

    alert: str
    kind: str
    series: tuple[str, ...]
    fires: bool


def rules() -> list[dict[str, Any]]:
    """All rules of all groups."""
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


ALERT_RULES = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in rules() if "record" in rule}
EVERY_ALERT = pytest.mark.parametrize("name", ALERT_RULES)


def cases() -> Iterator[Case]:
    """Every promtool test."""
    for test in yaml.safe_load(TESTS.read_text("utf-8"))["tests"]:
        alert, _, what = test["name"].partition(": ")
        series = tuple(one["series"] for one in test["input_series"])
        (expected,) = test["alert_rule_test"]
        assert expected["alertname"] == alert, test["name"]
        yield Case(alert, re.split(r"[ ,:]", what)[0], series, bool(expected["exp_alerts"]))


def selected(expr: str) -> set[str]:
    """The names of the metrics that an expression selects, through recording rules too."""
    found = metrics(expr)
    return {name for one in found for name in (metrics(RECORDED[one]["expr"]) if one in RECORDED else {one})}


def promtool(*arguments: str | Path) -> str:
    """The output of promtool; the test fails if it reports an error."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, cwd=ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_can_read_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", RULES)


def test_every_case_has_the_expected_result() -> None:
    assert "SUCCESS" in promtool("test", "rules", TESTS)


@EVERY_ALERT
def test_an_alert_has_a_firing_a_silent_and_an_absent_case(name: str) -> None:
    kinds = {case.kind for case in cases() if case.alert == name}
    assert set(KINDS) <= kinds


def test_no_case_is_of_an_alert_or_a_kind_that_does_not_exist() -> None:
    assert {case.alert for case in cases()} == set(ALERT_RULES)
    assert {case.kind for case in cases()} == set(KINDS)


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: f"{case.alert}-{case.kind}")
def test_a_case_is_of_the_kind_in_its_name(case: Case) -> None:
    wanted = {family(name) for name in selected(ALERT_RULES[case.alert]["expr"])}
    given = {family(series.partition("{")[0]) for series in case.series}
    if case.kind == "absent":
        assert not given & wanted
        assert case.fires is ALERT_RULES[case.alert]["expr"].startswith("absent(")
    else:
        assert given & wanted
        assert case.fires is (case.kind == "firing")


@EVERY_ALERT
def test_an_alert_has_a_runbook_with_all_its_parts(name: str) -> None:
    text = (ALERTS / "runbooks" / f"{name}.md").read_text("utf-8")
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Where to look", "What to do"]


def test_the_document_has_the_row_of_every_alert_in_the_order_of_the_rules() -> None:
    rows = re.findall(r"^\| `(Inference\w+)` \| (\w+) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert rows == [(name, rule["labels"]["severity"]) for name, rule in ALERT_RULES.items()]


@EVERY_ALERT
async def test_the_link_of_an_alert_leads_to_the_agent_at_its_default_address(name: str) -> None:
    url = ALERT_RULES[name]["annotations"]["runbook_url"]
    path = url.removeprefix(f"http://{AdminConfig().address}")
    clock = ManualClock()
    server = AdminServer("127.0.0.1:0", clock=clock, instruments=Instruments(clock))
    port = await server.start()
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}{path}") as answer:
        assert (answer.status, answer.content_type) == (200, "text/plain")
        assert (await answer.text()).startswith(f"# {name}\n")
    await server.stop()


@pytest.mark.parametrize("address", ["https://wiki.example/igw", "http://10.0.0.1:8080/runbooks/"])
def test_the_rules_can_be_rendered_with_another_address_of_the_runbooks(address: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text(address), "utf-8")
    promtool("check", "rules", path)
    served = [rule for group in yaml.safe_load(path.read_text("utf-8"))["groups"] for rule in group["rules"]]
    for rule, shipped in zip(served, rules(), strict=True):
        if "alert" in rule:
            assert rule["annotations"].pop("runbook_url") == f"{address.rstrip('/')}/{rule['alert']}.md"
            del shipped["annotations"]["runbook_url"]
        assert rule == shipped


@pytest.mark.parametrize("address", ["", "wiki/igw", "ftp://x/y", "https://x y", "https://{{ .x }}", "https://x/\n- a"])
def test_an_invalid_address_of_runbooks_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="write the URL of the folder"):
        text(address)


def test_no_runbook_is_of_an_alert_that_does_not_exist() -> None:
    assert {path.stem for path in (ALERTS / "runbooks").iterdir()} == set(ALERT_RULES)


@EVERY_ALERT
def test_an_alert_has_a_severity_a_text_with_its_labels_and_a_hold_time(name: str) -> None:
    rule = ALERT_RULES[name]
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    shown = rule["annotations"]["summary"] + rule["annotations"]["description"]
    assert "{{ $labels." in shown or "absent(" in rule["expr"]
    assert "for" in rule or "increase(" in rule["expr"], "a single bad scrape must not fire an alert"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_selects_only_metrics_of_the_catalogue(rule: dict[str, Any]) -> None:
    for name in selected(rule["expr"]):
        known = CATALOG.get(name) or CATALOG.get(family(name)) or ALIASES.get(name)
        assert known is not None, f"{name} is not exported"
        assert (name == known.name) or known.type == "histogram", name


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_selects_and_groups_by_labels_that_its_metrics_have(rule: dict[str, Any]) -> None:
    known = {"instance", "job", "le"}.union(*(CATALOG[family(name)].labels for name in selected(rule["expr"])))
    used = labels(rule["expr"]) | set(re.findall(r"\$labels\.(\w+)", str(rule.get("annotations", ""))))
    assert used <= known


def test_metrics_and_labels_are_found_in_an_expression() -> None:
    expr = 'sum by (pool) (rate(a_total{x="b{c=1}", y!~"z"}[5m])) / on () c > 1 unless on (k) d offset 5m'
    assert metrics(expr) == {"a_total", "c", "d"}
    assert labels(expr) == {"pool", "x", "y", "k"}


def test_a_recording_rule_is_named_after_its_level_metric_and_operation() -> None:
    assert RECORDED
    for name in RECORDED:
        assert re.fullmatch(r"pool:igw_[a-z_]+:ratio(_rate5m)?", name)
