"""The rights in deploy/kubernetes are exactly what the agent uses, by the audit log of a real API server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import pytest
import yaml

from tests.app.live import Live
from tests.cluster.access import ServiceAccount, create_service_account, request_token
from tests.cluster.addresses import PodAddresses
from tests.cluster.api import Object
from tests.cluster.audit_log import AuditRecord
from tests.cluster.control_plane import ControlPlane
from tests.cluster.deployment import ACCOUNT, FOLDER, rendered
from tests.cluster.leases import NAME, lease_path
from tests.cluster.pods import Pods, emulated
from tests.waiting import eventually, found

RIGHTS: Final = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
NEW: Final = "llm-d.ai/v1alpha2"
OLD: Final = "inference.networking.x-k8s.io/v1alpha2"
LABELS: Final = {"app": "llama"}
EXPORTER: Final = {"app": "dcgm-exporter"}
METRICS_READER: Final = "inference-gateway-agent-metrics-reader"
STATE_READER: Final = "inference-gateway-agent-state-reader"


class Grant(NamedTuple):
    """One thing that a rule allows; `namespace` is empty for the whole cluster, `name` for every object."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str

    def used_by(self, record: AuditRecord) -> bool:
        """Whether a request needed it."""
        return (
            (self.verb, self.group, self.resource) == (record.verb, record.group, record.resource)
            and self.namespace == record.namespace
            and self.name in ("", record.name)
        )


def grants(objects: list[Object]) -> Iterator[Grant]:
    """What the roles allow the agent; those of readers allow it nothing."""
    for each in objects:
        if each["kind"] not in ("Role", "ClusterRole"):
            continue
        namespace = each["metadata"].get("namespace", "")
        for rule in each["rules"]:
            names = rule.get("resourceNames", [""])
            for verb, group, resource, name in itertools.product(
                rule["verbs"], rule.get("apiGroups", ()), rule.get("resources", ()), names
            ):
                yield Grant(verb, group, resource, namespace, name)


class LeastPrivilege:
    """The namespaces of the agent, of a pool and of exporters, with the rights of the shipped files and no others."""

    def __init__(self, control_plane: ControlPlane, namespaces: tuple[str, str, str], folder: Path) -> None:
        self.plane = control_plane
        self.own, self.pool, self.exporters = namespaces
        self.folder = folder
        self.account = ServiceAccount(self.own, ACCOUNT)
        self._bound: list[Object] = []
        self.rights = [
            each
            for each in (
                *rendered("agent", folder / "agent", self.own),
                *rendered("pools", folder / "pools", self.pool, self.own),
                *rendered("exporters", folder / "exporters", self.exporters, self.own),
            )
            if each["kind"] in RIGHTS
        ]

    def apply(self) -> None:
        for each in self.rights:
            self.plane.api.apply(each)

    def remove(self) -> None:
        """Remove what is in no namespace."""
        for each in (*self.rights, *self._bound):
            if each["kind"].startswith("Cluster"):
                self.plane.api.delete(self.plane.api.path_of(each))

    def bind(self, account: ServiceAccount, role: str) -> None:
        """Give an account a ClusterRole, as the documents say."""
        binding: Object = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"{account.namespace}-{account.name}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [account.subject],
        }
        self._bound.append(self.plane.api.create(binding))

    def configuration(self, port: int) -> Path:
        """The shipped configuration with the addresses and names of the test, and everything that it may switch on."""
        document: dict[str, Any] = yaml.safe_load((FOLDER / "agent" / "config.yaml").read_text())
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(request_token(self.plane.api, self.account))
        document["kubernetes"] = {
            "kubeconfig": str(self.plane.kubeconfig(f"agent-{self.own}", {"tokenFile": str(token)})),
            "autoscalers": document["kubernetes"]["autoscalers"],
            "lease": {"namespace": self.own, "duration": "5s"},
        }
        document["admin"]["address"] = "127.0.0.1:0"
        del document["replicas"]  # the API server has no part in it
        accelerators = [{"source": "dcgm", "selector": EXPORTER, "namespace": self.exporters, "port": port}]
        document["pools"] = [
            {
                "inferencePool": "llama",
                "namespace": self.pool,
                "extProcAddress": "127.0.0.1:0",
                "accelerators": accelerators,
            }
        ]
        path = self.folder / "igw.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def create(self, version: str, kind: str, name: str, spec: Object) -> None:
        metadata = {"name": name, "namespace": self.pool}
        self.plane.api.create({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})

    def create_objects(self) -> None:
        """A pool, and an objective and a rewrite of each group, which get conditions."""
        spec: Object = {"selector": {"matchLabels": LABELS}, "targetPorts": [{"number": 8000}]}
        self.create("inference.networking.k8s.io/v1", "InferencePool", "llama", spec)
        rules = [{"targets": [{"modelRewrite": "llama-3"}]}]
        for number, version in enumerate((NEW, OLD)):
            reference = {"poolRef": {"name": "llama"}}
            self.create(version, "InferenceObjective", f"chat-{number}", {**reference, "priority": number})
            self.create(version, "InferenceModelRewrite", f"chat-{number}", {**reference, "rules": rules})

    async def events(self) -> list[Object]:
        path = f"/apis/events.k8s.io/v1/namespaces/{self.pool}/events"
        listed: list[Object] = (await asyncio.to_thread(self.plane.api.get, path))["items"]
        return listed

    async def lease(self) -> Object:
        read: Object = (await asyncio.to_thread(self.plane.api.get, lease_path(self.own)))["spec"]
        return read

    def unused(self, records: list[AuditRecord]) -> list[Grant]:
        """What is granted and was not needed."""
        return [grant for grant in grants(self.rights) if not any(grant.used_by(record) for record in records)]


@pytest.fixture
async def journey(
    control_plane: ControlPlane, crds: list[str], namespace: str, tmp_path: Path
) -> AsyncIterator[LeastPrivilege]:
    names = (namespace, f"{namespace}-pool", f"{namespace}-exporters")
    for name in names[1:]:
        control_plane.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    made = LeastPrivilege(control_plane, names, tmp_path)
    made.apply()
    yield made
    made.remove()
    for name in names[1:]:
        control_plane.api.delete(f"/api/v1/namespaces/{name}")


async def status(live: Live, path: str, token: str) -> int:
    """The status of a page of the admin port, whose certificate nobody can verify."""
    headers: Mapping[str, str] = {"Authorization": f"Bearer {token}"}
    url = f"https://{live.admin}{path}"
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers, ssl=False) as response:
        return response.status


async def test_the_agent_is_denied_nothing_and_needs_every_right_that_it_has(
    control_plane: ControlPlane, journey: LeastPrivilege, pod_addresses: PodAddresses
) -> None:
    api = control_plane.api
    journey.create_objects()
    served = Pods(control_plane, journey.pool, pod_addresses, serve=emulated)
    exporters = Pods(control_plane, journey.exporters, pod_addresses)
    await exporters.create("exporter", EXPORTER)
    mark = control_plane.audit.mark()
    live = Live(journey.configuration(8000))
    live.admin = (await live.agent.start()).admin
    try:
        # The Lease does not exist: the agent creates it, and takes it when nobody else can hold it.
        lease = await found(journey.lease, lambda spec: spec["holderIdentity"], what="the holder of the Lease")
        assert lease["leaseDurationSeconds"] == 5
        # An Event, its end, and the same again, which changes the first one.
        await found(journey.events, what="an Event about the pool without pods")
        await served.create("one", LABELS)
        await eventually(live.healthy, what="the pod as an endpoint")
        await found(journey.events, lambda all_: any(each["type"] == "Normal" for each in all_), what="its end")
        await served.remove("one")
        await found(journey.events, lambda all_: any(each.get("series") for each in all_), what="the Event again")
        # What a replica can serve is kept: the ConfigMap does not exist yet.
        (pool,) = live.agent.pools
        live.agent.demand.restore(pool, 9.0, live.clock.now())
        await live.agent.capacity.step()
        kept = await asyncio.to_thread(
            api.get, f"/api/v1/namespaces/{journey.own}/configmaps/inference-gateway-agent-capacity"
        )
        assert '"requestsPerSecond": 9.0' in kept["data"]["capacity.json"]
        # Those who read the admin port.
        accounts = {name: create_service_account(api, journey.own, name) for name in ("prometheus", "gateway", "other")}
        journey.bind(accounts["prometheus"], METRICS_READER)
        journey.bind(accounts["gateway"], STATE_READER)
        tokens = {name: request_token(api, account) for name, account in accounts.items()}

        async def prometheus() -> int:
            return await status(live, "/metrics", tokens["prometheus"])

        await found(prometheus, lambda answer: answer == 200, what="the metrics for Prometheus")
        assert await status(live, "/v1/state", tokens["prometheus"]) == 403
        assert await status(live, "/v1/state", tokens["gateway"]) == 200
        assert await status(live, "/metrics", tokens["other"]) == 403

        def records() -> list[AuditRecord]:
            return control_plane.audit.records(journey.account.user, since=mark)

        await eventually(lambda: not journey.unused(records()), what=f"the use of {journey.unused(records())}")
    finally:
        await live.agent.stop(grace=0)
        await served.close()
        await exporters.close()
    released = await journey.lease()
    assert (released["holderIdentity"], released["leaseDurationSeconds"]) == ("", 1)
    assert [record for record in records() if not record.allowed or record.status in (401, 403)] == []
    assert {record.reason.partition(" of ")[0] for record in records()} <= {
        f'RBAC: allowed by {binding["kind"]} "{name_of(binding)}"'
        for binding in journey.rights
        if binding["kind"].endswith("Binding")
    }
    assert NAME in {record.name for record in records()}


def name_of(binding: Object) -> str:
    """As the audit log writes it."""
    metadata = binding["metadata"]
    return f"{metadata['name']}/{metadata['namespace']}" if "namespace" in metadata else str(metadata["name"])
