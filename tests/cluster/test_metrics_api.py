"""The metrics APIs behind a real aggregation layer, read as kubectl and the HPA read them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.events.metrics_api import MetricsApiProblem, MetricsRead
from agent.serve.metrics_api.answer import POOLS
from agent.serve.metrics_api.paths import CUSTOM, EXTERNAL
from tests.cluster import programs
from tests.cluster.access import api_of, create_service_account, grant, request_token
from tests.cluster.addresses import PodAddresses
from tests.cluster.aggregation import (
    API_SERVICES,
    SECRET,
    SERVICES,
    aggregated,
    all_available,
    available,
    shipped,
)
from tests.cluster.api import Api, Object, RefusedByApi
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import deployment
from tests.cluster.test_discovery import LABELS
from tests.cluster.test_least_privilege import grants
from tests.fakes.metric_values import AVERAGE_QUEUE, HELD, WAITING
from tests.fakes.model_server import ModelServer
from tests.waiting import eventually, found


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
    async with aggregated(control_plane, namespace, tmp_path, pod_addresses, Queues().serve) as agent:
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
        # The API server merges the OpenAPI documents of the agent into its own.
        merged = await found(
            lambda: asyncio.to_thread(api.get, "/openapi/v2"),
            lambda document: f"/apis/{EXTERNAL}/v1beta1/" in document["paths"],
            60,
            what="the OpenAPI document",
        )
        assert f"/apis/{CUSTOM}/v1beta2/" in merged["paths"]
        assert f"apis/{CUSTOM}/v1beta2" in (await asyncio.to_thread(api.get, "/openapi/v3"))["paths"]


async def test_the_hpa_scales_on_a_metric_of_pods_and_holds_while_it_is_withheld(
    control_plane: ControlPlane, namespace: str, crds: list[str], tmp_path: Path, pod_addresses: PodAddresses
) -> None:
    api = control_plane.api
    async with (
        aggregated(control_plane, namespace, tmp_path, pod_addresses, Queues().serve) as agent,
        agent.pods.follow(),
    ):
        api.create(deployment(namespace, "chat", 2, LABELS))
        await eventually(lambda: len(agent.live.endpoints()) == 2, what="two endpoints")
        await all_available(api)
        api.create(autoscaler(namespace))
        await found(lambda: asyncio.to_thread(desired, api, namespace), lambda count: count == 4, within=60)
        printed = await run(
            *(str(programs.find()["kubectl"]), f"--kubeconfig={administrator(control_plane)}"),
            *("get", "hpa", "chat", "-n", namespace, "--no-headers"),
        )
        assert "10/5" in printed
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


async def test_the_agent_keeps_a_serving_ca_of_its_own_and_names_a_foreign_owner(
    control_plane: ControlPlane, namespace: str, crds: list[str], tmp_path: Path, pod_addresses: PodAddresses
) -> None:
    api = control_plane.api
    mark = control_plane.audit.mark()
    async with aggregated(control_plane, namespace, tmp_path, pod_addresses, Queues().serve, own_ca=True) as agent:
        await agent.pods.create("a", LABELS)
        await agent.live.has(agent.pods.address("a"))
        path = f"/apis/{CUSTOM}/v1beta2/namespaces/{namespace}/pods/*/{WAITING}"
        await found(
            lambda: asyncio.to_thread(values, api, path), lambda read: read == ["10"], 60, what="a verified read"
        )
        first = bundles(api)
        assert len(set(first.values())) == 1
        secret = f"/api/v1/namespaces/{namespace}/secrets/{SECRET}"
        assert (await asyncio.to_thread(api.get, secret))["data"]["ca.crt"] == next(iter(first.values()))

        # A Secret that is lost is made again, and the APIServices trust the new CA before it is served.
        await asyncio.to_thread(api.delete, secret)
        await found(
            lambda: asyncio.to_thread(bundles, api),
            lambda now: all(now.values()) and not set(now.values()) & set(first.values()),
            60,
            what="the next CA",
        )
        await found(
            lambda: asyncio.to_thread(values, api, path), lambda read: read == ["10"], 60, what="a verified read"
        )

        # One that is damaged is replaced.
        await asyncio.to_thread(api.patch, secret, {"data": {"tls.crt": "bm90aGluZw=="}})
        await found(
            lambda: asyncio.to_thread(api.get, secret),
            lambda each: each["data"]["tls.crt"] != "bm90aGluZw==",
            60,
            what="the Secret as before",
        )

        # An APIService of another owner is left alone and named.
        name = f"v1beta1.{EXTERNAL}"
        foreign = {"namespace": "keda", "name": "keda-operator-metrics-apiserver"}
        change = {"spec": {"service": foreign, "caBundle": None, "insecureSkipTLSVerify": True}}
        await asyncio.to_thread(api.patch, f"{API_SERVICES}/{name}", change)
        await asyncio.to_thread(api.delete, secret)
        problem = await eventually(
            lambda: [each.detail for each in agent.live.recorder.of(MetricsApiProblem) if "belongs to" in each.detail],
            within=60,
            what="the foreign owner",
        )
        assert problem[0] == (
            f"APIService {name} belongs to KEDA (Service keda/keda-operator-metrics-apiserver); write "
            "metricsApi.external: false and leave out deploy/kubernetes/metrics-api-external, or remove KEDA first"
        )
        assert not bundles(api)[name]

        # The shipped rights are what the agent needs, and no more.
        records = control_plane.audit.records(agent.account.user, since=mark)
        assert control_plane.audit.denied(agent.account.user, since=mark) == []
        granted = list(grants(shipped("metrics-api", tmp_path / "rights", namespace)))
        assert len(granted) > 8
        unused = [
            each
            for each in granted
            if not any(
                each._replace(namespace=each.namespace or record.namespace).used_by(record) for record in records
            )
        ]
        assert unused == []


def values(api: Api, path: str) -> list[str] | None:
    """The values of a metric of pods; None while the aggregation layer does not reach the agent."""
    try:
        return [item["value"] for item in api.get(path)["items"]]
    except RefusedByApi:
        return None


def bundles(api: Api) -> dict[str, str]:
    """The caBundle of each APIService."""
    read = {name: api.get(f"{API_SERVICES}/{name}") for name in SERVICES}
    return {name: each["spec"].get("caBundle") or "" for name, each in read.items()}
