"""Pods of a real control plane for the benches: thousands of them, whose addresses one nginx serves.

The pods have no kubelet; their status is written here. All have one target port, the port of `NginxFleet`.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

import aiohttp
import orjson

from tests.cluster.addresses import PodAddresses
from tests.cluster.api import MERGE
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import pod_spec, pod_status

NAMESPACE: Final = "bench"
POOL: Final = "servers"
LABELS: Final = {"app": "bench"}
_AT_ONCE: Final = 16  # requests to the API server at the same time


class KubePods:
    """The pods of the namespace. `addresses` has `host:port` of each by its name."""

    def __init__(self, control_plane: ControlPlane, port: int) -> None:
        self.addresses: dict[str, str] = {}
        self._plane = control_plane
        self._port = port
        self._block = PodAddresses()
        self._numbers = itertools.count(1)
        self._client: aiohttp.ClientSession | None = None
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._path = f"/api/v1/namespaces/{NAMESPACE}/pods"

    async def __aenter__(self) -> Self:
        tls = ssl.create_default_context(cafile=str(self._plane.client_ca))
        tls.load_cert_chain(self._plane.admin.certificate, self._plane.admin.key)
        connector = aiohttp.TCPConnector(ssl=tls, limit=_AT_ONCE)
        self._client = aiohttp.ClientSession(self._plane.url, connector=connector)
        api = self._plane.api
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        spec = {
            "selector": {"matchLabels": LABELS},
            "targetPorts": [{"number": self._port}],
            "endpointPickerRef": {"name": "picker", "port": {"number": 9002}},
        }
        metadata = {"namespace": NAMESPACE, "name": POOL}
        version = "inference.networking.k8s.io/v1"
        api.create({"apiVersion": version, "kind": "InferencePool", "metadata": metadata, "spec": spec})
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()
        self._block.close()

    async def create(self, count: int) -> list[str]:
        """New ready pods; their names."""
        return list(await asyncio.gather(*(self._create() for _ in range(count))))

    async def delete(self, names: Iterable[str], grace_seconds: int = 0) -> None:
        """Delete pods."""
        await asyncio.gather(*(self._delete(name, grace_seconds) for name in names))

    async def touch(self, names: Iterable[str], value: str) -> None:
        """Change an annotation of pods, of which nothing of the pool depends."""
        patch = {"metadata": {"annotations": {"example.com/touched": value}}}
        await asyncio.gather(*(self._send("PATCH", f"{self._path}/{name}", patch) for name in names))

    async def set_ready(self, names: Iterable[str], *, ready: bool) -> None:
        """Set or clear the condition Ready of pods."""
        await asyncio.gather(*(self._write_status(name, ready=ready) for name in names))

    async def _create(self) -> str:
        name = f"server-{next(self._numbers)}"
        metadata = {"name": name, "namespace": NAMESPACE, "labels": LABELS}
        spec = {"nodeName": "node-1", **pod_spec([self._port])}
        self.addresses[name] = f"{self._block.next()}:{self._port}"
        await self._send("POST", self._path, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        await self._write_status(name, ready=True)
        return name

    async def _delete(self, name: str, grace_seconds: int) -> None:
        await self._send("DELETE", f"{self._path}/{name}?gracePeriodSeconds={grace_seconds}", None)
        if not grace_seconds:
            self.addresses.pop(name, None)

    async def _write_status(self, name: str, *, ready: bool) -> None:
        status = pod_status(["server"], self.addresses[name].rpartition(":")[0], ready=ready)
        await self._send("PATCH", f"{self._path}/{name}/status", {"status": status})

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> None:
        assert self._client is not None
        headers = {"Content-Type": MERGE if method == "PATCH" else "application/json"}
        data = None if body is None else orjson.dumps(body)
        async with self._free, self._client.request(method, path, data=data, headers=headers) as response:
            if response.status >= 300:
                raise RuntimeError(f"{method} {path}: {response.status} {(await response.text())[:500]}")
