"""The metrics APIs behind a real aggregation layer, read as kubectl and the HPA read them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from agent.events.metrics_api import MetricsRead
from agent.serve.metrics_api.answer import POOLS
from agent.serve.metrics_api.paths import CUSTOM, EXTERNAL
from tests.cluster import programs
from tests.cluster.access import ServiceAccount, api_of, create_service_account, grant, kubeconfig_of, request_token
from tests.cluster.addresses import PodAddresses
from tests.cluster.api import Api, Object, RefusedByApi
from tests.cluster.certificates import Authority
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import Pods, deployment
from tests.cluster.test_authn import READ_TRUST, REVIEWS
from tests.cluster.test_discovery import LABELS, RunningAgent, inference_pool, running
from tests.fakes.metric_values import AVERAGE_QUEUE, HELD, WAITING
from tests.fakes.model_server import ModelServer
from tests.waiting import eventually, found

SERVICES: Final = (("v1beta2", CUSTOM, 200), ("v1beta1", CUSTOM, 100), ("v1beta1", EXTERNAL, 100))
READ_POOLS: Final = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["inference.networking.k8s.io"], "resources": ["inferencepools"], "verbs": ["get", "list", "watch"]},
]


class Queues:
    """The model servers: each has `waiting` requests, a gauge that is the same for all."""

    def __init__(self) -> None:
        self.waiting = 10
        self.servers: list[ModelServer] = []

    async def serve(self, address: str, port: int) -> ModelServer:
        server = ModelServer(page=self.page())
        await server.start(port, address)
        self.servers.append(server)
        return server

    def page(self) -> bytes:
        """A page of vLLM."""
        rows = {"num_requests_running": 2.0, "num_requests_waiting": self.waiting, "kv_cache_usage_perc": 0.5}
        lines = (f'# TYPE vllm:{name} gauge\nvllm:{name}{{model_name="m"}} {value}\n' for name, value in rows.items())
        return "".join(lines).encode()

    def set(self, waiting: int) -> None:
        self.waiting = waiting
        for server in self.servers:
            server.page = self.page()


class Aggregated:
    """A running agent that the aggregation layer reaches, its servers, and their pods."""

    def __init__(self, live: RunningAgent, queues: Queues, pods: Pods, account: ServiceAccount, ca: Path) -> None:
        self.live = live
        self.queues = queues
        self.pods = pods
        self.account = account
        self.ca = ca

    @property
    def url(self) -> str:
        return f"https://{self.live.agent.metrics_api.address}"


@asynccontextmanager
async def aggregated(
    control_plane: ControlPlane, namespace: str, folder: Path, addresses: PodAddresses
) -> AsyncIterator[Aggregated]:
    """An agent whose ServiceAccount has the documented rights, behind APIServices with the CA of its certificate."""
    api = control_plane.api
    account = create_service_account(api, namespace, "agent")
    grant(api, account, REVIEWS)
    grant(api, account, READ_POOLS, namespace)
    grant(api, account, READ_TRUST, "kube-system")
    api.create(inference_pool(namespace, "chat"))
    authority = Authority(folder, "serving-ca")
    pair = authority.server("serving", ["127.0.0.1"], [f"agent.{namespace}.svc"])
    queues = Queues()
    pods = Pods(control_plane, namespace, addresses, serve=queues.serve)
    pool = {"name": "chat", "inferencePool": "chat", "namespace": namespace}
    metrics = {"address": "127.0.0.1:0", "certFile": str(pair.certificate), "keyFile": str(pair.key)}
    kubeconfig = kubeconfig_of(control_plane, account)
    try:
        kubernetes = {"kubeconfig": str(kubeconfig), "events": False}
        async with running(folder / "igw.yaml", [pool], kubeconfig, metricsApi=metrics, kubernetes=kubernetes) as live:
            port = int(live.agent.metrics_api.address.rpartition(":")[2])
            await asyncio.to_thread(register, api, namespace, port, authority.certificate.read_bytes())
            yield Aggregated(live, queues, pods, account, authority.certificate)
    finally:
        await asyncio.to_thread(unregister, api)
        await pods.close()


def register(api: Api, namespace: str, port: int, ca: bytes) -> None:
    """The Service that leads to the agent, and the APIServices."""
    metadata = {"name": "agent", "namespace": namespace}
    spec = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    api.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    for manifest in api_services(namespace, port, ca):
        api.create(manifest)


def api_services(namespace: str, port: int, ca: bytes) -> Iterator[Object]:
    from base64 import b64encode

    for version, group, priority in SERVICES:
        yield {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{version}.{group}"},
            "spec": {
                "group": group,
                "version": version,
                "groupPriorityMinimum": 100,
                "versionPriority": priority,
                "service": {"name": "agent", "namespace": namespace, "port": port},
                "caBundle": b64encode(ca).decode(),
            },
        }


def unregister(api: Api) -> None:
    for version, group, _ in SERVICES:
        try:
            api.delete(f"/apis/apiregistration.k8s.io/v1/apiservices/{version}.{group}")
        except RefusedByApi as refused:
            if refused.status != 404:
                raise


def available(api: Api) -> dict[str, str]:
    """The status and the message of the condition Available by APIService."""
    seen: dict[str, str] = {}
    for version, group, _ in SERVICES:
        each = api.get(f"/apis/apiregistration.k8s.io/v1/apiservices/{version}.{group}")
        conditions = {item["type"]: item for item in each.get("status", {}).get("conditions", ())}
        found = conditions.get("Available", {})
        seen[f"{version}.{group}"] = f"{found.get('status')} {found.get('message')}"
    return seen


async def all_available(api: Api) -> None:
    await found(
        lambda: asyncio.to_thread(available, api),
        lambda states: all(state.startswith("True") for state in states.values()),
        within=60,
        what="the condition Available",
    )


async def raw(api: Api, path: str) -> Any:
    """What `kubectl get --raw` prints, once the API server proxies the group."""

    def read() -> Any:
        try:
            return api.get(path)
        except RefusedByApi as refused:
            if "metrics" not in str(refused.message) and refused.status in {404, 503}:
                return None
            raise

    return await found(lambda: asyncio.to_thread(read), what=path)


async def test_the_apis_are_available_and_kubectl_reads_them(
    control_plane: ControlPlane, namespace: str, crds: list[str], tmp_path: Path, pod_addresses: PodAddresses
) -> None:
    api = control_plane.api
    async with aggregated(control_plane, namespace, tmp_path, pod_addresses) as agent:
        for name in ("a", "b"):
            await agent.pods.create(name, LABELS)
        await agent.live.has(agent.pods.address("a"), agent.pods.address("b"))
        await all_available(api)

        for version, window in (("v1beta2", "windowSeconds"), ("v1beta1", "window")):
            path = f"/apis/{CUSTOM}/{version}/namespaces/{namespace}/pods/*/{WAITING}"
            document = await raw(api, path)
            assert document["apiVersion"] == f"{CUSTOM}/{version}"
            assert [(item["describedObject"]["name"], item["value"]) for item in document["items"]] == [
                ("a", "10"),
                ("b", "10"),
            ]
            assert window not in document["items"][0]
            age = datetime.now(UTC) - datetime.fromisoformat(document["items"][0]["timestamp"])
            assert 0 <= age.total_seconds() < 5
        base = f"/apis/{CUSTOM}/v1beta2/namespaces/{namespace}"
        (one,) = (await raw(api, f"{base}/{POOLS}/chat/{AVERAGE_QUEUE}"))["items"]
        assert (one["describedObject"]["kind"], one["value"]) == ("InferencePool", "10")
        selected = await raw(api, f"{base}/pods/*/{WAITING}?labelSelector=app%3Dchat%2Ctier+notin+(x)")
        assert len(selected["items"]) == 2
        external = f"/apis/{EXTERNAL}/v1beta1/namespaces/{namespace}/{HELD}"
        (one,) = (await raw(api, external))["items"]
        assert (one["metricLabels"]["inference_pool"], one["value"]) == ("chat", "0")

        # Discovery, aggregated and by group, as kubectl reads it.
        groups = {group["name"] for group in (await raw(api, "/apis"))["groups"]}
        assert {CUSTOM, EXTERNAL} <= groups
        kubectl = [str(programs.find()["kubectl"]), f"--kubeconfig={administrator(control_plane)}"]
        listed = await run(
            *kubectl, "api-resources", f"--api-group={EXTERNAL}", "-o", "name", f"--cache-dir={tmp_path}"
        )
        assert f"{HELD}.{EXTERNAL}" in listed.splitlines()
        printed = await run(*kubectl, "get", "--raw", f"{base}/pods/*/{WAITING}")
        assert len(json.loads(printed)["items"]) == 2

        # A refusal is a Status that passes through the API server.
        with pytest.raises(RefusedByApi) as refused:
            await asyncio.to_thread(api.get, f"{base}/pods/*/igw_endpoint_waiting_request")
        assert (refused.value.status, refused.value.reason) == (404, "NotFound")
        assert f"did you mean {WAITING}?" in refused.value.message

        # A user of the cluster without the role may not; the API server passes its name on.
        stranger = api_of(control_plane, create_service_account(api, namespace, "stranger"))
        with pytest.raises(RefusedByApi) as refused:
            await asyncio.to_thread(stranger.get, f"{base}/pods/*/{WAITING}")
        assert refused.value.status == 403

        # Beside the API server: forged headers are worth nothing, and a token for another audience neither.
        reader = create_service_account(api, namespace, "reader")
        grant(api, reader, [{"apiGroups": [CUSTOM], "resources": ["*"], "verbs": ["get"]}])
        direct = f"{agent.url}{base}/pods/*/{WAITING}"
        forged = {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}
        assert await status(direct, agent.ca, forged) == 401
        elsewhere = request_token(api, reader, audiences=["elsewhere"])
        assert await status(direct, agent.ca, {"Authorization": f"Bearer {elsewhere}"}) == 401
        own = {"Authorization": f"Bearer {request_token(api, reader)}"}
        await found(lambda: status(direct, agent.ca, own), lambda code: code == 200, what="an answer to the reader")

        # A pod that is deleted is gone from the next read; one that is blind withholds the list of two.
        await agent.pods.stop_server("a")
        down = await found(lambda: asyncio.to_thread(refusal, api, f"{base}/pods/*/{WAITING}"), what="a refusal")
        assert down is not None
        assert (down.status, down.reason) == (503, "ServiceUnavailable")
        assert down.message.startswith(f"1 of 2 pods have {WAITING}, below the coverage of 0.8, so none is served")
        await agent.pods.remove("a")
        await agent.live.has(agent.pods.address("b"))
        assert [item["describedObject"]["name"] for item in (await raw(api, f"{base}/pods/*/{WAITING}"))["items"]] == [
            "b"
        ]
        assert all(state.startswith("True") for state in available(api).values())
        assert "ok" in {event.result for event in agent.live.recorder.of(MetricsRead)}


async def test_the_hpa_scales_on_a_metric_of_pods_and_holds_while_it_is_withheld(
    control_plane: ControlPlane, namespace: str, crds: list[str], tmp_path: Path, pod_addresses: PodAddresses
) -> None:
    api = control_plane.api
    async with aggregated(control_plane, namespace, tmp_path, pod_addresses) as agent, agent.pods.follow():
        api.create(deployment(namespace, "chat", 2, LABELS))
        await eventually(lambda: len(agent.live.endpoints()) == 2, what="two endpoints")
        await all_available(api)
        api.create(autoscaler(namespace))
        await found(lambda: asyncio.to_thread(desired, api, namespace), lambda count: count == 4, within=60)
        # Half of the pods fall silent: the list is withheld, and the number of replicas stays.
        await eventually(lambda: len(agent.live.endpoints()) == 4, what="four endpoints")
        for name in sorted(agent.pods.running)[:2]:
            await agent.pods.stop_server(name)
        condition = await found(
            lambda: asyncio.to_thread(scaling_active, api, namespace),
            lambda each: each.get("status") == "False",
            within=60,
            what="ScalingActive=False",
        )
        assert "below the coverage of 0.8" in condition["message"]
        assert desired(api, namespace) == 4


def autoscaler(namespace: str) -> Object:
    metric = {
        "type": "Pods",
        "pods": {"metric": {"name": WAITING}, "target": {"type": "AverageValue", "averageValue": "5"}},
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "chat", "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "minReplicas": 1,
            "maxReplicas": 4,
            "metrics": [metric],
        },
    }


def _hpa(api: Api, namespace: str) -> Object:
    found: Object = api.get(f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers/chat")
    return found


def desired(api: Api, namespace: str) -> int:
    return int(_hpa(api, namespace).get("status", {}).get("desiredReplicas", 0))


def scaling_active(api: Api, namespace: str) -> Object:
    conditions = _hpa(api, namespace).get("status", {}).get("conditions", ())
    return next((each for each in conditions if each["type"] == "ScalingActive"), {})


def refusal(api: Api, path: str) -> RefusedByApi | None:
    try:
        api.get(path)
    except RefusedByApi as refused:
        return refused
    return None


def administrator(control_plane: ControlPlane) -> Path:
    pair = control_plane.admin
    return control_plane.kubeconfig(
        "metrics", {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
    )


async def run(*command: str) -> str:
    """What a program prints."""
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


async def status(url: str, ca: Path, headers: dict[str, str]) -> int:
    import ssl

    tls = ssl.create_default_context(cafile=str(ca))
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers, ssl=tls) as answer:
        return answer.status
