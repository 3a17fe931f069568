"""The table of the states of health in the documents is that of `agent.state.health`."""

from __future__ import annotations

import re
from pathlib import Path

from agent.scaling.rollup import Unknown, current
from agent.signals import RUNNING
from agent.state.health import HEALTH_REASONS, PICKED, Health
from exporters.gauge import REASONS
from tests.fakes.views import view

DOCS = Path(__file__).parents[2] / "docs"
CONCEPT = (DOCS / "concepts" / "state-and-freshness.md").read_text("utf-8")
ERRORS = (DOCS / "reference" / "errors.md").read_text("utf-8")


def test_the_document_has_each_state_and_whether_it_is_picked() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \|", CONCEPT, re.MULTILINE)
    assert dict(rows) == {health.value: "yes" if health in PICKED else "no" for health in Health}
    assert len(rows) == len(Health)
    assert {health for health in Health if health.picked} == PICKED


def test_the_document_of_errors_has_exactly_the_reasons_of_the_health_path() -> None:
    section = ERRORS.partition("### The health path")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(HEALTH_REASONS)


def test_every_state_but_healthy_withholds_readings_with_a_known_reason() -> None:
    for health in Health:
        found = current(view("a:1", health=health), RUNNING, 0.0)
        assert isinstance(found, Unknown) is (health is not Health.HEALTHY)
        if isinstance(found, Unknown):
            assert found.reason in REASONS
