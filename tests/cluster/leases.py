"""The Lease of the agent's replicas in the tests."""

from __future__ import annotations

from typing import Final

from agent.config.kubernetes import LeaseConfig
from agent.kube.lease import RELEASED_SECONDS
from tests.cluster.api import Api, Object

NAME: Final = LeaseConfig().name
RULES: Final[list[Object]] = [
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
]


def lease_path(namespace: str) -> str:
    """The path of the Lease."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{NAME}"


def create_released(api: Api, namespace: str, transitions: int = 7) -> None:
    """The Lease as its last holder has left it, so that an agent takes it at once: one that does not exist is taken
    after its duration, because it may have been deleted under its holder."""
    api.create(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NAME, "namespace": namespace},
            "spec": {
                "holderIdentity": "",
                "leaseDurationSeconds": RELEASED_SECONDS,
                "leaseTransitions": transitions,
            },
        }
    )
