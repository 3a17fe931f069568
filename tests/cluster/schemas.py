"""Our CustomResourceDefinitions, and those of the field, which are files in Go modules.

The field's ones come through `go mod download` of an exact version into Go's module cache; the hash of the module is
here, in the words of go.sum.
"""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tests.cluster import programs
from tests.processes import ROOT

CRDS: Final = ROOT / "deploy" / "crds"
_EXTENSION: Final = "sigs.k8s.io/gateway-api-inference-extension"


class GoModule(NamedTuple):
    """A Go module of an exact version, with its hash."""

    path: str
    version: str
    sum: str


LATEST = GoModule(_EXTENSION, "v1.6.0", "h1:cjtwMJYcTnLXBYE5ffR1/hHhn7U1aIFfe2RITYmOXVA=")
# The last one with InferenceObjective and InferenceModelRewrite: llm-d-router, where they went, is no Go module that a
# proxy serves.
WITH_OBJECTIVES = GoModule(_EXTENSION, "v1.5.0", "h1:w9Awt60cmI1vM7Y6N81h8wDCBP0WkmxpdI7GKY0v070=")


@functools.cache
def folder_of(module: GoModule) -> Path:
    """The folder of a module in Go's module cache; downloaded if it is not there."""
    toolchain = programs.go(programs.cache_folder())
    ran = subprocess.run(
        [toolchain.path, "mod", "download", "-json", f"{module.path}@{module.version}"],
        cwd="/",  # no go.mod: two versions of one module are needed
        env=toolchain.environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    answer = json.loads(ran.stdout or "{}")
    assert answer.get("Sum") == module.sum, f"{module}: {answer.get('Error', answer)} {ran.stderr}"
    return Path(answer["Dir"])


def of_the_field(module: GoModule, plural: str, group: str) -> dict[str, Any]:
    """A CustomResourceDefinition of the field."""
    path = folder_of(module) / "config" / "crd" / "bases" / f"{group}_{plural}.yaml"
    definition: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return definition


def manifests(folder: Path) -> Iterator[dict[str, Any]]:
    """The documents of all YAML files of a folder."""
    for path in sorted(folder.glob("*.yaml")):
        yield from (document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document)


def own(plural: str, group: str) -> dict[str, Any]:
    """A CustomResourceDefinition of deploy/crds."""
    return next(found for found in manifests(CRDS) if found["metadata"]["name"] == f"{plural}.{group}")


def in_group(definition: dict[str, Any], group: str) -> dict[str, Any]:
    """The same definition in another group, so that an API server can serve both."""
    spec = definition["spec"]
    return {
        "apiVersion": definition["apiVersion"],
        "kind": definition["kind"],
        "metadata": {"name": f"{spec['names']['plural']}.{group}"},
        "spec": {**spec, "group": group},
    }
