"""docs/reference/envoy.md has the rendered settings, and the errors that a client receives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from agent.app.endpoint_files import CHECK_SECONDS
from agent.envoy.endpoints import eds_cluster
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from agent.envoy.rollout import LINGER_SECONDS, SETTLE_SECONDS
from agent.envoy.yaml import dump
from agent.requests.rejections import REJECTIONS, proxy_replies
from agent.serve.ext_proc.session import HOLD_LIMIT

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "envoy.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}$\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/reference/envoy.md has no section {title!r}"
    return found[1]


def rows(title: str) -> list[list[str]]:
    lines = re.findall(r"^\| (.*) \|$", section(title), re.MULTILINE)
    return [line.split(" | ") for line in lines[1:] if not line.startswith("---")]


def rendered(mode: PickMode, *, reports: bool = False) -> str:
    pool = EnvoyPool("pool", ("127.0.0.1:8001",), "127.0.0.1:9002", reports)
    return dump(bootstrap(EnvoyConfig((pool,), (EnvoyListener("in", "127.0.0.1:8080", "pool", mode),))))


@pytest.mark.parametrize("row", rows("What each setting is for"), ids=lambda row: row[0])
def test_a_setting_has_its_documented_value(row: list[str]) -> None:
    text = rendered(PickMode.BUFFERED)
    (name, *_), values = re.findall(r"`([^`]+)`", row[0]), re.findall(r"`([^`]+)`", row[1])
    assert name in text
    for value in values:
        assert f"{name}: {value}" in text or re.search(rf"{name}:\n(.*\n){{0,8}}.*{re.escape(value)}", text), value


def test_the_modes_have_their_documented_values() -> None:
    for row in rows("Two modes"):
        name = row[0].strip("`")
        if not name.endswith("_mode"):
            continue
        for mode, value in ((PickMode.BUFFERED, row[1]), (PickMode.FULL_DUPLEX, row[2])):
            assert f"{name}: {value.split('`')[1]}\n" in rendered(mode)
    assert f"{HOLD_LIMIT >> 10} KiB" in section("Two modes")


@pytest.mark.parametrize("mode", [PickMode.BUFFERED, PickMode.FULL_DUPLEX])
def test_response_headers_are_sent_only_for_load_reports(mode: PickMode) -> None:
    with_reports, without = rendered(mode, reports=True), rendered(mode)
    for setting in ("response_header_mode: SEND", "response_attributes", "upstream.address"):
        assert setting in TEXT
        assert setting in with_reports
        assert setting not in without


def test_the_cluster_of_a_file_of_endpoints_is_the_rendered_one() -> None:
    (block,) = re.findall(r"^```yaml\n(type: EDS\n.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(block) == eds_cluster("chat", "/run/igw/endpoints")


def test_the_times_of_a_file_of_endpoints_are_documented() -> None:
    text = section("Endpoints in a file (EDS)")
    assert f"in the file for {SETTLE_SECONDS:g} s before" in text
    assert f"leaves the file {LINGER_SECONDS:g} s later" in text
    assert f"within {CHECK_SECONDS:g} s" in text


def test_every_rejection_is_documented_and_no_other() -> None:
    documented = {
        (int(status), code.strip("`"), sender) for status, code, sender, _ in rows("Errors that a client receives")
    }
    agent = {(row.status, row.code) for row in REJECTIONS.values()}
    assert {(status, code) for status, code, sender in documented if "agent" in sender} == agent
    envoy = {(reply.status, reply.code) for reply in proxy_replies(1)}
    assert {(status, code) for status, code, sender in documented if "Envoy" in sender} == envoy
