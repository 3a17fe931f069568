"""`kubernetes`: the cluster whose API server the agent reads, once for all its pools."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.options import option, section
from agent.config.values import Boolean, Duration, FilePath, ObjectName


@dataclass(frozen=True, slots=True)
class LeaseConfig:
    """The Lease. Replicas of one agent share it; agents for other pools have another one."""

    name: str = option(ObjectName("Lease"), "its name", "inference-gateway-agent", live=False)
    namespace: str = option(ObjectName("namespace"), "its namespace", "", unset="that of the agent", live=False)
    duration: float = option(
        Duration(5, 300),
        "a replica that ends without a word is replaced after this time, in whole seconds",
        15.0,
        live=False,
    )


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
    autoscalers: bool = option(
        Boolean(),
        "export what the HorizontalPodAutoscalers that scale the pools want (`igw_hpa_desired_replicas` and others); "
        "the agent needs the right to list and watch them",
        default=False,
    )
    lease: LeaseConfig = section(
        LeaseConfig, "The Lease whose holder, one of the replicas, writes Kubernetes Events and conditions."
    )
