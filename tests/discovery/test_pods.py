"""The endpoints of a pool from an API server: an InferencePool and its pods, or a selector."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.discovery.endpoints import EndpointSet
from agent.discovery.pods import KubernetesDiscovery, PodSource
from agent.engine_specs import ENGINE_LABELS
from agent.kube import informer as informer_module
from agent.kube.cluster import Cluster
from agent.state.source import SourceStatus
from tests.fakes.api_server import FakeApiServer, pod
from tests.waiting import eventually

POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/ns/inferencepools"
PODS = "/api/v1/namespaces/ns/pods"


def inference_pool(*ports: int, version: int = 1, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "llama", "namespace": "ns", "uid": "u", "resourceVersion": str(version)},
        "spec": {
            "selector": {"matchLabels": labels or {"app": "llama"}},
            "targetPorts": [{"number": port} for port in ports or (8000,)],
        },
    }


class Bench:
    """A discovery, its API server, and what it has yielded and reported."""

    def __init__(self, server: FakeApiServer, folder: Path) -> None:
        self.server = server
        self.cluster = Cluster(server.kubeconfig(folder), SystemClock())
        self.sets: list[EndpointSet] = []
        self.reports: list[SourceStatus] = []
        self._task: asyncio.Task[None] | None = None

    def start(self, inference_pool: str = "llama") -> None:
        source = PodSource(
            "ns", inference_pool, (("app", "llama"),), (9000,), "vllm", ENGINE_LABELS, frozenset({"vllm", "sglang"})
        )
        discovery = KubernetesDiscovery(source, self.cluster, self.reports.append)

        async def follow() -> None:
            async for found in discovery.watch():
                self.sets.append(found)

        self._task = asyncio.get_running_loop().create_task(follow())

    async def addresses(self, *expected: str) -> bool:
        """Whether these are the addresses of the last set, once they are."""
        return await eventually(
            lambda: bool(self.sets) and sorted(self.sets[-1].endpoints) == sorted(expected), what=str(expected)
        )

    async def problem(self, reason: str) -> str:
        """The message of the problem with this reason, once it is reported."""
        await eventually(lambda: self.reports and reason in [each.reason for each in self.reports[-1].problems])
        return next(each.message for each in self.reports[-1].problems if each.reason == reason)

    async def no_problem(self) -> None:
        await eventually(lambda: self.reports and self.reports[-1].problems == ())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.cluster.close()


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(informer_module, "FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(informer_module, "MAX_BACKOFF_SECONDS", 0.1)
    server = FakeApiServer(
        collections={POOLS: [inference_pool()], PODS: [pod("a", ip="10.0.0.1"), pod("b", ip="10.0.0.2")]}
    )
    await server.start()
    one = Bench(server, tmp_path)
    yield one
    await one.stop()
    await server.stop()


async def test_the_pods_of_an_inference_pool_are_its_endpoints(bench: Bench) -> None:
    bench.start()
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.2:8000")
    endpoint = bench.sets[-1].endpoints["10.0.0.1:8000"]
    assert (endpoint.pod, endpoint.node) == ("ns/a", "n1")
    assert bench.sets[-1].uids["10.0.0.1:8000"] == "uid-a-1"
    await bench.no_problem()


async def test_without_an_inference_pool_labels_and_ports_of_the_configuration_select(bench: Bench) -> None:
    bench.start("")
    assert await bench.addresses("10.0.0.1:9000", "10.0.0.2:9000")


async def test_a_deleted_pod_and_one_that_is_not_ready_leave_the_set(bench: Bench) -> None:
    bench.start()
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.2:8000")
    pods = await bench.server.watch(PODS)
    pods.event("DELETED", pod("a", 11))
    assert await bench.addresses("10.0.0.2:8000")
    ill = pod("b", 12, ip="10.0.0.2")
    ill["status"]["conditions"][0]["status"] = "False"
    pods.event("MODIFIED", ill)
    assert await bench.addresses()
    assert "none is ready" in await bench.problem("NoReadyPods")


async def test_a_pod_that_is_replaced_under_its_name_has_another_uid(bench: Bench) -> None:
    bench.start()
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.2:8000")
    pods = await bench.server.watch(PODS)
    pods.event("MODIFIED", pod("a", 11, ip="10.0.0.1"))
    await eventually(lambda: bench.sets[-1].uids["10.0.0.1:8000"] == "uid-a-11")


async def test_other_target_ports_and_another_selector_take_effect(bench: Bench) -> None:
    bench.start()
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.2:8000")
    pools = await bench.server.watch(POOLS)
    pools.event("MODIFIED", inference_pool(8000, 8001, version=11))
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.2:8000", "10.0.0.2:8001")
    bench.server.collections[PODS] = [pod("g", ip="10.0.0.7", app="gemma")]
    pools.event("MODIFIED", inference_pool(version=12, app="gemma"))
    assert await bench.addresses("10.0.0.7:8000")


async def test_a_pool_that_does_not_exist_is_named_and_comes_later(bench: Bench) -> None:
    bench.server.collections[POOLS] = []
    bench.start()
    assert await bench.addresses()
    assert "InferencePool ns/llama does not exist" in await bench.problem("InferencePoolNotFound")
    pools = await bench.server.watch(POOLS)
    pools.event("ADDED", inference_pool(version=11))
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.2:8000")
    pools.event("DELETED", inference_pool(version=12))
    assert await bench.addresses()


async def test_a_kind_that_is_not_installed_is_named(bench: Bench) -> None:
    del bench.server.collections[POOLS]
    bench.start()
    assert "install the CRDs" in await bench.problem("KindNotInstalled")
    bench.server.collections[POOLS] = [inference_pool()]
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.2:8000")
    await bench.no_problem()


async def test_while_the_api_server_is_away_the_last_endpoints_stay(bench: Bench) -> None:
    bench.start()
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.2:8000")
    await bench.server.watch(PODS)
    await bench.server.stop()
    assert "the last known endpoints are kept" in await bench.problem("ApiUnavailable")
    assert len(bench.sets) == 1


async def test_an_invalid_pool_keeps_the_last_selection_and_is_named(bench: Bench) -> None:
    bench.start()
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.2:8000")
    pools = await bench.server.watch(POOLS)
    bad = inference_pool(version=11)
    bad["spec"]["targetPorts"] = "8000"
    pools.event("MODIFIED", bad)
    assert "targetPorts" in await bench.problem("InvalidObject")
    assert len(bench.sets) == 1
    pools.event("MODIFIED", inference_pool(9000, version=12))
    assert await bench.addresses("10.0.0.1:9000", "10.0.0.2:9000")


async def test_the_status_says_whether_the_endpoints_are_current_and_since_when_they_are_not(bench: Bench) -> None:
    bench.start()
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.2:8000")
    await eventually(lambda: bench.reports[-1].current)
    assert bench.reports[-1].age(0.0) == 0.0
    assert bench.reports[0] == SourceStatus("InferencePool ns/llama", current=False, known_at=None)
    pods = await bench.server.watch(PODS)
    pods.event("DELETED", pod("b", 11))
    assert await bench.addresses("10.0.0.1:8000")
    now = SystemClock().now()
    bench.server.refuse = 500
    pods.end()
    await bench.problem("ApiUnavailable")
    assert not bench.reports[-1].current
    assert bench.reports[-1].known_at is not None
    assert bench.reports[-1].known_at <= now
    bench.server.refuse = None
    await bench.no_problem()
    await eventually(lambda: bench.reports[-1].current)


@pytest.mark.parametrize(
    ("status", "reason", "remedy"),
    [
        (401, "Unauthorized", "kubernetes.kubeconfig"),
        (403, "Forbidden", "deploy/kubernetes/pools"),
        (429, "ApiUnavailable", "429"),
        (500, "ApiUnavailable", "500"),
    ],
)
async def test_a_refusal_is_named_with_its_remedy_and_ends(bench: Bench, status: int, reason: str, remedy: str) -> None:
    bench.start()
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.2:8000")
    bench.server.refuse = status
    (await bench.server.watch(PODS)).end()
    assert remedy in await bench.problem(reason)
    assert len(bench.sets) == 1
    bench.server.refuse = None
    await bench.no_problem()


async def test_a_target_port_that_no_pod_declares_and_a_selector_that_matches_nothing_are_named(bench: Bench) -> None:
    for each in bench.server.collections[PODS]:
        each["spec"]["containers"][0]["ports"] = [{"containerPort": 9000}]
    bench.start()
    assert "target port 8000" in await bench.problem("TargetPortNotDeclared")
    assert await bench.addresses("10.0.0.1:8000", "10.0.0.2:8000")
    pools = await bench.server.watch(POOLS)
    bench.server.collections[PODS] = []
    pools.event("MODIFIED", inference_pool(version=11, app="absent"))
    assert "app=absent" in await bench.problem("NoMatchingPods")
    assert await bench.addresses()
