"""Every reason of an `ObjectProblem`: the reason and the action of its Kubernetes Event, what it means and what to do.
Pure. docs/reference/kubernetes-events.md has these rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

RESOLVED: Final = "ProblemResolved"  # the reason of the Normal event
OTHER_ACTION: Final = "Reconcile"  # of a reason without a row


class ProblemReason(NamedTuple):
    """One reason. `action` is what the agent did with the object when it found the problem, as in an Event."""

    action: str
    meaning: str
    remedy: str


REASONS: Final[Mapping[str, ProblemReason]] = {
    "InferencePoolNotFound": ProblemReason(
        "SelectPods",
        "the InferencePool of a pool of the configuration does not exist",
        "create the InferencePool, or correct `inferencePool` and `namespace` of the pool",
    ),
    "NoMatchingPods": ProblemReason(
        "SelectPods",
        "the selector matches no pod",
        "correct the selector, or the labels in the template of the model servers",
    ),
    "NoReadyPods": ProblemReason(
        "SelectPods",
        "the selector matches pods, and none of them is ready with an address",
        "look at the readiness probes and the logs of the model servers",
    ),
    "TargetPortNotDeclared": ProblemReason(
        "SelectPods",
        "no container of a selected pod declares a target port",
        "correct the target port if the model server does not listen there",
    ),
    "NoActivePort": ProblemReason(
        "SelectPods",
        "the annotation for active ports of a pod has none of the target ports",
        "correct the annotation `llm-d.ai/active-ports` of the pod, or the target ports",
    ),
    "UnknownEngine": ProblemReason(
        "SelectPods",
        "the label of a pod names an engine that the agent does not know",
        "correct the label `llm-d.ai/engine-type`, or define the engine under `engineConfigs`",
    ),
    "PodInTwoPools": ProblemReason(
        "SelectPods",
        "two pools select the same pod: each counts the requests of the other as foreign",
        "change the selector of one of the pools, or the labels of the pod",
    ),
    "KindNotInstalled": ProblemReason(
        "Read",
        "the API server does not know the kind of the object",
        "install the CRDs of `deploy/crds`",
    ),
    "ApiUnavailable": ProblemReason(
        "Read",
        "the API server does not answer; the last known state is kept",
        "look at the API server, and at the network between it and the agent",
    ),
    "Unauthorized": ProblemReason(
        "Read",
        "the API server refuses the agent's token",
        "look whether the agent's ServiceAccount exists, or whether the credentials of `kubernetes.kubeconfig` expired",
    ),
    "Forbidden": ProblemReason(
        "Read",
        "the agent may not read a kind of object",
        "apply the role of the agent (`deploy/`) in the namespace that the note names",
    ),
    "NoCluster": ProblemReason(
        "Read",
        "the agent finds no API server",
        "set `kubernetes.kubeconfig`, or run the agent in a cluster",
    ),
    "InvalidObject": ProblemReason(
        "Read",
        "the object's spec cannot be used",
        "correct the spec: the note names the field",
    ),
    "InvalidPoolRef": ProblemReason(
        "Accept",
        "the `poolRef` of an objective or a rewrite names an object that is no InferencePool",
        "correct group and kind of `poolRef`, or leave them out",
    ),
    "PoolNotFound": ProblemReason(
        "Accept",
        "an objective or a rewrite refers to an InferencePool that does not exist",
        "create the InferencePool, or correct `poolRef.name`",
    ),
    "Superseded": ProblemReason(
        "Accept",
        "an object of inference.networking.x-k8s.io has the name of one of llm-d.ai, which is used",
        "delete the object of inference.networking.x-k8s.io",
    ),
    "NoExporterPod": ProblemReason(
        "SelectPods",
        "no exporter pod of the accelerators runs on the node of an endpoint",
        "correct `selector` of the accelerators, or let the exporter's DaemonSet run on that node",
    ),
}


def action_of(reason: str) -> str:
    """The action in an Event with this reason."""
    row = REASONS.get(reason)
    return OTHER_ACTION if row is None else row.action
