"""Pods whose status the tests write: what the API server and its controllers see, and what their addresses answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.cluster.addresses import PodAddresses
from tests.cluster.api import RefusedByApi
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import Pods, deployment, emulated
from tests.waiting import found

LABELS = {"app": "llm"}


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = {item["type"]: item["status"] for item in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"


async def served_by(address: str) -> str:
    """The address that the server there says it has."""
    async with aiohttp.ClientSession() as client, client.get(f"http://{address}/v1/anything") as answer:
        name: str = json.loads(await answer.read())["server"]
        return name


async def test_a_ready_pod_answers_at_its_address(control_plane: ControlPlane, namespace: str, pods: Pods) -> None:
    first = await pods.create("one", LABELS)
    second = await pods.create("two", LABELS, node="node-2", annotations={"note": "x"})
    assert is_ready(first)
    assert first["status"]["phase"] == "Running"
    assert [pod["spec"]["nodeName"] for pod in (first, second)] == ["node-1", "node-2"]
    for pod in (first, second):
        address = f"{pod['status']['podIP']}:8000"
        assert address == pods.address(pod["metadata"]["name"])
        assert await served_by(address) == address
    assert first["status"]["podIP"] != second["status"]["podIP"]
    assert control_plane.api.get(f"/api/v1/namespaces/{namespace}/pods/one")["status"] == first["status"]


async def test_a_pod_that_is_not_ready_yet_has_no_address(pods: Pods) -> None:
    pending = await pods.create("one", LABELS, ready=False)
    assert pending["status"]["phase"] == "Pending"
    assert "podIP" not in pending["status"]
    assert is_ready(await pods.make_ready("one"))


async def test_an_unready_pod_keeps_its_address_and_its_server(pods: Pods) -> None:
    address = (await pods.create("one", LABELS))["status"]["podIP"]
    unready = await pods.make_unready("one")
    assert not is_ready(unready)
    assert unready["status"]["podIP"] == address
    assert await served_by(pods.address("one")) == pods.address("one")
    again = await pods.make_ready("one")
    assert is_ready(again)
    assert again["status"]["podIP"] == address


async def test_a_terminating_pod_serves_until_it_is_removed(
    control_plane: ControlPlane, namespace: str, pods: Pods
) -> None:
    await pods.create("one", LABELS)
    address = pods.address("one")
    deleted = await pods.terminate("one", grace=20)
    assert deleted["metadata"]["deletionGracePeriodSeconds"] == 20
    seen = control_plane.api.get(f"/api/v1/namespaces/{namespace}/pods/one")
    assert "deletionTimestamp" in seen["metadata"]
    assert is_ready(seen)
    assert await served_by(address) == address
    await pods.remove("one")
    with pytest.raises(RefusedByApi, match="404"):
        control_plane.api.get(f"/api/v1/namespaces/{namespace}/pods/one")
    with pytest.raises(aiohttp.ClientConnectorError):
        await served_by(address)


async def test_a_replaced_pod_has_the_name_another_uid_and_another_address(pods: Pods) -> None:
    old = await pods.create("one", LABELS, annotations={"note": "x"})
    new = await pods.replace("one")
    assert new["metadata"]["name"] == old["metadata"]["name"]
    assert new["metadata"]["labels"] == old["metadata"]["labels"]
    assert new["metadata"]["annotations"] == old["metadata"]["annotations"]
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert new["status"]["podIP"] != old["status"]["podIP"]
    assert await served_by(pods.address("one")) == pods.address("one")
    with pytest.raises(aiohttp.ClientConnectorError):
        await served_by(f"{old['status']['podIP']}:8000")


async def test_a_server_that_stops_leaves_the_status_as_it_was(
    control_plane: ControlPlane, namespace: str, pods: Pods
) -> None:
    await pods.create("one", LABELS)
    await pods.stop_server("one")
    with pytest.raises(aiohttp.ClientConnectorError):
        await served_by(pods.address("one"))
    assert is_ready(control_plane.api.get(f"/api/v1/namespaces/{namespace}/pods/one"))


async def test_the_pods_of_a_deployment_become_ready_and_follow_its_size(
    control_plane: ControlPlane, namespace: str, pods: Pods
) -> None:
    api = control_plane.api
    manifest = deployment(namespace, "llm", 3, LABELS)
    path = api.path_of(manifest)

    async def ready_replicas() -> int:
        read: dict[str, Any] = await asyncio.to_thread(api.get, path)
        ready: int = read.get("status", {}).get("readyReplicas", 0)
        return ready

    async def servers() -> int:
        return len(pods.running)

    async with pods.follow():
        await asyncio.to_thread(api.create, manifest)
        assert await found(ready_replicas, lambda count: count == 3, what="three ready pods")
        for name in list(pods.running):
            assert await served_by(pods.address(name)) == pods.address(name)
        await asyncio.to_thread(api.patch, path, {"spec": {"replicas": 1}})
        assert await found(ready_replicas, lambda count: count == 1, what="one ready pod")
        await found(servers, lambda count: count == 1, what="the end of the servers of the others")
        gone = next(iter(pods.running))
        await pods.terminate(gone)
        await found(servers, lambda count: count == 1 and gone not in pods.running, what="another pod in its place")
        assert await found(ready_replicas, lambda count: count == 1, what="that pod is ready")


async def test_a_pod_may_run_an_emulated_model_server_on_several_ports(
    control_plane: ControlPlane, namespace: str, pod_addresses: PodAddresses
) -> None:
    ranks = Pods(control_plane, namespace, pod_addresses, ports=(8000, 8001), serve=emulated)
    pod = await ranks.create("ranks", LABELS)
    ports = pod["spec"]["containers"][0]["ports"]
    assert [item["containerPort"] for item in ports] == [8000, 8001]
    async with aiohttp.ClientSession() as client:
        for port in (8000, 8001):
            async with client.get(f"http://{pod['status']['podIP']}:{port}/metrics") as answer:
                assert b"vllm:num_requests_running" in await answer.read()
    await ranks.close()


def test_two_runs_have_different_addresses(pod_addresses: PodAddresses) -> None:
    other = PodAddresses()
    blocks = {address.rpartition(".")[0] for address in (pod_addresses.next(), other.next())}
    other.close()
    assert len(blocks) == 2
    assert all(block.startswith("127.") for block in blocks)
