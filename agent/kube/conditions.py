"""The condition Accepted in the status of an InferenceObjective or an InferenceModelRewrite. Pure.

It is written by server-side apply, which leaves the conditions of others as they are. The request names the version of
the object that it is about, so that a late one of a replica that has lost its turn changes nothing. An InferencePool
has no condition of the agent: its `status.parents` is one atomic list, and its entries belong to the gateways that
route to the pool.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from agent.kube.objectives import ACCEPTED, PENDING, PLURALS, Acceptance, Condition, accepted_message
from agent.kube.objects import ObjectRef

FIELD_MANAGER: Final = "inference-gateway-agent"
APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML
MAX_MESSAGE_BYTES: Final = 4096  # of 32768

_encode: Final = msgspec.json.Encoder().encode


class ConditionWrite(NamedTuple):
    """One request: a PATCH of the status with content type `APPLY`."""

    ref: ObjectRef
    path: str
    body: bytes
    resource_version: str


def condition_of(acceptance: Acceptance) -> Condition:
    """The condition that an object should have, without its time."""
    each, problem = acceptance.object, acceptance.problem
    if acceptance.released:
        pool = each.pool.name if each.pool else ""
        message = f"another endpoint picker serves InferencePool {each.ref.namespace}/{pool}"
        return Condition(ACCEPTED, "Unknown", PENDING, message, each.generation)
    if problem is not None:
        message = problem.message.encode("utf-8", "replace")[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore")
        return Condition(ACCEPTED, "False", problem.reason, message, each.generation)
    return Condition(ACCEPTED, "True", ACCEPTED, accepted_message(acceptance), each.generation)


def condition_write(acceptance: Acceptance, at: str) -> ConditionWrite | None:
    """What to write at `at` (wall time, RFC 3339); None where the object has the condition already. The time of the
    last transition changes with the status alone, as that of every condition of Kubernetes."""
    wanted, present, ref = condition_of(acceptance), acceptance.object.accepted, acceptance.object.ref
    if present is not None and wanted == msgspec.structs.replace(present, last_transition_time=""):
        return None
    since = at
    if present is not None and present.status == wanted.status and present.last_transition_time:
        since = present.last_transition_time
    body = {
        "apiVersion": ref.api_version,
        "kind": ref.kind,
        "metadata": {
            "name": ref.name,
            "namespace": ref.namespace,
            "uid": ref.uid,
            "resourceVersion": acceptance.object.resource_version,
        },
        "status": {"conditions": [msgspec.structs.replace(wanted, last_transition_time=since)]},
    }
    path = (
        f"/apis/{ref.api_version}/namespaces/{ref.namespace}/{PLURALS[ref.kind]}/{ref.name}/status"
        f"?fieldManager={FIELD_MANAGER}&force=true"
    )
    return ConditionWrite(ref, path, _encode(body), acceptance.object.resource_version)
