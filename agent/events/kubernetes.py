"""What the agent reads and writes of the objects of a Kubernetes cluster, besides the endpoints of its pools."""

from __future__ import annotations

from typing import NamedTuple


class KubernetesWritten(NamedTuple):
    """An Event, a condition or a ConfigMap was written; `what` is `event`, `condition` or
    `configmap` (learnt capacities)."""

    what: str


class KubernetesWriteFailed(NamedTuple):
    """An Event, a condition or a ConfigMap was not written. `result` is `forbidden`, `refused` (the API server does not
    take it) or `failed` (no usable answer, which is tried again)."""

    what: str
    result: str
    object: str
    detail: str


class ObjectProblemFound(NamedTuple):
    """Something is wrong with an object of a kind; `message` names it and says what to change."""

    kind: str
    object: str
    reason: str
    message: str


class ObjectProblemSolved(NamedTuple):
    """A problem with an object is over, or the object is gone."""

    kind: str
    object: str
    reason: str
