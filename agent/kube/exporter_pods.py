"""The pods of accelerator exporters, found by labels and joined with endpoints by node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from agent.config.addresses import join_address
from agent.kube.cache import ObjectCache, decoder_of
from agent.kube.cluster import PODS_PATH, Cluster
from agent.kube.errors import NoCluster
from agent.kube.informer import Informer
from agent.kube.objects import Pod, PodView, pod_view

RETRY_SECONDS: Final = 5.0  # between two tries to find a cluster's configuration

_POD: Final = decoder_of(Pod)


class ExporterSelector(NamedTuple):
    """Which pods are exporters."""

    namespace: str
    match_labels: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        labels = ",".join(f"{name}={value}" for name, value in self.match_labels)
        return f"pods of namespace {self.namespace} with the labels {labels}"


class ExporterPods:
    """Follows the pods of one selector. `on_change` is called on the event loop after each change."""

    def __init__(self, selector: ExporterSelector, cluster: Cluster, on_change: Callable[[], None]) -> None:
        self.selector = selector
        self._cluster = cluster
        self._on_change = on_change
        self._pods: ObjectCache[PodView] = ObjectCache(lambda raw: pod_view(_POD(raw)))
        self._informer: Informer | None = None
        self._failing = ""

    async def run(self) -> None:
        """Keep the pods current until it is cancelled."""
        selector = self.selector
        while True:
            try:
                client = await self._cluster.connect()
                break
            except NoCluster as error:
                self._failing = str(error)
                self._on_change()
                await asyncio.sleep(RETRY_SECONDS)
        labels = ",".join(f"{name}={value}" for name, value in selector.match_labels)
        path = PODS_PATH.format(namespace=selector.namespace)
        self._informer = self._cluster.informer(client, self._pods, path, {"labelSelector": labels}, self._on_change)
        await self._informer.run()

    @property
    def listed(self) -> bool:
        """Whether the pods were listed once."""
        return self._informer is not None and self._informer.status.synced

    @property
    def failing(self) -> str:
        """Why the pods are not known, or may be out of date; empty where they are current."""
        if self._informer is None:
            return self._failing
        return (
            "" if self._informer.cache.listed and not self._informer.status.failing else self._informer.status.failing
        )

    def addresses(self, port: int) -> Mapping[str, str]:
        """Where the exporter of each node listens."""
        return exporter_addresses(self._pods.objects.values(), port)


def exporter_addresses(pods: Iterable[PodView], port: int) -> dict[str, str]:
    """Node -> address of the exporter there: a pod that has an address and is not being deleted; of several on one node
    a ready one, and of these the first by name."""
    found: dict[str, tuple[bool, str, str]] = {}
    for pod in pods:
        if pod.node and pod.ip and not pod.terminating:
            candidate = (not pod.ready, pod.name, join_address(pod.ip, port))
            if pod.node not in found or candidate < found[pod.node]:
                found[pod.node] = candidate
    return {node: address for node, (_, _, address) in found.items()}
