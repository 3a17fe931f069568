"""The recipes of deploy/hpa are taken by the API server as they are, and name what exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from agent.scaling.served_metrics import SERVED, MetricKind
from agent.serve.keda.trigger import read_trigger
from tests.cluster.api import Object
from tests.cluster.control_plane import ControlPlane
from tests.processes import ROOT

RECIPES: Final = sorted((ROOT / "deploy" / "hpa").glob("*.yaml"))
KINDS: Final = {"Pods": MetricKind.PODS, "Object": MetricKind.OBJECT, "External": MetricKind.EXTERNAL}
# Recipes whose numbers come from another server of the metrics APIs.
OF_OTHERS: Final = {"prometheus-adapter", "stackdriver-adapter", "gke-autoscaling-metric"}
# Kinds that only their own operators define; `make test-keda` applies the first of them.
OF_OPERATORS: Final = {"ScaledObject", "AutoscalingMetric"}


def documents(recipe: Path) -> list[Object]:
    return [document for document in yaml.safe_load_all(recipe.read_text(encoding="utf-8")) if document]


SUFFIXES: Final = {"m": 0.001, "": 1.0, "k": 1000.0}


def keeps(found: Any, written: Any) -> bool:
    """Whether an object of the API server has all that was written; it writes quantities in its own form."""
    if isinstance(written, dict):
        return all(key in found and keeps(found[key], value) for key, value in written.items())
    if isinstance(written, list):
        return len(found) == len(written) and all(map(keeps, found, written))
    if found == written:
        return True
    numbers = [re.fullmatch(r"(\d+(?:\.\d+)?)([mk]?)", str(each)) for each in (found, written)]
    one, other = (float(each[1]) * SUFFIXES[each[2]] if each else None for each in numbers)
    return one is not None and other is not None and abs(one - other) < 1e-9


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_api_server_takes_a_recipe_as_it_is_and_keeps_every_field(
    control_plane: ControlPlane, namespace: str, recipe: Path
) -> None:
    native = [each for each in documents(recipe) if each["kind"] not in OF_OPERATORS]
    assert native or recipe.stem == "keda"
    for each in native:
        assert "namespace" not in each["metadata"]  # the user's
        applied = control_plane.api.apply({**each, "metadata": {**each["metadata"], "namespace": namespace}})
        for field in ("spec", "data"):
            if field in each:
                assert keeps(applied[field], each[field]), applied[field]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_begins_with_when_to_use_it(recipe: Path) -> None:
    assert recipe.read_text(encoding="utf-8").startswith("# When: ")


def test_the_document_lists_the_recipes() -> None:
    text = (ROOT / "docs" / "tasks" / "autoscale.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w-]+\.yaml)` \|", text, re.MULTILINE)
    assert sorted(listed) == [recipe.name for recipe in RECIPES]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_changes_nothing_for_a_twentieth_and_shrinks_slowly(recipe: Path) -> None:
    for each in documents(recipe):
        if each["kind"] == "HorizontalPodAutoscaler":
            behavior = each["spec"]["behavior"]
        elif each["kind"] == "ScaledObject":
            behavior = each["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        else:
            continue
        assert [behavior[way]["tolerance"] for way in ("scaleUp", "scaleDown")] == ["0.05", "0.05"]
        assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 300


@pytest.mark.parametrize("recipe", [each for each in RECIPES if each.stem not in OF_OTHERS], ids=lambda each: each.stem)
def test_a_recipe_names_metrics_that_the_agent_serves(recipe: Path) -> None:
    for each in documents(recipe):
        for metric in each["spec"].get("metrics", []):
            kind = metric["type"]
            assert metric[kind.lower()]["metric"]["name"] in SERVED[KINDS[kind]]
        for trigger in each["spec"].get("triggers", []):
            assert read_trigger(trigger["metadata"], ["chat", "code"]).pool == "chat"
