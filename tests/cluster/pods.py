"""Pods without a scheduler and a kubelet: their status is written here, and a model server listens on their address.

A ready pod has an address of 127.0.0.0/8, and a server in the event loop of the test listens there. A deleted pod keeps
its server until it is removed, as a pod does in its grace period.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import aiohttp
import pytest

from agent.clock import SystemClock
from agent.emulator.config import EmulatorConfig, ModelSpec
from agent.emulator.server import EmulatedServer
from tests.cluster.addresses import PodAddresses
from tests.cluster.api import Api, Object, RefusedByApi
from tests.cluster.control_plane import ControlPlane
from tests.fakes.model_server import ModelServer, own_address

PORT: Final = 8000
NODE: Final = "node-1"
IMAGE: Final = "model-server:test"  # no program pulls it


class PodServer(Protocol):
    """What listens on a port of a pod."""

    async def stop(self) -> None: ...


# Starts a server on an address and a port.
StartServer = Callable[[str, int], Awaitable[PodServer]]


async def scripted(address: str, port: int) -> ModelServer:
    """A server whose every answer has its address (tests/fakes/model_server.py)."""
    server = ModelServer(own_address)
    await server.start(port, address)
    return server


async def emulated(address: str, port: int) -> EmulatedServer:
    """An emulated model server, with metrics and completions."""
    server = EmulatedServer(EmulatorConfig(), ModelSpec(), SystemClock(), die=_cannot_die)
    await server.start(address, port)
    return server


def _cannot_die() -> None:
    pytest.fail("the fault `die` ends a process, and this server is in that of the tests")


@dataclass
class RunningPod:
    """A pod with a status: its UID, its address, and its servers by port."""

    uid: str
    address: str
    servers: dict[int, PodServer] = field(default_factory=dict)


class Pods:
    """The pods of one namespace. `running` has those with a status by name; `serve` starts a server."""

    def __init__(
        self,
        control_plane: ControlPlane,
        namespace: str,
        addresses: PodAddresses,
        *,
        ports: Sequence[int] = (PORT,),
        serve: StartServer = scripted,
    ) -> None:
        self._control_plane = control_plane
        self._api: Api = control_plane.api
        self._namespace = namespace
        self._addresses = addresses
        self._ports = tuple(ports)
        self._serve = serve
        self.running: dict[str, RunningPod] = {}

    def address(self, name: str) -> str:
        """host:port of a ready pod's first port."""
        return f"{self.running[name].address}:{self._ports[0]}"

    async def create(
        self,
        name: str,
        labels: Mapping[str, str],
        *,
        annotations: Mapping[str, str] | None = None,
        node: str = NODE,
        ready: bool = True,
    ) -> Object:
        """A new pod on a node; it is ready unless it shall be pending."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self._namespace,
                "labels": dict(labels),
                "annotations": dict(annotations or {}),
            },
            "spec": {"nodeName": node, **pod_spec(self._ports)},
        }
        created: Object = await asyncio.to_thread(self._api.create, pod)
        return await self.make_ready(name) if ready else created

    async def make_ready(self, name: str) -> Object:
        """Start the pod's servers on an address of its own, and set the condition Ready."""
        pod = await self._get(name)
        running = self.running.get(name)
        if running is None or running.uid != pod["metadata"]["uid"]:
            await self._stop_servers(name)
            running = RunningPod(pod["metadata"]["uid"], self._addresses.next())
            self.running[name] = running
            for port in self._ports:
                running.servers[port] = await self._serve(running.address, port)
        return await self._write_status(pod, running.address, ready=True)

    async def make_unready(self, name: str) -> Object:
        """Clear the condition Ready, as after failed readiness probes; the servers go on."""
        return await self._write_status(await self._get(name), self.running[name].address, ready=False)

    async def stop_server(self, name: str) -> None:
        """Close the pod's ports and reset their connections, without a change of its status."""
        for server in self.running[name].servers.values():
            await server.stop()

    async def terminate(self, name: str, grace: int = 30) -> Object:
        """Delete the pod with a grace period: it is terminating, and goes on serving until `remove`."""
        deleted: Object = await asyncio.to_thread(self._api.delete, self._path(name), grace)
        return deleted

    async def remove(self, name: str) -> None:
        """Delete the pod at once and stop its servers: the end of its grace period, or a lost node."""
        with contextlib.suppress(RefusedByApi):  # a pod without a node has no grace period
            await asyncio.to_thread(self._api.delete, self._path(name), 0)
        await self._stop_servers(name)

    async def replace(self, name: str, *, ready: bool = True) -> Object:
        """Another pod under the same name and labels, as a StatefulSet makes it: a new UID and a new address."""
        old = await self._get(name)
        await self.remove(name)
        metadata = old["metadata"]
        return await self.create(
            name,
            metadata["labels"],
            annotations=metadata.get("annotations"),
            node=old["spec"]["nodeName"],
            ready=ready,
        )

    async def close(self) -> None:
        """Stop all servers, and remove what pods the namespace has."""
        for name in list(self.running):
            await self._stop_servers(name)
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        await asyncio.to_thread(self._api.delete, path, 0)

    @contextlib.asynccontextmanager
    async def follow(self, node: str = NODE) -> AsyncIterator[None]:
        """Make every pod of the namespace ready when it appears, and remove it when it is deleted, until the exit.

        For pods that a controller creates. A defect of this work fails the test at the exit.
        """
        task = asyncio.create_task(self._follow(node))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _follow(self, node: str) -> None:
        async for pod in self._watch():
            metadata = pod["metadata"]
            name = metadata["name"]
            with contextlib.suppress(RefusedByApi):  # removed meanwhile
                if "deletionTimestamp" in metadata:
                    await self.remove(name)
                    continue
                if not pod["spec"].get("nodeName"):
                    await self._bind(name, node)
                if name not in self.running or self.running[name].uid != metadata["uid"]:
                    await self.make_ready(name)

    async def _watch(self) -> AsyncIterator[Object]:
        """The pods of the namespace, each after each change."""
        plane = self._control_plane
        tls = ssl.create_default_context(cafile=str(plane.client_ca))
        tls.load_cert_chain(plane.admin.certificate, plane.admin.key)
        url = f"{plane.url}/api/v1/namespaces/{self._namespace}/pods?watch=1&resourceVersion=0"
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url, ssl=tls) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] in {"ADDED", "MODIFIED"}:
                    yield event["object"]

    async def _bind(self, name: str, node: str) -> None:
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        await asyncio.to_thread(self._api.post, f"{self._path(name)}/binding", binding)

    async def _write_status(self, pod: Object, address: str, *, ready: bool) -> Object:
        status = pod_status([item["name"] for item in pod["spec"]["containers"]], address, ready=ready)
        path = f"{self._path(pod['metadata']['name'])}/status"
        written: Object = await asyncio.to_thread(self._api.patch, path, {"status": status})
        return written

    async def _get(self, name: str) -> Object:
        pod: Object = await asyncio.to_thread(self._api.get, self._path(name))
        return pod

    async def _stop_servers(self, name: str) -> None:
        if running := self.running.pop(name, None):
            for server in running.servers.values():
                await server.stop()

    def _path(self, name: str) -> str:
        return f"/api/v1/namespaces/{self._namespace}/pods/{name}"


def pod_spec(ports: Sequence[int] = (PORT,)) -> Object:
    """The spec of a pod with one container that listens on these ports."""
    container = {"name": "server", "image": IMAGE, "ports": [{"containerPort": port} for port in ports]}
    return {"containers": [container], "terminationGracePeriodSeconds": 30}


def pod_status(containers: Sequence[str], address: str, *, ready: bool) -> Object:
    """What a kubelet writes about a running pod (core/v1 PodStatus)."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    state: dict[str, Any] = {"running": {"startedAt": now}}
    conditions = {"Initialized": True, "PodScheduled": True, "ContainersReady": ready, "Ready": ready}
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": now,
        "conditions": [
            {"type": name, "status": str(value), "lastTransitionTime": now} for name, value in conditions.items()
        ],
        "containerStatuses": [
            {
                "name": name,
                "ready": ready,
                "started": True,
                "restartCount": 0,
                "image": IMAGE,
                "imageID": "",
                "state": state,
            }
            for name in containers
        ],
    }


def deployment(namespace: str, name: str, replicas: int, labels: Mapping[str, str]) -> Object:
    """A Deployment of such pods."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": dict(labels)},
            "template": {"metadata": {"labels": dict(labels)}, "spec": pod_spec()},
        },
    }
