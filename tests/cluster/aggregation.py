"""An agent that serves the metrics APIs behind a real aggregation layer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from agent.clock import Clock
from agent.serve.metrics_api.paths import CUSTOM, EXTERNAL
from tests.cluster.access import ServiceAccount, create_service_account, kubeconfig_of
from tests.cluster.addresses import PodAddresses
from tests.cluster.api import Api, Object, RefusedByApi
from tests.cluster.certificates import Authority
from tests.cluster.control_plane import ControlPlane
from tests.cluster.deployment import ACCOUNT, rendered
from tests.cluster.pods import Pods, StartServer
from tests.cluster.test_discovery import RunningAgent, inference_pool, running
from tests.waiting import found

SERVICE: Final = "inference-gateway-agent-metrics"
SECRET: Final = f"{SERVICE}-ca"
SERVICES: Final = (f"v1beta2.{CUSTOM}", f"v1beta1.{CUSTOM}", f"v1beta1.{EXTERNAL}")
API_SERVICES: Final = "/apis/apiregistration.k8s.io/v1/apiservices"
RIGHTS: Final = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


class Aggregated:
    """A running agent that the aggregation layer reaches, its servers, and their pods."""

    def __init__(self, live: RunningAgent, pods: Pods, account: ServiceAccount, ca: Path) -> None:
        self.live = live
        self.pods = pods
        self.account = account
        self.ca = ca

    @property
    def url(self) -> str:
        return f"https://{self.live.agent.metrics_api.address}"


@asynccontextmanager
async def aggregated(
    control_plane: ControlPlane,
    namespace: str,
    folder: Path,
    addresses: PodAddresses,
    serve: StartServer,
    *,
    own_ca: bool = False,
    pools: Sequence[str] = ("chat",),
    clock: Clock | None = None,
    kubernetes: Mapping[str, Any] | None = None,
    **more: Any,
) -> AsyncIterator[Aggregated]:
    """An agent whose ServiceAccount has the documented rights, behind APIServices with the CA of its certificate, or
    with one that the agent keeps itself. Each pool has an InferencePool of its name, and pods whose label `app` has it;
    `serve` starts the server of a pod. `kubernetes` are options of that section, `more` other sections."""
    api = control_plane.api
    account = create_service_account(api, namespace, ACCOUNT)
    rights = [
        each
        for name in ("agent", "pools", "metrics-api")
        for each in shipped(name, folder, namespace)
        if each["kind"] in RIGHTS
    ]
    for right in rights:
        api.apply(right)
    for name in pools:
        api.create(inference_pool(namespace, name, labels={"app": name}))
    authority = Authority(folder, "serving-ca")
    pair = authority.server("serving", ["127.0.0.1"], [f"{SERVICE}.{namespace}.svc"])
    pods = Pods(control_plane, namespace, addresses, serve=serve)
    configured = [{"name": name, "inferencePool": name, "namespace": namespace} for name in pools]
    metrics = {"address": "127.0.0.1:0", "certFile": str(pair.certificate), "keyFile": str(pair.key)}
    ca = base64.b64encode(authority.certificate.read_bytes()).decode()
    if own_ca:
        metrics, ca = {"address": "127.0.0.1:0", "service": SERVICE}, ""
    kubeconfig = kubeconfig_of(control_plane, account)
    try:
        lease = {"namespace": namespace, "duration": "5s"}
        section = {"kubeconfig": str(kubeconfig), "events": False, "lease": lease, **(kubernetes or {})}
        sections = {"metricsApi": metrics, "kubernetes": section, **more}
        async with running(folder / "igw.yaml", configured, kubeconfig, clock=clock, **sections) as live:
            port = int(live.agent.metrics_api.address.rpartition(":")[2])
            manifests = [
                each
                for name in ("metrics-api-custom", "metrics-api-external")
                for each in shipped(name, folder, namespace)
            ]
            await asyncio.to_thread(register, api, namespace, port, ca, manifests)
            yield Aggregated(live, pods, account, authority.certificate)
    finally:
        for path in [f"{API_SERVICES}/{name}" for name in SERVICES] + [
            api.path_of(right) for right in rights if right["kind"].startswith("Cluster")
        ]:
            await asyncio.to_thread(remove, api, path)
        await pods.close()


def shipped(name: str, folder: Path, namespace: str) -> list[Object]:
    """The objects of a folder of deploy/kubernetes, for an agent in this namespace."""
    objects = rendered(name, folder / f"overlay-{name}", namespace)
    for each in objects:
        for subject in each.get("subjects", ()):
            subject["namespace"] = namespace
    return objects


def register(api: Api, namespace: str, port: int, ca: str, manifests: list[Object]) -> None:
    """The Service that leads to the agent, on loopback, and the APIServices."""
    metadata = {"name": SERVICE, "namespace": namespace}
    spec = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    api.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    for manifest in manifests:
        manifest["spec"]["service"]["port"] = port
        if ca:
            manifest["spec"]["caBundle"] = ca
        api.create(manifest)


def remove(api: Api, path: str) -> None:
    """Delete what may be there no more."""
    with contextlib.suppress(RefusedByApi):
        api.delete(path)


def available(api: Api) -> dict[str, str]:
    """The status and the message of the condition Available by APIService."""
    seen: dict[str, str] = {}
    for name in SERVICES:
        each = api.get(f"{API_SERVICES}/{name}")
        conditions = {item["type"]: item for item in each.get("status", {}).get("conditions", ())}
        found = conditions.get("Available", {})
        seen[name] = f"{found.get('status')} {found.get('message')}"
    return seen


async def all_available(api: Api) -> None:
    await found(
        lambda: asyncio.to_thread(available, api),
        lambda states: all(state.startswith("True") for state in states.values()),
        within=60,
        what="the condition Available",
    )
