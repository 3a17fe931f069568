"""The autoscalers of a pool in an agent whose API server a test controls."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from agent.app.vocabulary import VOCABULARY
from agent.config.file import load
from agent.events.kubernetes import ObjectProblemFound, ObjectProblemSolved
from agent.kube.autoscalers import AUTOSCALERS_PATH
from tests.app.live import Live, servers
from tests.app.test_pods import SELECTOR, api, pod_at, written
from tests.fakes.api_server import PODS, FakeApiServer
from tests.fakes.autoscalers import autoscaler_document
from tests.waiting import eventually, found

__all__ = ["api"]  # a fixture

PATH = AUTOSCALERS_PATH.format(namespace="ns")
OWNER = {"kind": "ReplicaSet", "name": "chat-75bf", "controller": True}
ALL = {"desired_replicas": 3, "current_replicas": 2, "min_replicas": 1, "max_replicas": 4, "scaling_active": 1}


def document(version: int = 1, **changes: Any) -> dict[str, Any]:
    made = autoscaler_document(namespace="ns", **changes)
    made["metadata"]["resourceVersion"] = str(version)
    return made


def owned(address: str) -> dict[str, Any]:
    """A pod of the Deployment `chat`."""
    pod = pod_at(address)
    pod["metadata"]["ownerReferences"] = [OWNER]
    pod["metadata"]["labels"]["pod-template-hash"] = "75bf"
    return pod


def write(folder: Path, api: FakeApiServer, port: int, *, autoscalers: bool = True) -> Path:
    pool = {"name": "pods", **SELECTOR, "targetPorts": [port]}
    path = written(folder / "igw.yaml", pool, kubeconfig=api.kubeconfig(folder))
    text = json.loads(path.read_text())
    text["kubernetes"]["autoscalers"] = autoscalers
    path.write_text(json.dumps(text))
    return path


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Live]:
    live = Live(path)
    live.admin = (await live.agent.start()).admin
    try:
        yield live
    finally:
        await live.agent.stop(grace=0)


async def shown(live: Live) -> dict[str, float | str]:
    """The value of each gauge of an autoscaler, or the reason why it is withheld, by the end of its name."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{live.admin}/v1/gauges?pool=pods") as answer:
        gauges = (await answer.json())["gauges"]
    return {
        each["name"].removeprefix("igw_hpa_"): each.get("withheld") or each["value"]
        for each in gauges
        if each["name"].startswith("igw_hpa_")
    }


async def test_the_gauges_follow_the_autoscaler_of_the_pool_s_workload_and_end_with_it(
    tmp_path: Path, api: FakeApiServer
) -> None:
    async with servers(1) as (one,):
        api.collections |= {PODS: [owned(one.address)], PATH: [document()]}
        async with running(write(tmp_path, api, one.port)) as live:
            await found(lambda: shown(live), lambda values: values == ALL)
            watch = await api.watch(PATH)
            watch.event("MODIFIED", document(2, status={"desiredReplicas": 0}))
            unknown = dict.fromkeys(("desired_replicas", "current_replicas", "scaling_active"), "no_status")
            await found(lambda: shown(live), lambda values: values == ALL | unknown)
            watch.event("DELETED", document(3))
            await found(lambda: shown(live), lambda values: values == {})
            assert live.recorder.of(ObjectProblemFound) == []


async def test_what_the_agent_cannot_read_is_named_once_and_stops_nothing_else(
    tmp_path: Path, api: FakeApiServer
) -> None:
    async with servers(1) as (one,):
        api.collections |= {PODS: [owned(one.address)]}
        path = write(tmp_path, api, one.port)
        async with running(path) as live:
            (problem,) = await eventually(lambda: live.recorder.of(ObjectProblemFound), what="a problem")
            assert (problem.kind, problem.object, problem.reason) == ("Namespace", "Namespace ns", "KindNotInstalled")
            assert problem.message.endswith("use Kubernetes 1.23 or later, or set kubernetes.autoscalers to false")
            healthy = [view.health for view in live.agent.pools["pods"].store.snapshot(live.clock.now()).endpoints]
            assert healthy == ["healthy"]
            assert live.agent.readiness() == []
            api.collections[PATH] = [document(maxReplicas="many"), document(1, maxReplicas=9)]
            api.collections[PATH][0]["metadata"]["name"] = "broken"
            (_, problem) = await eventually(lambda: (x := live.recorder.of(ObjectProblemFound)) and x[1:] and x)
            assert problem.reason == "InvalidObject"
            assert problem.message.startswith("HorizontalPodAutoscaler ns/broken is ignored: Expected `int`")
            await found(lambda: shown(live), lambda values: values == ALL | {"max_replicas": 9})
            assert [each.reason for each in live.recorder.of(ObjectProblemSolved)] == ["KindNotInstalled"]


async def test_a_reload_switches_them_on_and_off(tmp_path: Path, api: FakeApiServer) -> None:
    async with servers(1) as (one,):
        api.collections |= {PODS: [owned(one.address)], PATH: [document()]}
        path = write(tmp_path, api, one.port, autoscalers=False)
        async with running(path) as live:
            await eventually(lambda: live.agent.pools["pods"].endpoints)
            assert await shown(live) == {}
            assert PATH not in {watch.path for watch in api.watches}
            write(tmp_path, api, one.port)
            await live.agent.change(load(path, VOCABULARY))
            await found(lambda: shown(live), lambda values: values == ALL)
            write(tmp_path, api, one.port, autoscalers=False)
            await live.agent.change(load(path, VOCABULARY))
            assert await shown(live) == {}
