"""Pools whose servers are pods, in an agent whose API server a test controls."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.app.agent import Agent
from agent.app.component import CannotStart
from agent.app.vocabulary import VOCABULARY
from agent.clock import SystemClock
from agent.config.file import load
from agent.discovery import pods as pods_module
from agent.events.discovery import SourceProblemFound, SourceProblemSolved
from agent.events.scraping import ServerRestarted
from agent.kube import cluster as cluster_module
from agent.kube import informer as informer_module
from tests.app.live import Recorder, servers
from tests.fakes.api_server import PODS, FakeApiServer, pod
from tests.waiting import eventually

SELECTOR = {"selector": {"app": "llama"}, "namespace": "ns"}


def written(path: Path, *pools: dict[str, Any], kubeconfig: str = "") -> Path:
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "admin": {"address": "127.0.0.1:0"},
        "scrape": {"interval": "50ms"},
        "extProc": {"startTimeout": "1s"},
        "kubernetes": {"kubeconfig": kubeconfig or str(path.parent / "no-kubeconfig")},
        "pools": [{"extProcAddress": "127.0.0.1:0", **pool} for pool in pools],
    }
    path.write_text(json.dumps(document))  # JSON is YAML
    return path


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[tuple[Agent, Recorder]]:
    recorder = Recorder(SystemClock())
    agent = Agent(load(path, VOCABULARY), SystemClock(), path=path, instruments=recorder)
    await agent.start()
    try:
        yield agent, recorder
    finally:
        await agent.stop(grace=0)


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeApiServer]:
    monkeypatch.setattr(informer_module, "FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(informer_module, "MAX_BACKOFF_SECONDS", 0.05)
    server = FakeApiServer()
    await server.start()
    yield server
    await server.stop()


def rename(path: str, name: str) -> None:
    Path(path).rename(Path(path).with_name(name))


def pod_at(address: str, name: str = "a", version: int = 1) -> dict[str, Any]:
    """A pod at the host of this address."""
    return pod(name, version, ip=address.rpartition(":")[0])


def healthy(agent: Agent, pool: str) -> list[str]:
    views = agent.pools[pool].store.snapshot(SystemClock().now()).endpoints
    return [view.address for view in views if view.health == "healthy"]


async def test_without_a_cluster_a_pool_of_pods_is_not_ready_and_says_why_and_another_pool_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: FakeApiServer
) -> None:
    monkeypatch.setattr(pods_module, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr("agent.app.pool.FIRST_ENDPOINTS_SECONDS", 0.2)
    async with servers(1) as (one,):
        api.collections[PODS] = [pod_at(one.address)]
        pods = {"name": "pods", **SELECTOR, "targetPorts": [one.port]}
        path = written(tmp_path / "igw.yaml", pods, {"name": "list", "endpoints": [one.address]})
        async with running(path) as (agent, recorder):
            await eventually(lambda: healthy(agent, "list") == [one.address])
            (why,) = agent.readiness()
            assert "pool pods: its endpoints are not known yet" in why
            assert "no-kubeconfig" in why
            assert "set kubernetes.kubeconfig" in why
            assert [(each.pool, each.reason) for each in recorder.of(SourceProblemFound)] == [("pods", "NoCluster")]
            rename(api.kubeconfig(tmp_path), "no-kubeconfig")  # it keeps trying
            await eventually(lambda: healthy(agent, "pods") == [one.address])
            await eventually(lambda: agent.readiness() == [])
            assert [each.reason for each in recorder.of(SourceProblemSolved)] == ["NoCluster"]


async def test_without_the_client_a_pool_of_pods_cannot_start_and_the_error_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "find_spec", lambda _: None)
    path = written(tmp_path / "igw.yaml", {"name": "pods", **SELECTOR, "targetPorts": [8000]})
    with pytest.raises(CannotStart, match=r"pip install 'inference-gateway-agent\[kubernetes\]'"):
        async with running(path):
            pass


async def test_a_reload_to_pods_without_the_client_keeps_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "find_spec", lambda _: None)
    async with servers(1) as (one,):
        path = written(tmp_path / "igw.yaml", {"endpoints": [one.address]})
        async with running(path) as (agent, _):
            await eventually(lambda: healthy(agent, "default") == [one.address])
            written(path, {**SELECTOR, "targetPorts": [8000]})
            assert not await agent.reload()
            assert healthy(agent, "default") == [one.address]


async def test_a_pod_that_is_replaced_under_its_name_and_address_inherits_nothing(
    tmp_path: Path, api: FakeApiServer
) -> None:
    async with servers(1) as (one,):
        api.collections[PODS] = [pod_at(one.address)]
        path = written(
            tmp_path / "igw.yaml",
            {"name": "pods", **SELECTOR, "targetPorts": [one.port]},
            kubeconfig=api.kubeconfig(tmp_path),
        )
        async with running(path) as (agent, recorder):
            store = agent.pools["pods"].store
            await eventually(lambda: healthy(agent, "pods") == [one.address])
            now = SystemClock().now()
            work = store.started(one.address, 1000.0, 10.0, now)
            watch = await api.watch(PODS)
            watch.event("MODIFIED", pod_at(one.address, version=11))
            await eventually(lambda: recorder.of(ServerRestarted))
            (view,) = store.snapshot(SystemClock().now()).endpoints
            assert (view.work.requests, view.prefix.predicted) == (0, 0.0)
            assert view.identity.uid == "uid-a-11"
            store.request_failed(one.address, work, "reset", now)  # of the old pod
            store.ended(work, now)
            (view,) = store.snapshot(SystemClock().now()).endpoints
            assert view.errors is None
            assert view.work.requests == 0


async def test_an_api_server_that_accepts_and_never_answers_delays_no_other_pool_and_no_stop(
    tmp_path: Path, api: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.app.pool.FIRST_ENDPOINTS_SECONDS", 0.2)
    api.silent = True
    async with servers(1) as (one,):
        path = written(
            tmp_path / "igw.yaml",
            {"name": "pods", **SELECTOR, "targetPorts": [8000]},
            {"name": "list", "endpoints": [one.address]},
            kubeconfig=api.kubeconfig(tmp_path),
        )
        async with running(path) as (agent, _):
            await eventually(lambda: healthy(agent, "list") == [one.address])
            assert agent.readiness() == ["pool pods: its endpoints are not known yet"]
