"""The CustomResourceDefinitions of deploy/crds: the schema is the field's, and a real API server serves them."""

from __future__ import annotations

import copy
import itertools
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cluster import programs
from tests.cluster.api import Api, RefusedByApi
from tests.cluster.control_plane import ControlPlane
from tests.cluster.schemas import CRDS, LATEST, WITH_OBJECTIVES, GoModule, in_group, manifests, of_the_field, own

POOLS = "inference.networking.k8s.io"
OLD = "inference.networking.x-k8s.io"
NEW = "llm-d.ai"
# Ours beside the field's: plural, our group, the module, the field's group.
PAIRS: list[tuple[str, str, GoModule, str]] = [
    ("inferencepools", POOLS, LATEST, POOLS),
    ("inferenceobjectives", OLD, WITH_OBJECTIVES, OLD),
    ("inferencemodelrewrites", OLD, WITH_OBJECTIVES, OLD),
    ("inferenceobjectives", NEW, WITH_OBJECTIVES, OLD),
    ("inferencemodelrewrites", NEW, WITH_OBJECTIVES, OLD),
]
_POOL_GROUP = "spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/poolRef/properties/group/default"
_PRIORITY = "spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/priority/format"
_BUNDLE = "metadata/annotations/inference.networking.k8s.io/bundle-version"
# What differs, and why. Facts about llm-d.ai: llm-d-router, config/crd/bases.
DIFFERENCES: dict[str, str] = {
    _BUNDLE: "names a release of the field's manifests, which ours are not",
    "metadata/name": "llm-d.ai is the later name of the group",
    "spec/group": "as above",
    _POOL_GROUP: "objects of llm-d.ai refer to a pool of llm-d.ai unless they name its group",
    _PRIORITY: "llm-d.ai limits the priority to 32 bits",
}
IN_LATER_GROUP = {"metadata/name", "spec/group", _POOL_GROUP, _PRIORITY}
WORDS = {"description", "message", "rule"}  # CEL rules are compared by what they accept
UNORDERED = {"required", "enum", "shortNames"}


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(path, value) of every value in a definition, without texts."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            if key in WORDS and isinstance(value, str):
                continue
            yield from leaves(sorted(value) if key in UNORDERED and isinstance(value, list) else value, (*path, key))
    elif isinstance(node, list) and node:
        for place, value in enumerate(node):
            yield from leaves(value, (*path, str(place)))
    else:
        yield "/".join(path), node


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Path -> (our value, the field's), None where there is none. The status of a definition is the server's."""
    left, right = (
        dict(leaves({key: value for key, value in item.items() if key != "status"})) for item in (ours, theirs)
    )
    paths = (path for path in left.keys() | right.keys() if left.get(path) != right.get(path))
    return {path: (left.get(path), right.get(path)) for path in paths}


@pytest.mark.cluster
@pytest.mark.parametrize(("plural", "group", "module", "field_group"), PAIRS)
def test_a_definition_is_that_of_the_field_but_for_what_is_listed(
    plural: str, group: str, module: GoModule, field_group: str
) -> None:
    found = differences(own(plural, group), of_the_field(module, plural, field_group))
    assert {path: values for path, values in found.items() if path not in DIFFERENCES} == {}
    assert group == NEW or not found.keys() & IN_LATER_GROUP


def test_a_difference_of_a_type_a_bound_or_a_rule_is_found() -> None:
    ours = own("inferencepools", POOLS)
    theirs = copy.deepcopy(ours)
    spec = theirs["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["targetPorts"]["x-kubernetes-validations"]
    spec["properties"]["appProtocol"]["enum"].append("grpc")
    spec["required"].remove("selector")
    found = {path.rpartition("properties/spec/")[2] for path in differences(ours, theirs)}
    assert "required/0" in found
    assert "properties/appProtocol/enum/0" in found
    assert len(found) >= 3


def pool(**changes: Any) -> dict[str, Any]:
    """The spec of an InferencePool with changes; None removes a field."""
    spec: dict[str, Any] = {
        "selector": {"matchLabels": {"app": "llm"}},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {"name": "picker", "port": {"number": 9002}},
    }
    return {key: value for key, value in (spec | changes).items() if value is not None}


def objective(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"poolRef": {"name": "pool"}, "priority": 10}
    return {key: value for key, value in (spec | changes).items() if value is not None}


def rewrite(*targets: dict[str, Any], **rule: Any) -> dict[str, Any]:
    rules = [{"matches": [{"model": {"value": "chat"}}], "targets": list(targets), **rule}]
    return {"poolRef": {"name": "pool"}, "rules": rules}


KINDS = {
    "inferencepools": "InferencePool",
    "inferenceobjectives": "InferenceObjective",
    "inferencemodelrewrites": "InferenceModelRewrite",
}
ACCEPTED: dict[str, dict[str, dict[str, Any]]] = {
    "inferencepools": {
        "minimal": pool(),
        "without a picker": pool(endpointPickerRef=None),
        "eight ports": pool(targetPorts=[{"number": port} for port in range(8000, 8008)]),
        "64 labels": pool(selector={"matchLabels": {f"label-{number}": "" for number in range(64)}}),
        "h2c": pool(appProtocol="kubernetes.io/h2c"),
        "fail open": pool(endpointPickerRef={"name": "p", "port": {"number": 1}, "failureMode": "FailOpen"}),
        "a picker of another kind without a port": pool(endpointPickerRef={"name": "p", "kind": "Picker"}),
    },
    "inferenceobjectives": {
        "minimal": objective(priority=None),
        "negative": objective(priority=-5),
        "zero": objective(priority=0),
        "of another group": objective(poolRef={"name": "p", "group": POOLS, "kind": "InferencePool"}),
    },
    "inferencemodelrewrites": {
        "weighted": rewrite({"modelRewrite": "a", "weight": 90}, {"modelRewrite": "b", "weight": 10}),
        "unweighted": rewrite({"modelRewrite": "a"}),
        "of all models": rewrite({"modelRewrite": "a"}, matches=[]),
        "the greatest weight": rewrite({"modelRewrite": "a", "weight": 1_000_000}),
        "no rules": {"poolRef": {"name": "pool"}, "rules": []},
        # The schema does not state what is documented: all targets have a weight, or none.
        "one weight of two": rewrite({"modelRewrite": "a", "weight": 90}, {"modelRewrite": "b"}),
    },
}
REFUSED: dict[str, dict[str, dict[str, Any]]] = {
    "inferencepools": {
        "no selector": pool(selector=None),
        "no labels": pool(selector={"matchLabels": {}}),
        "65 labels": pool(selector={"matchLabels": {f"label-{number}": "" for number in range(65)}}),
        "a label that is none": pool(selector={"matchLabels": {"app": "not a label"}}),
        "expressions": pool(selector={"matchLabels": {"a": "b"}, "matchExpressions": []}),
        "no ports": pool(targetPorts=[]),
        "nine ports": pool(targetPorts=[{"number": port} for port in range(8000, 8009)]),
        "a port twice": pool(targetPorts=[{"number": 8000}, {"number": 8001}, {"number": 8000}]),
        "port 0": pool(targetPorts=[{"number": 0}]),
        "port 65536": pool(targetPorts=[{"number": 65536}]),
        "a port as text": pool(targetPorts=[{"number": "8000"}]),
        "an unknown protocol": pool(appProtocol="grpc"),
        "a Service without a port": pool(endpointPickerRef={"name": "picker"}),
        "an explicit Service without a port": pool(endpointPickerRef={"name": "picker", "kind": "Service"}),
        "a picker without a name": pool(endpointPickerRef={"port": {"number": 9002}}),
        "an unknown failure mode": pool(
            endpointPickerRef={"name": "p", "port": {"number": 1}, "failureMode": "FailFast"}
        ),
        "the port number of v1alpha2": pool(targetPorts=None, targetPortNumber=8000),
    },
    "inferenceobjectives": {
        "no pool": objective(poolRef=None),
        "a pool without a name": objective(poolRef={"kind": "InferencePool"}),
        "a priority as text": objective(priority="high"),
        "a fraction": objective(priority=0.5),
        "a criticality, as InferenceModel had": objective(criticality="Critical"),
    },
    "inferencemodelrewrites": {
        "no rules": {"poolRef": {"name": "pool"}},
        "no targets": rewrite(),
        "a target without a name": rewrite({"weight": 1}),
        "weight 0": rewrite({"modelRewrite": "a", "weight": 0}),
        "weight 1000001": rewrite({"modelRewrite": "a", "weight": 1_000_001}),
        "a prefix": rewrite({"modelRewrite": "a"}, matches=[{"model": {"type": "Prefix", "value": "a"}}]),
        "an empty model": rewrite({"modelRewrite": "a"}, matches=[{"model": {"value": ""}}]),
    },
}
OURS = [(plural, group) for plural, group, _, _ in PAIRS]


def stored_spec(api: Api, plural: str, group: str, version: str, spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """The spec with defaults as the API server would store it, None if it refuses the object."""
    manifest = {
        "apiVersion": f"{group}/{version}",
        "kind": KINDS[plural],
        "metadata": {"name": "sample", "namespace": "default"},
        "spec": spec,
    }
    try:
        created = api.create(manifest, dry_run=True)
    except RefusedByApi as refused:
        if refused.status not in {400, 422}:
            raise
        return None
    stored: dict[str, Any] = created["spec"]
    return stored


def version_of(plural: str) -> str:
    return "v1" if plural == "inferencepools" else "v1alpha2"


@pytest.fixture(scope="session")
def field_groups(control_plane: ControlPlane) -> dict[str, str]:
    """Plural -> the group in which the API server serves the field's own definition."""
    groups = {}
    for plural, group, module, field_group in PAIRS:
        if group == field_group:
            groups[plural] = f"{plural}.example.com"
            control_plane.install_crd(in_group(of_the_field(module, plural, group), groups[plural]))
    return groups


def test_the_api_server_serves_each_definition(control_plane: ControlPlane, crds: list[str]) -> None:
    assert crds == sorted(f"{plural}.{group}" for plural, group in OURS)
    for plural, group in OURS:
        resources = control_plane.api.get(f"/apis/{group}/{version_of(plural)}")["resources"]
        names = {row["name"]: row for row in resources}
        assert f"{plural}/status" in names
        assert names[plural]["namespaced"]
        assert names[plural].get("shortNames", []) == (["infpool"] if plural == "inferencepools" else [])


def test_a_definition_has_no_condition_that_complains(control_plane: ControlPlane, crds: list[str]) -> None:
    """NonStructuralSchema, KubernetesAPIApprovalPolicyConformant=False and their like."""
    for name in crds:
        definition = control_plane.api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        conditions = {item["type"]: item["status"] for item in definition["status"]["conditions"]}
        approved = {"KubernetesAPIApprovalPolicyConformant": "True"} if name.endswith(f".{POOLS}") else {}
        assert conditions == {"NamesAccepted": "True", "Established": "True", **approved}


def test_kubectl_applies_the_folder(control_plane: ControlPlane, crds: list[str]) -> None:
    admin = control_plane.admin
    user = {"client-certificate": str(admin.certificate), "client-key": str(admin.key)}
    kubectl = [str(programs.find()["kubectl"]), "--kubeconfig", str(control_plane.kubeconfig("admin", user))]
    options = ["--server-side", "--force-conflicts", "--validate=strict", "--filename", str(CRDS)]
    ran = subprocess.run([*kubectl, "apply", *options], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert sorted(line.split("/")[1].split()[0] for line in ran.stdout.splitlines()) == crds


@pytest.mark.parametrize(("plural", "group"), OURS)
def test_correct_objects_are_accepted(control_plane: ControlPlane, crds: list[str], plural: str, group: str) -> None:
    for name, spec in ACCEPTED[plural].items():
        assert stored_spec(control_plane.api, plural, group, version_of(plural), spec) is not None, name


@pytest.mark.parametrize(("plural", "group"), OURS)
def test_wrong_objects_are_refused(control_plane: ControlPlane, crds: list[str], plural: str, group: str) -> None:
    for name, spec in REFUSED[plural].items():
        assert stored_spec(control_plane.api, plural, group, version_of(plural), spec) is None, name


@pytest.mark.parametrize("plural", KINDS)
def test_the_definition_of_the_field_accepts_the_same_samples_with_the_same_defaults(
    control_plane: ControlPlane, crds: list[str], field_groups: dict[str, str], plural: str
) -> None:
    group = POOLS if plural == "inferencepools" else OLD
    version = version_of(plural)
    for name, spec in itertools.chain(ACCEPTED[plural].items(), REFUSED[plural].items()):
        ours = stored_spec(control_plane.api, plural, group, version, spec)
        assert ours == stored_spec(control_plane.api, plural, field_groups[plural], version, spec), name


NUMBERS = st.sampled_from([-1, 0, 1, 8000, 8001, 65535, 65536, "8000", None])
PORT = st.one_of(st.just({}), st.builds(lambda number: {"number": number}, NUMBERS))
TEXTS = st.sampled_from(["", "a", "A", "a.b", "-a", "a-", "a b", "a" * 63, "a" * 64, "a" * 253, "a" * 254, "Service"])


def some_of(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


REFERENCE = some_of(
    name=TEXTS, group=TEXTS, kind=TEXTS, port=PORT, failureMode=st.sampled_from(["FailOpen", "FailClose", "", "Fail"])
)
POOL_SPECS = some_of(
    selector=some_of(matchLabels=st.dictionaries(TEXTS, TEXTS, max_size=3)),
    targetPorts=st.lists(PORT, max_size=9),
    appProtocol=st.sampled_from(["http", "kubernetes.io/h2c", "h2c", ""]),
    endpointPickerRef=REFERENCE,
)
# Most random specs are wrong in several places; these are wrong in one at most.
NEARLY_RIGHT = st.one_of(
    st.builds(lambda ports: pool(targetPorts=ports), st.lists(PORT, max_size=9)),
    st.builds(lambda number: pool(targetPorts=[{"number": 8000}, {"number": number}]), NUMBERS),
    st.builds(lambda changes: pool(endpointPickerRef={"name": "picker", **changes}), REFERENCE),
    st.builds(lambda key, value: pool(selector={"matchLabels": {key: value}}), TEXTS, TEXTS),
)


POOL_REFERENCE = some_of(name=TEXTS, group=TEXTS, kind=TEXTS)
PRIORITY = st.sampled_from([-(2**31), -1, 0, 1, 2**31 - 1, 0.5, "1", None, True])
OBJECTIVE_SPECS = some_of(poolRef=POOL_REFERENCE, priority=PRIORITY)
WEIGHT = st.sampled_from([-1, 0, 1, 1_000_000, 1_000_001, 0.5, "1", None])
TARGET = some_of(modelRewrite=TEXTS, weight=WEIGHT)
MATCH = some_of(model=some_of(type=st.sampled_from(["Exact", "Prefix", ""]), value=TEXTS))
RULE = some_of(matches=st.lists(MATCH, max_size=2), targets=st.lists(TARGET, max_size=3))
REWRITE_SPECS = st.one_of(
    st.builds(lambda match: rewrite({"modelRewrite": "a"}, matches=[match]), MATCH),
    st.builds(lambda target: rewrite({"modelRewrite": "a"}, target), TARGET),
    some_of(poolRef=POOL_REFERENCE, rules=st.lists(RULE, max_size=3)),
)
SPECS = st.one_of(
    st.tuples(st.just("inferencepools"), st.one_of(NEARLY_RIGHT, POOL_SPECS)),
    st.tuples(st.just("inferenceobjectives"), OBJECTIVE_SPECS),
    st.tuples(st.just("inferencemodelrewrites"), REWRITE_SPECS),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sample=SPECS)
def test_the_definition_of_the_field_accepts_the_same_objects(
    control_plane: ControlPlane, crds: list[str], field_groups: dict[str, str], sample: tuple[str, dict[str, Any]]
) -> None:
    plural, spec = sample
    version = version_of(plural)
    ours = stored_spec(control_plane.api, plural, POOLS if plural == "inferencepools" else OLD, version, spec)
    assert ours == stored_spec(control_plane.api, plural, field_groups[plural], version, spec)


def test_defaults_are_set(control_plane: ControlPlane, crds: list[str]) -> None:
    stored = stored_spec(control_plane.api, "inferencepools", POOLS, "v1", pool())
    assert stored == pool(
        appProtocol="http",
        endpointPickerRef={
            "name": "picker",
            "port": {"number": 9002},
            "group": "",
            "kind": "Service",
            "failureMode": "FailClose",
        },
    )
    for group, of_pool in {OLD: POOLS, NEW: NEW}.items():
        stored = stored_spec(control_plane.api, "inferenceobjectives", group, "v1alpha2", objective(priority=None))
        assert stored == {"poolRef": {"name": "pool", "group": of_pool, "kind": "InferencePool"}}
        stored = stored_spec(
            control_plane.api, "inferencemodelrewrites", group, "v1alpha2", rewrite({"modelRewrite": "a"})
        )
        assert stored is not None
        assert stored["rules"][0]["matches"] == [{"model": {"type": "Exact", "value": "chat"}}]


def test_a_priority_of_33_bits_is_refused_in_the_later_group_only(control_plane: ControlPlane, crds: list[str]) -> None:
    spec = objective(priority=2**32)
    assert stored_spec(control_plane.api, "inferenceobjectives", OLD, "v1alpha2", spec) is not None
    assert stored_spec(control_plane.api, "inferenceobjectives", NEW, "v1alpha2", spec) is None


@pytest.mark.parametrize(("plural", "group"), OURS)
def test_the_status_is_written_by_its_subresource_only(
    control_plane: ControlPlane, crds: list[str], namespace: str, plural: str, group: str
) -> None:
    condition = {
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    spec = next(iter(ACCEPTED[plural].values()))
    status: dict[str, Any] = {"parents": [{"parentRef": {"name": "gateway"}, "conditions": [condition]}]}
    if plural != "inferencepools":
        status = {"conditions": [condition]}
    manifest = {
        "apiVersion": f"{group}/{version_of(plural)}",
        "kind": KINDS[plural],
        "metadata": {"name": "sample", "namespace": namespace},
        "spec": spec,
        "status": status,
    }
    api = control_plane.api
    created = api.create(manifest)
    assert "parents" not in created.get("status", {})
    assert "Accepted" not in {item["reason"] for item in created.get("status", {}).get("conditions", ())}
    path = api.path_of(manifest)
    patched = api.patch(f"{path}/status", {"status": status, "spec": None})
    assert condition in patched["status"].get("parents", [patched["status"]])[0]["conditions"]
    assert patched["spec"] == created["spec"]
    if plural == "inferencepools":
        reference = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gateway"}
        assert patched["status"]["parents"][0]["parentRef"] == reference


@pytest.mark.parametrize(
    ("plural", "columns"),
    [
        ("inferencepools", ["Name", "Age"]),
        ("inferenceobjectives", ["Name", "Inference Pool", "Priority", "Age"]),
        ("inferencemodelrewrites", ["Name", "Inference Pool", "Age"]),
    ],
)
def test_kubectl_prints_the_columns_of_the_field(
    control_plane: ControlPlane, crds: list[str], plural: str, columns: list[str]
) -> None:
    for group in {group for name, group in OURS if name == plural}:
        table = control_plane.api.get_table(f"/apis/{group}/{version_of(plural)}/{plural}")
        assert [column["name"] for column in table["columnDefinitions"]] == columns


def test_every_file_is_named_after_its_definition() -> None:
    names = [path.stem for path in sorted(CRDS.glob("*.yaml"))]
    assert names == [manifest["metadata"]["name"] for manifest in manifests(CRDS)]
