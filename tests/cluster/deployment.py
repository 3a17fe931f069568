"""The files of deploy/kubernetes, rendered as a user renders them: by kustomize, which kubectl contains."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster import programs
from tests.cluster.api import Object
from tests.processes import ROOT

FOLDER: Final = ROOT / "deploy" / "kubernetes"
ACCOUNT: Final = "inference-gateway-agent"


def rendered(name: str, overlay: Path, namespace: str, agent_namespace: str = "") -> list[Object]:
    """The objects of a folder in this namespace. `overlay` is an empty folder for the user's own kustomization;
    `agent_namespace` is that of the ServiceAccount to which the rights are given, where it is another one."""
    overlay.mkdir(parents=True)
    kustomization: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [os.path.relpath(FOLDER / name, overlay)],
    }
    if agent_namespace:
        patch = [{"op": "replace", "path": "/subjects/0/namespace", "value": agent_namespace}]
        kustomization["patches"] = [{"target": {"kind": "RoleBinding"}, "patch": json.dumps(patch)}]
    (overlay / "kustomization.yaml").write_text(json.dumps(kustomization))
    return kustomized(overlay)


def kustomized(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    command = [str(programs.find()["kubectl"]), "kustomize", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr, ran.stderr
    return [document for document in yaml.safe_load_all(ran.stdout) if document]


def only(objects: list[Object], kind: str) -> Object:
    """The one object of a kind."""
    (found,) = (each for each in objects if each["kind"] == kind)
    return found
