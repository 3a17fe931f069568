"""The descriptors of the external scaler are those of the protocol file in KEDA's Go module, and its CRD takes the
recipe."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from agent.serve.keda.messages import MESSAGES, PACKAGE, RPCS, SERVICE, Field, Rpc
from tests.cluster.control_plane import ControlPlane
from tests.keda.operator import RunningKeda
from tests.keda.programs import KEDA
from tests.processes import ROOT

pytestmark = pytest.mark.keda


def protocol() -> str:
    """The protocol file, without its comments."""
    path = KEDA.sources() / "pkg" / "scalers" / "externalscaler" / "externalscaler.proto"
    return re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))


def test_the_service_has_the_methods_of_the_protocol_file() -> None:
    text = protocol()
    service = re.search(r"service (\w+) \{(.*?)\n\}", text, re.DOTALL)
    assert service is not None
    package = re.search(r"package (\w+);", text)
    assert package is not None
    assert (package[1], f"{package[1]}.{service[1]}") == (PACKAGE, SERVICE)
    rows = re.findall(r"rpc (\w+)\s*\((stream )?(\w+)\)\s*returns\s*\((stream )?(\w+)\)", service[2])
    assert {name: Rpc(request, response, bool(stream)) for name, _, request, stream, response in rows} == dict(RPCS)
    assert not any(stream for _, stream, *_ in rows)


def test_the_messages_have_the_fields_of_the_protocol_file() -> None:
    found = {}
    for name, body in re.findall(r"message (\w+) \{(.*?)\}", protocol(), re.DOTALL):
        rows = re.findall(r"((?:repeated )?(?:map<\w+, \w+>|\w+)) (\w+) = (\d+);", body)
        found[name] = tuple(Field(field, int(number), words) for words, field, number in rows)
    assert found == dict(MESSAGES)


def test_the_crd_of_keda_takes_the_recipe_as_it_is(
    control_plane: ControlPlane, keda: RunningKeda, namespace: str
) -> None:
    (recipe,) = yaml.safe_load_all((ROOT / "deploy" / "hpa" / "keda.yaml").read_text(encoding="utf-8"))
    manifest: dict[str, Any] = {**recipe, "metadata": {**recipe["metadata"], "namespace": namespace}}
    applied = control_plane.api.apply(manifest, dry_run=True)
    assert applied["spec"]["triggers"] == recipe["spec"]["triggers"]
    assert applied["spec"]["fallback"] == recipe["spec"]["fallback"]
    behavior = applied["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleUp"]["tolerance"] == "0.05"
