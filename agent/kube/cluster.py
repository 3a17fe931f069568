"""The cluster that the agent reads: one client and the threads of its informers, made when a pool first needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agent.clock import Clock
from agent.kube.cache import ObjectCache
from agent.kube.errors import NoCluster
from agent.kube.informer import Informer
from agent.kube.threads import DaemonThreads

if TYPE_CHECKING:
    from agent.kube.client import KubeClient

T = TypeVar("T")
NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
POOLS_PATH: Final = "/apis/inference.networking.k8s.io/v1/namespaces/{namespace}/inferencepools"
PODS_PATH: Final = "/api/v1/namespaces/{namespace}/pods"


class Cluster:
    """The API server of `kubeconfig`, or of the cluster that the agent runs in."""

    def __init__(self, kubeconfig: str, clock: Clock) -> None:
        self._kubeconfig = kubeconfig
        self._clock = clock
        self._executor = DaemonThreads("kube")
        self._client: KubeClient | None = None
        self._lock = asyncio.Lock()

    async def connect(self) -> KubeClient:
        """The client. Raises NoCluster. It is made in a thread, because importing it takes a second."""
        async with self._lock:
            if self._client is None:
                self._client = await self.run(_new_client, self._kubeconfig)
        return self._client

    async def run(self, call: Callable[..., T], *arguments: object) -> T:
        """The result of a blocking call of the client, made in a thread of the cluster's."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)

    def informer(
        self,
        client: KubeClient,
        cache: ObjectCache[Any],
        path: str,
        selectors: Mapping[str, str],
        on_change: Callable[[], None],
    ) -> Informer:
        """An informer that is not running yet."""
        return Informer(client, cache, path, selectors, self._clock, self._executor, on_change)

    def close(self) -> None:
        """End all connections and threads."""
        if self._client is not None:
            self._client.close()
        self._executor.shutdown()


def missing_client() -> str:
    """What to install where the client is not installed; empty where it is."""
    if find_spec("kubernetes") is not None:
        return ""
    return "the package `kubernetes` is not installed; pip install 'inference-gateway-agent[kubernetes]'"


def _new_client(kubeconfig: str) -> KubeClient:
    missing = missing_client()
    if missing:
        raise NoCluster(missing)
    from agent.kube.client import KubeClient

    return KubeClient(kubeconfig)


def own_namespace(file: Path = NAMESPACE_FILE) -> str:
    """The namespace that the agent runs in. Raises NoCluster outside a cluster."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise NoCluster("the agent runs outside a cluster, so it has no namespace; set the pool's namespace") from error
