"""docs/envoy.md is true: its settings are those that are rendered, its refusals those that are answered."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from agent.envoy.render import Listener, Pool, Settings, Way, bootstrap
from agent.envoy.text import yaml
from agent.requests import body
from agent.serve.ext_proc import session
from agent.serve.ext_proc.session import HOLD_LIMIT

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "envoy.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}$\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/envoy.md has no section {title!r}"
    return found[1]


def rows(title: str) -> list[list[str]]:
    lines = re.findall(r"^\| (.*) \|$", section(title), re.MULTILINE)
    return [line.split(" | ") for line in lines[1:] if not line.startswith("---")]


def rendered(way: Way, *, reports: bool = False) -> str:
    pool = Pool("pool", ("127.0.0.1:8001",), "127.0.0.1:9002", reports)
    return yaml(bootstrap(Settings((pool,), (Listener("in", "127.0.0.1:8080", "pool", way),))))


@pytest.mark.parametrize("row", rows("What each setting is for"), ids=lambda row: row[0])
def test_a_setting_has_the_value_that_is_documented(row: list[str]) -> None:
    text = rendered(Way.BUFFERED)
    (name, *_), values = re.findall(r"`([^`]+)`", row[0]), re.findall(r"`([^`]+)`", row[1])
    assert name in text
    for value in values:
        assert f"{name}: {value}" in text or re.search(rf"{name}:\n(.*\n){{0,8}}.*{re.escape(value)}", text), value


def test_the_modes_are_set_as_they_are_documented() -> None:
    for row in rows("Two modes"):
        name = row[0].strip("`")
        if not name.endswith("_mode"):
            continue
        for way, value in ((Way.BUFFERED, row[1]), (Way.FULL_DUPLEX, row[2])):
            assert f"{name}: {value.split('`')[1]}\n" in rendered(way)
    assert f"{HOLD_LIMIT >> 10} KiB" in section("Two modes")


@pytest.mark.parametrize("way", [Way.BUFFERED, Way.FULL_DUPLEX])
def test_headers_of_answers_are_sent_where_load_reports_are_wanted_and_only_there(way: Way) -> None:
    with_reports, without = rendered(way, reports=True), rendered(way)
    for said in ("response_header_mode: SEND", "response_attributes", "upstream.address"):
        assert said in TEXT
        assert said in with_reports
        assert said not in without


@pytest.mark.source
def test_every_refusal_is_documented_and_no_other() -> None:
    documented = {
        (int(status), code.strip("`"), who)
        for status, code, who, _ in rows("What a client hears when a request is refused")
    }
    agents = {(400, code) for code in re.findall(r'"(invalid_json|model_required)"\)', inspect.getsource(body))}
    agents |= {
        (int(status), code)
        for status, code in re.findall(r'_refuse\(\s*(\d+),.*?code="(\w+)"', inspect.getsource(session), re.DOTALL)
    }
    assert {(status, code) for status, code, who in documented if "agent" in who} == agents
    envoys = set(re.findall(r"code: (\w+_\w+|timeout|overloaded)$", rendered(Way.BUFFERED), re.MULTILINE)) - {
        "status_code"
    }
    assert {code for _, code, who in documented if "Envoy" in who} == envoys
