"""The dashboard's JSON matches its definitions, fits Grafana's grid, and queries only metrics that we export."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dashboards.definitions import ROWS, panels
from dashboards.panel import PLACEHOLDERS, Panel, Query
from dashboards.render import FILE, WIDTH, dashboard, text
from exporters.catalog import ALIASES, CATALOG
from tests.promql import family, labels, metrics

QUERIES = [(panel, query) for panel in panels() for query in panel.queries]
EVERY_QUERY = pytest.mark.parametrize(
    ("panel", "query"), QUERIES, ids=[f"{panel.title}-{query.legend}" for panel, query in QUERIES]
)
SHOWN: list[dict[str, Any]] = dashboard()["panels"]
RECORDED = Path(__file__).resolve().parents[1] / "recordings" / "emulator" / "plain_idle.prom"
# The names of all samples of a real vLLM.
SERVER_METRICS = set(re.findall(r"^([a-zA-Z_:][\w:]*)", RECORDED.read_text(encoding="utf-8"), re.MULTILINE))
# Unit ids of Grafana.
UNITS = {"none", "percentunit", "reqps", "ops", "s", "bytes"}


def test_the_json_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "run: python -m dashboards.render"


def test_every_panel_has_an_id_of_its_own_and_a_title_of_its_own() -> None:
    assert len({panel["id"] for panel in SHOWN}) == len(SHOWN)
    titles = [f"{row.title}/{panel.title}" for row in ROWS for panel in row.panels]
    assert len(set(titles)) == len(titles)


def test_panels_lie_within_the_grid_and_none_covers_another() -> None:
    covered: dict[tuple[int, int], str] = {}
    for panel in SHOWN:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in covered, f"{panel['title']} overlaps {covered[cell]}"
            covered[cell] = panel["title"]


def test_every_query_goes_to_the_selected_data_source() -> None:
    document = dashboard()
    assert [one["name"] for one in document["templating"]["list"]] == ["datasource", "pool"]
    sources = [panel["datasource"] for panel in SHOWN if panel["type"] != "row"]
    sources += [target["datasource"] for panel in SHOWN for target in panel.get("targets", ())]
    assert all(one == {"type": "prometheus", "uid": "${datasource}"} for one in sources)


def test_the_targets_of_a_panel_have_names_of_their_own() -> None:
    for panel in SHOWN:
        names = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel.title)
def test_a_panel_has_a_question_and_a_unit(panel: Panel) -> None:
    assert "?" in panel.question
    assert panel.unit in UNITS
    assert list(panel.thresholds) == sorted(panel.thresholds)
    shown = [one for one in SHOWN if one["title"] == panel.title and one.get("description") == panel.question]
    assert len(shown) == 1


@EVERY_QUERY
def test_a_query_selects_only_metrics_of_the_catalogue(panel: Panel, query: Query) -> None:
    for name in metrics(query.expr):
        known = CATALOG.get(name) or CATALOG.get(family(name)) or ALIASES.get(name)
        assert known is not None, f"{name} is not exported"
        assert (name == known.name) or known.type == "histogram", name


@EVERY_QUERY
def test_a_query_uses_labels_that_its_metrics_have(panel: Panel, query: Query) -> None:
    known = {"instance", "job", "le"}.union(*(CATALOG[family(name)].labels for name in metrics(query.expr)))
    assert labels(query.expr) | set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= known


@EVERY_QUERY
def test_a_query_over_pools_selects_the_chosen_pools(panel: Panel, query: Query) -> None:
    by_pool = {label for name in metrics(query.expr) for label in CATALOG[family(name)].labels}
    if by_pool & {"pool", "inference_pool", "name"}:
        assert '=~"$pool"' in query.expr or "and on" in query.expr


@EVERY_QUERY
def test_a_truth_uses_metrics_of_the_servers_and_none_of_the_agent(panel: Panel, query: Query) -> None:
    assert metrics(re.sub(r"\$\w+", "1", query.truth)) - {"up"} <= SERVER_METRICS
    assert set(re.findall(r"\$(\w+)", query.truth)) <= set(PLACEHOLDERS)
    assert 0 < query.within < 1


def test_a_rate_uses_the_rate_interval_of_grafana() -> None:
    for _, query in QUERIES:
        assert set(re.findall(r"\[([^\]]+)\]", query.expr)) <= {"$__rate_interval"}
        assert set(re.findall(r"\[([^\]]+)\]", query.truth)) <= {"$window"}


def test_the_file_is_valid_json() -> None:
    assert json.loads(FILE.read_text(encoding="utf-8"))["schemaVersion"] >= 39
