"""What the agent reads of objectives, rewrites and pools, and what it writes about those that need a correction, at a
real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.events.kubernetes import KubernetesWriteFailed, ObjectProblemFound
from tests.app.live import Live
from tests.cluster.access import create_service_account, grant, kubeconfig_of
from tests.cluster.api import Object
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import Pods
from tests.cluster.schemas import CRDS, manifests
from tests.fakes.schema import check
from tests.waiting import eventually, found

POOL_API = "inference.networking.k8s.io/v1"
NEW = "llm-d.ai/v1alpha2"
OLD = "inference.networking.x-k8s.io/v1alpha2"
LABELS = {"app": "llama"}
OBJECTIVE = "InferenceObjective"
REWRITE = "InferenceModelRewrite"


class Journey:
    """A namespace of the control plane and what an agent does in it. Blocking calls run in threads."""

    def __init__(self, control_plane: ControlPlane, namespace: str, pods: Pods, folder: Path) -> None:
        self.plane = control_plane
        self.namespace = namespace
        self.pods = pods
        self.folder = folder
        admin = control_plane.admin
        user = {"client-certificate": str(admin.certificate), "client-key": str(admin.key)}
        self.kubeconfig = control_plane.kubeconfig(f"admin-{namespace}", user)

    async def create(self, version: str, kind: str, name: str, spec: Object) -> Object:
        metadata = {"name": name, "namespace": self.namespace}
        manifest = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
        made: Object = await asyncio.to_thread(self.plane.api.create, manifest)
        return made

    async def change(self, version: str, kind: str, name: str, spec: Object) -> None:
        await asyncio.to_thread(self.plane.api.patch, self.path(version, kind, name), {"spec": spec})

    async def delete(self, version: str, kind: str, name: str) -> None:
        await asyncio.to_thread(self.plane.api.delete, self.path(version, kind, name))

    def path(self, version: str, kind: str, name: str) -> str:
        return f"/apis/{version}/namespaces/{self.namespace}/{kind.lower()}s/{name}"

    async def pool(self, name: str = "llama", labels: Object | None = None) -> Object:
        spec = {"selector": {"matchLabels": labels or LABELS}, "targetPorts": [{"number": 8000}]}
        return await self.create(POOL_API, "InferencePool", name, spec)

    async def objective(self, name: str, priority: int, version: str = NEW, pool: str = "llama") -> Object:
        return await self.create(version, OBJECTIVE, name, {"poolRef": {"name": pool}, "priority": priority})

    async def condition(self, version: str, kind: str, name: str, fits: Callable[[Object], object]) -> Object:
        """The condition Accepted of an object, once it fits."""

        async def read() -> Object:
            seen = await asyncio.to_thread(self.plane.api.get, self.path(version, kind, name))
            conditions: list[Object] = seen.get("status", {}).get("conditions", [])
            return next((each for each in conditions if each["type"] == "Accepted"), {})

        return await found(read, fits, what=f"the condition of {kind} {name}")

    async def reason(self, version: str, kind: str, name: str, expected: str) -> Object:
        """The condition with this reason, once the object has it."""
        return await self.condition(version, kind, name, lambda seen: seen.get("reason") == expected)

    async def event(self, kind: str, name: str, reason: str, note: str = "") -> Object:
        """The Event with this reason and these words in its note that regards an object, once there is one."""

        async def read() -> list[Object]:
            path = f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events"
            listed = await asyncio.to_thread(self.plane.api.get, path)
            regarding = [each for each in listed["items"] if each["regarding"]["name"] == name and note in each["note"]]
            return [each for each in regarding if each["regarding"]["kind"] == kind and each["reason"] == reason]

        return (await found(read, what=f"Event {reason} of {kind} {name}"))[0]

    def _released_lease(self) -> Object:
        """A Lease that the last holder has released: the next one takes it after a second."""
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "inference-gateway-agent", "namespace": self.namespace},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": 1},
        }

    @asynccontextmanager
    async def agent(self, *pools: str, more: str = "", kubeconfig: Path | None = None) -> AsyncIterator[Live]:
        """An agent that serves these InferencePools."""
        address = "extProcAddress: '127.0.0.1:0'"
        entries = "".join(f"- {{name: {name}, inferencePool: {name}, {address}}}\n" for name in pools or ("llama",))
        path = self.folder / "igw.yaml"
        path.write_text(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
            "admin: {address: '127.0.0.1:0'}\n"
            f"kubernetes: {{kubeconfig: '{kubeconfig or self.kubeconfig}', namespace: {self.namespace}}}\n"
            f"pools:\n{entries}{more}"
        )
        await asyncio.to_thread(self.plane.api.apply, self._released_lease())
        live = Live(path)
        live.admin = (await live.agent.start()).admin
        try:
            yield live
        finally:
            await live.agent.stop(grace=0)


@pytest.fixture
def journey(control_plane: ControlPlane, crds: list[str], namespace: str, pods: Pods, tmp_path: Path) -> Journey:
    return Journey(control_plane, namespace, pods, tmp_path)


async def state(live: Live) -> Any:
    """/v1/state, which fits its schema."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{live.admin}/v1/state") as response:
        document = await response.json()
    check(document, "State")
    return document


async def pool_state(live: Live, fits: Callable[[Any], object], name: str = "llama") -> Any:
    """A pool of /v1/state, once it fits."""

    async def read() -> Any:
        return next(each for each in (await state(live))["pools"] if each["pool"] == name)

    return await found(read, fits, what=f"the state of pool {name}")


async def test_objectives_of_both_groups_apply_and_the_one_of_llm_d_ai_wins(journey: Journey) -> None:
    await journey.pool()
    await journey.objective("chat", 10)
    await journey.objective("chat", 1, OLD)
    await journey.objective("batch", -1, OLD)
    rule = {"matches": [{"model": {"value": "chat"}}], "targets": [{"modelRewrite": "chat-v2", "weight": 3}]}
    await journey.create(NEW, REWRITE, "canary", {"poolRef": {"name": "llama"}, "rules": [rule]})
    async with journey.agent() as live:
        seen = await pool_state(live, lambda pool: pool["objectives"] and pool["rewrites"])
        assert seen["objectives"] == {"batch": -1, "chat": 10}
        assert seen["rewrites"] == [
            {
                "models": ["chat"],
                "targets": [{"model": "chat-v2", "weight": 3}],
                "source": f"{journey.namespace}/canary",
            }
        ]
        assert live.agent.pools["llama"].objectives.priority("chat") == 10
        accepted = await journey.reason(NEW, OBJECTIVE, "chat", "Accepted")
        assert (accepted["status"], accepted["observedGeneration"]) == ("True", 1)
        assert accepted["message"].endswith("have the priority 10")
        await journey.reason(OLD, OBJECTIVE, "batch", "Accepted")
        await journey.reason(NEW, REWRITE, "canary", "Accepted")
        lost = await journey.reason(OLD, OBJECTIVE, "chat", "Superseded")
        assert lost["status"] == "False"
        await journey.delete(NEW, OBJECTIVE, "chat")
        await pool_state(live, lambda pool: pool["objectives"] == {"batch": -1, "chat": 1})
        await journey.reason(OLD, OBJECTIVE, "chat", "Accepted")
        await journey.change(OLD, OBJECTIVE, "batch", {"priority": -7})
        newer = await journey.condition(OLD, OBJECTIVE, "batch", lambda seen: seen["observedGeneration"] == 2)
        assert newer["message"].endswith("have the priority -7")


async def test_an_annotation_binds_an_objective_to_models_until_it_is_removed(journey: Journey) -> None:
    await journey.pool()
    metadata = {
        "name": "batch",
        "namespace": journey.namespace,
        "annotations": {"llm-d.ai/models": "nightly-summaries, nightly-tags"},
    }
    spec = {"poolRef": {"name": "llama"}, "priority": -3}
    manifest = {"apiVersion": NEW, "kind": OBJECTIVE, "metadata": metadata, "spec": spec}
    await asyncio.to_thread(journey.plane.api.create, manifest)

    async def bound() -> dict[str, int]:
        return dict(live.agent.pools["llama"].terms.by_model)

    async with journey.agent() as live:
        await found(bound, lambda seen: seen == {"nightly-summaries": -3, "nightly-tags": -3})
        accepted = await journey.reason(NEW, OBJECTIVE, "batch", "Accepted")
        assert "nightly-summaries" in accepted["message"]
        without = {"metadata": {"annotations": {"llm-d.ai/models": None}}}
        await asyncio.to_thread(journey.plane.api.patch, journey.path(NEW, OBJECTIVE, "batch"), without)
        await found(bound, lambda seen: seen == {})


async def test_an_objective_of_a_missing_pool_gets_a_condition_and_an_event_until_it_is_corrected(
    journey: Journey,
) -> None:
    await journey.pool()
    made = await journey.objective("chat", 3, pool="lama")
    async with journey.agent() as live:
        condition = await journey.reason(NEW, OBJECTIVE, "chat", "PoolNotFound")
        assert condition["status"] == "False"
        assert f"InferencePool {journey.namespace}/lama does not exist" in condition["message"]
        warning = await journey.event(OBJECTIVE, "chat", "PoolNotFound")
        assert warning["type"] == "Warning"
        assert warning["note"] == condition["message"]
        assert warning["regarding"] == {
            "apiVersion": NEW,
            "kind": OBJECTIVE,
            "namespace": journey.namespace,
            "name": "chat",
            "uid": made["metadata"]["uid"],
        }
        (problem,) = live.recorder.of(ObjectProblemFound)
        assert problem.message == condition["message"]
        await journey.change(NEW, OBJECTIVE, "chat", {"poolRef": {"name": "llama"}})
        solved = await journey.reason(NEW, OBJECTIVE, "chat", "Accepted")
        assert solved["observedGeneration"] == 2
        assert (await journey.event(OBJECTIVE, "chat", "ProblemResolved"))["type"] == "Normal"
        await pool_state(live, lambda pool: pool["objectives"] == {"chat": 3})


async def test_an_objective_whose_pool_is_created_for_another_picker_is_let_go(journey: Journey) -> None:
    await journey.pool()
    await journey.objective("chat", 3, pool="other")
    async with journey.agent():
        await journey.reason(NEW, OBJECTIVE, "chat", "PoolNotFound")
        await journey.pool("other", {"app": "other"})
        condition = await journey.reason(NEW, OBJECTIVE, "chat", "Pending")
        assert condition["status"] == "Unknown"


async def test_what_the_schema_lets_pass_and_means_nothing_is_named(journey: Journey) -> None:
    await journey.pool()
    mixed = {"targets": [{"modelRewrite": "a", "weight": 9}, {"modelRewrite": "b"}]}
    await journey.create(OLD, REWRITE, "canary", {"poolRef": {"name": "llama"}, "rules": [mixed]})
    async with journey.agent():
        condition = await journey.reason(OLD, REWRITE, "canary", "InvalidObject")
        assert "rules[0]: some targets have a weight and others none" in condition["message"]
        assert (await journey.event(REWRITE, "canary", "InvalidObject"))["note"] == condition["message"]


async def test_a_selector_that_matches_nothing_is_an_event_of_its_pool_until_a_pod_matches(journey: Journey) -> None:
    made = await journey.pool()
    async with journey.agent() as live:
        warning = await journey.event("InferencePool", "llama", "NoMatchingPods")
        assert warning["type"] == "Warning"
        assert "no pod of namespace" in warning["note"]
        assert warning["regarding"]["uid"] == made["metadata"]["uid"]
        assert warning["reportingController"] == "inference-gateway-agent"
        await journey.pods.create("one", LABELS)
        resolved = await journey.event("InferencePool", "llama", "ProblemResolved", "NoMatchingPods is resolved")
        assert resolved["type"] == "Normal"
        await pool_state(live, lambda pool: len(pool["endpoints"]) == 1)
        pool = await asyncio.to_thread(journey.plane.api.get, journey.path(POOL_API, "InferencePool", "llama"))
        assert not pool.get("status")  # it is the gateways'


async def test_two_pools_that_select_one_pod_are_both_named(journey: Journey) -> None:
    await journey.pool()
    await journey.pool("gpu", {"tier": "gpu"})
    await journey.pods.create("one", {**LABELS, "tier": "gpu"})
    async with journey.agent() as live:
        for name in ("llama", "gpu"):
            warning = await journey.event("InferencePool", name, "PodInTwoPools")
            assert f"both select pod {journey.namespace}/one" in warning["note"]
        seen = await pool_state(live, lambda pool: pool["discovery"]["problems"])
        assert [each["reason"] for each in seen["discovery"]["problems"]] == ["PodInTwoPools"]
        await journey.change(POOL_API, "InferencePool", "gpu", {"selector": {"matchLabels": {"tier": "other"}}})
        await journey.event("InferencePool", "gpu", "ProblemResolved")
        await pool_state(live, lambda pool: not pool["discovery"]["problems"])


async def test_objects_of_a_group_that_is_not_installed_are_none(journey: Journey) -> None:
    await journey.pool()
    await journey.pods.create("one", LABELS)
    await journey.objective("chat", 5)
    async with uninstalled(journey, "inference.networking.x-k8s.io"):
        async with journey.agent() as live:
            await pool_state(live, lambda pool: pool["objectives"] == {"chat": 5})
            assert live.recorder.of(ObjectProblemFound) == []
        async with uninstalled(journey, "llm-d.ai"), journey.agent() as live:
            await eventually(lambda: live.recorder.of(ObjectProblemFound))
            assert (problem(live).kind, problem(live).reason) == ("Namespace", "KindNotInstalled")
            assert "has no InferenceObjective and no InferenceModelRewrite of llm-d.ai or" in problem(live).message
            await pool_state(live, lambda pool: len(pool["endpoints"]) == 1 and pool["objectives"] == {})


def problem(live: Live) -> ObjectProblemFound:
    """The only problem that was reported."""
    found = live.recorder.of(ObjectProblemFound)
    assert len(found) == 1
    return found[0]


@asynccontextmanager
async def uninstalled(journey: Journey, group: str) -> AsyncIterator[None]:
    """Without the CustomResourceDefinitions of a group."""
    removed = [manifest for manifest in manifests(CRDS) if manifest["spec"]["group"] == group]
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

    async def left() -> Sequence[str]:
        listed = await asyncio.to_thread(journey.plane.api.get, path)
        return [each["metadata"]["name"] for each in listed["items"] if each["spec"]["group"] == group]

    for manifest in removed:
        await asyncio.to_thread(journey.plane.api.delete, f"{path}/{manifest['metadata']['name']}")
    await found(left, lambda names: not names, what=f"the end of the CRDs of {group}")
    try:
        yield
    finally:
        for manifest in removed:
            await asyncio.to_thread(journey.plane.install_crd, manifest)


LEASE = [
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update", "patch"]},
]
READ = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": ["inference.networking.k8s.io"], "resources": ["inferencepools"], "verbs": ["list", "watch"]},
    {
        "apiGroups": ["llm-d.ai", "inference.networking.x-k8s.io"],
        "resources": ["inferenceobjectives", "inferencemodelrewrites"],
        "verbs": ["list", "watch"],
    },
]
WRITE = [
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
    {
        "apiGroups": ["llm-d.ai", "inference.networking.x-k8s.io"],
        "resources": ["inferenceobjectives/status", "inferencemodelrewrites/status"],
        "verbs": ["patch"],
    },
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch", "create"]},
]


async def test_without_the_permission_to_write_the_missing_rule_is_named_and_everything_else_works(
    journey: Journey,
) -> None:
    await journey.pool()
    await journey.pods.create("one", LABELS)
    await journey.objective("chat", 5)
    await journey.objective("lost", 5, pool="lama")
    api = journey.plane.api
    account = await asyncio.to_thread(create_service_account, api, journey.namespace, "agent")
    await asyncio.to_thread(grant, api, account, [*READ, *LEASE], journey.namespace)
    kubeconfig = await asyncio.to_thread(kubeconfig_of, journey.plane, account)
    async with journey.agent(kubeconfig=kubeconfig) as live:
        await pool_state(live, lambda pool: pool["objectives"] == {"chat": 5} and len(pool["endpoints"]) == 1)

        def failed() -> dict[str, KubernetesWriteFailed]:
            return {each.what: each for each in live.recorder.of(KubernetesWriteFailed)}

        await eventually(lambda: failed().keys() == {"event", "condition", "configmap"})
        assert {each.result for each in failed().values()} == {"forbidden"}
        assert "needs the verbs get, patch and create on configmaps" in failed()["configmap"].detail
        assert "needs the verbs create and patch on events of events.k8s.io" in failed()["event"].detail
        assert "needs the verb patch on inferenceobjectives/status of llm-d.ai" in failed()["condition"].detail


async def test_kinds_that_the_agent_may_not_read_are_named_with_the_rule_that_it_needs(journey: Journey) -> None:
    await journey.pool()
    await journey.pods.create("one", LABELS)
    api = journey.plane.api
    account = await asyncio.to_thread(create_service_account, api, journey.namespace, "agent")
    await asyncio.to_thread(grant, api, account, READ[:2], journey.namespace)
    kubeconfig = await asyncio.to_thread(kubeconfig_of, journey.plane, account)
    async with journey.agent(kubeconfig=kubeconfig) as live:
        await eventually(lambda: live.recorder.of(ObjectProblemFound))
        assert (problem(live).kind, problem(live).reason) == ("Namespace", "Forbidden")
        assert "may not read inferenceobjectives of llm-d.ai, inferenceobjectives of" in problem(live).message
        await pool_state(live, lambda pool: len(pool["endpoints"]) == 1 and pool["objectives"] == {})


async def test_the_documented_permissions_are_enough(journey: Journey) -> None:
    await journey.pool()
    await journey.objective("lost", 5, pool="lama")
    api = journey.plane.api
    account = await asyncio.to_thread(create_service_account, api, journey.namespace, "agent")
    await asyncio.to_thread(grant, api, account, [*READ, *LEASE, *WRITE], journey.namespace)
    kubeconfig = await asyncio.to_thread(kubeconfig_of, journey.plane, account)
    async with journey.agent(kubeconfig=kubeconfig) as live:
        await journey.event("InferencePool", "llama", "NoMatchingPods")
        await journey.event(OBJECTIVE, "lost", "PoolNotFound")
        await journey.reason(NEW, OBJECTIVE, "lost", "PoolNotFound")
        assert live.recorder.of(KubernetesWriteFailed) == []
