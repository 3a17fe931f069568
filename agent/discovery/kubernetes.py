"""Pods as the endpoints of a pool: those of an InferencePool, or of the configuration's labels and ports."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agent.config.config import Config
from agent.config.pools import PoolConfig
from agent.discovery.endpoints import CannotDiscover, DiscoveryParts, EndpointSet
from agent.discovery.pods import KubernetesDiscovery, PodSource
from agent.engines import ENGINES
from agent.kube.cluster import missing_client


class PodDiscovery:
    """The pods of one pool."""

    name = "kubernetes"

    def __init__(self, pool: PoolConfig, parts: DiscoveryParts) -> None:
        """Raises CannotDiscover without the client of the API server."""
        missing = missing_client()
        if missing:
            raise CannotDiscover(f"pool {pool.name} has pods as its servers, and {missing}")
        self._discovery = KubernetesDiscovery(pod_source(pool, parts.config), parts.cluster, parts.report)

    def apply(self, pool: PoolConfig, config: Config) -> None:
        """Other pods from the next stream on."""
        self._discovery.set_source(pod_source(pool, config))

    def refresh(self) -> None:
        """Nothing to look for: the API server sends every change."""

    def watch(self) -> AsyncIterator[EndpointSet]:
        """The endpoints when they are first known, and again with every change."""
        return self._discovery.watch()


def pod_source(pool: PoolConfig, config: Config) -> PodSource:
    """Which pods the pool has."""
    return PodSource(
        namespace=pool.namespace or config.kubernetes.namespace,
        inference_pool=pool.inference_pool,
        match_labels=pool.selector,
        target_ports=pool.target_ports,
        engine=pool.engine,
        engine_labels=config.engine_labels,
        engines=frozenset((*ENGINES, *(spec.name for spec in config.engines))),
    )
