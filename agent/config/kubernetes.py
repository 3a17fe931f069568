"""`kubernetes`: the cluster whose API server the agent reads, once for all its pools."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.options import option
from agent.config.values import Boolean, FilePath, ObjectName


@dataclass(frozen=True, slots=True)
class KubernetesConfig:
    """The cluster. Nothing connects to it before a pool or an option needs it."""

    kubeconfig: str = option(
        FilePath(), "the API server and the credentials (kubeconfig)", "", unset="the cluster it runs in", live=False
    )
    namespace: str = option(
        ObjectName("namespace"), "the namespace of pools that set none", "", unset="that of the agent"
    )
    events: bool = option(
        Boolean(), "write Kubernetes Events and conditions about objects that need a correction", default=True
    )
