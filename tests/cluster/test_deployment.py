"""The files of deploy/kubernetes are valid for the API server, and agree with the agent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.app.vocabulary import VOCABULARY
from agent.config.config import Config
from agent.config.file import load
from agent.config.kubernetes import LeaseConfig
from tests.cluster.api import Object, RefusedByApi
from tests.cluster.control_plane import ControlPlane
from tests.cluster.deployment import ACCOUNT, FOLDER, kustomized, only, rendered
from tests.contract.test_docs import blocks
from tests.processes import ROOT

FOLDERS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def config() -> Config:
    """The configuration of the ConfigMap."""
    return load(FOLDER / "agent" / "config.yaml", VOCABULARY)


@pytest.fixture
def objects(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> list[Object]:
    """Those of the agent, in a namespace of the test."""
    return rendered("agent", tmp_path / "agent", namespace)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_api_server_accepts_every_file(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, folder: str
) -> None:
    made = rendered(folder, tmp_path / folder, namespace)
    assert made
    for each in made:
        control_plane.api.apply(each, dry_run=True)
        if each["kind"] == "APIService":
            assert each["spec"]["service"]["namespace"] == namespace
        elif each["kind"] == "RoleBinding" or "Cluster" not in each["kind"]:
            assert each["metadata"]["namespace"] == namespace


def test_the_pods_fit_the_restricted_standard_of_pod_security(
    control_plane: ControlPlane, namespace: str, objects: list[Object]
) -> None:
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    control_plane.api.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": label}})
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "agent", "namespace": namespace},
        "spec": only(objects, "Deployment")["spec"]["template"]["spec"],
    }
    control_plane.api.create(pod, dry_run=True)
    pod["spec"] = {**pod["spec"], "securityContext": {}}
    with pytest.raises(RefusedByApi, match="PodSecurity"):
        control_plane.api.create(pod, dry_run=True)


def test_the_deployment_agrees_with_the_configuration(objects: list[Object], config: Config) -> None:
    deployment = only(objects, "Deployment")["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["admin"] == int(config.admin.address.rpartition(":")[2])
    assert ports["ext-proc"] == int(config.pools[0].ext_proc_address.rpartition(":")[2])
    assert config.replicas.address.endswith(f":{ports['peers']}")
    address = yaml.safe_load((ROOT / "deploy" / "hpa" / "keda.yaml").read_text())["spec"]["triggers"][0]["metadata"]
    host, _, port = address["scalerAddress"].partition(":")
    served = {each["metadata"]["name"]: each["spec"]["ports"] for each in objects if each["kind"] == "Service"}
    assert {"name": "keda", "port": int(port), "targetPort": "keda"} in served[host.partition(".")[0]]
    assert ports["keda"] == int(port)
    assert config.replicas.service == f"{ACCOUNT}-peers:{ports['peers']}"
    secret = next(each["name"] for each in pod["volumes"] if "secret" in each)
    mounted = next(each["mountPath"] for each in container["volumeMounts"] if each["name"] == secret)
    assert config.replicas.token_file == f"{mounted}/token"
    assert pod["terminationGracePeriodSeconds"] > config.ext_proc.drain_timeout + 5  # what components take to close
    assert pod["serviceAccountName"] == ACCOUNT
    (volume,) = (each for each in pod["volumes"] if "configMap" in each)
    generated = only(objects, "ConfigMap")
    assert volume["configMap"]["name"] == generated["metadata"]["name"]  # with the hash: a change rolls the pods
    mounted = next(each["mountPath"] for each in container["volumeMounts"] if each["name"] == volume["name"])
    assert container["args"] == ["run", "--config", f"{mounted}/{next(iter(generated['data']))}"]


def test_all_selectors_select_the_pods(objects: list[Object]) -> None:
    labels = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for each in objects:
        spec = each.get("spec", {})
        match each["kind"]:
            case "Service":
                assert spec["selector"] == labels
            case "Deployment" | "PodDisruptionBudget":
                assert spec["selector"]["matchLabels"] == labels
            case "NetworkPolicy":
                assert spec["podSelector"]["matchLabels"] == labels


def test_the_role_of_the_lease_names_the_lease_and_the_capacities_of_the_configuration(
    objects: list[Object], config: Config
) -> None:
    rules = [rule for rule in only(objects, "Role")["rules"] if "resourceNames" in rule]
    lease = config.kubernetes.lease.name
    named = {resource: rule["resourceNames"] for rule in rules for resource in rule["resources"]}
    assert named == {"leases": [lease], "configmaps": [f"{lease}-capacity"]}
    assert config.kubernetes.lease == LeaseConfig()
    assert config.kubernetes.lease.namespace == ""  # that of the agent, in which the Role is


def documented(folder: str, overlay: Path) -> list[Object]:
    """What the overlay of the document for this folder renders."""
    document = ROOT / "docs" / "operations" / "kubernetes.md"
    texts = [block.text for block in blocks(document) if "kustomize" in block.words]
    (text,) = (text for text in texts if yaml.safe_load(text)["resources"][0].endswith(f"/deploy/kubernetes/{folder}"))
    overlay.mkdir()
    path = os.path.relpath(FOLDER, overlay)
    (overlay / "kustomization.yaml").write_text(text.replace("../inference-gateway-agent/deploy/kubernetes", path))
    (overlay / "config.yaml").write_text("mine: true\n")
    return kustomized(overlay)


def test_the_overlays_of_the_document_change_what_they_say(tmp_path: Path) -> None:
    agent = documented("agent", tmp_path / "agent")
    assert only(agent, "ConfigMap")["data"] == {"config.yaml": "mine: true\n"}
    (container,) = only(agent, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/inference-gateway-agent:1.0"
    binding = only(documented("pools", tmp_path / "pools"), "RoleBinding")
    assert binding["metadata"]["namespace"] == "llm"
    assert binding["subjects"][0] == {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": "inference-gateway"}
