"""The trust that the API server publishes for aggregated APIs, watched: a rotated CA counts as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from agent.kube.authn.identity import Trust
from agent.kube.authn.trust import NAME, NAMESPACE, updated
from agent.kube.cache import ObjectCache, decoder_of
from agent.kube.cluster import Cluster
from agent.kube.objects import ObjectMeta

PATH: Final = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
SELECTORS: Final = {"fieldSelector": f"metadata.name={NAME}"}


class ConfigMap(Struct, frozen=True):
    """A ConfigMap."""

    metadata: ObjectMeta
    data: dict[str, str] | None = None


class TrustSource:
    """`trust` is what the ConfigMap kube-system/extension-apiserver-authentication declares; nothing until it was read.

    Where the ConfigMap disappears or is malformed, the last trust stays. `problems` are what is wrong with it, one
    sentence each. `on_change` is called after each change of either.
    """

    def __init__(self, cluster: Cluster, on_change: Callable[[], None] = lambda: None) -> None:
        self.trust = Trust()
        self.problems: tuple[str, ...] = (f"ConfigMap {NAMESPACE}/{NAME} is not read yet",)
        self._cluster = cluster
        self._on_change = on_change
        self._cache = ObjectCache(decoder_of(ConfigMap))

    async def run(self) -> None:
        """Keep the trust current until it is cancelled. Raises NoCluster."""
        client = await self._cluster.connect()

        def update() -> None:
            self._update(informer.status.failing)

        informer = self._cluster.informer(client, self._cache, PATH, SELECTORS, update)
        await informer.run()

    def _update(self, failing: str) -> None:
        before = self.trust, self.problems
        self.trust, self.problems = self._read(failing)
        if before != (self.trust, self.problems):
            self._on_change()

    def _read(self, failing: str) -> tuple[Trust, tuple[str, ...]]:
        what = f"ConfigMap {NAMESPACE}/{NAME}"
        found = self._cache.objects.get((NAMESPACE, NAME))
        if found is not None:
            update = updated(self.trust, found.data or {})
            problems = tuple(f"{what}: {problem}" for problem in update.problems)
            if failing:
                problems += (f"{what} cannot be watched: {failing}",)
            return update.trust, problems
        refused = self._cache.refused.get((NAMESPACE, NAME))
        if refused is not None:
            return self.trust, (f"{what} cannot be read: {refused.reason}",)
        if failing:
            return self.trust, (f"{what} cannot be read: {failing}",)
        return self.trust, (f"{what} does not exist",)
