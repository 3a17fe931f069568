"""The condition Accepted of objectives and rewrites: what it says, and when it is written."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.kube.conditions import condition_write
from agent.kube.objectives import Acceptance, Condition
from agent.kube.pool_endpoints import ObjectProblem
from agent.kube.wall_time import whole_seconds
from tests.kube.rule_objects import objective, rewrite, rule

WALL = 1_800_000_000.0
MISSING = ObjectProblem(
    "PoolNotFound", "InferenceObjective ns/chat has no effect: InferencePool ns/lama does not exist"
)


def written(acceptance: Acceptance, wall: float = WALL) -> Any:
    write = condition_write(acceptance, whole_seconds(wall))
    assert write is not None
    return msgspec.json.decode(write.body)["status"]["conditions"][0]


def after(acceptance: Acceptance, wall: float = WALL) -> Acceptance:
    """The acceptance with the condition that was written."""
    return acceptance._replace(
        object=acceptance.object._replace(accepted=msgspec.convert(written(acceptance, wall), Condition))
    )


def test_an_object_that_is_used_is_accepted_and_says_what_it_does() -> None:
    assert written(Acceptance(objective("chat", 7), None)) == {
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "message": "requests to InferencePool ns/llama that name it have the priority 7",
        "observedGeneration": 1,
        "lastTransitionTime": "2027-01-15T08:00:00Z",
    }
    assert "its 2 rules apply" in written(Acceptance(rewrite("r", rule("a"), rule("b")), None))["message"]


def test_an_object_with_a_problem_is_not_accepted_with_the_reason_and_the_message() -> None:
    found = written(Acceptance(objective("chat"), MISSING))
    assert (found["status"], found["reason"], found["message"]) == ("False", *MISSING)


def test_the_request_names_the_object_its_version_and_the_field_manager() -> None:
    write = condition_write(Acceptance(objective("chat"), None), whole_seconds(WALL))
    assert write is not None
    assert write.path == (
        "/apis/llm-d.ai/v1alpha2/namespaces/ns/inferenceobjectives/chat/status"
        "?fieldManager=inference-gateway-agent&force=true"
    )
    document = msgspec.json.decode(write.body)
    assert document["metadata"] == {"name": "chat", "namespace": "ns", "uid": "uid-chat", "resourceVersion": "1"}
    assert (document["apiVersion"], document["kind"]) == ("llm-d.ai/v1alpha2", "InferenceObjective")


def test_a_condition_that_is_there_already_is_not_written() -> None:
    assert condition_write(after(Acceptance(objective("chat"), None)), whole_seconds(WALL + 60)) is None
    assert condition_write(after(Acceptance(objective("chat"), MISSING)), whole_seconds(WALL + 60)) is None


def test_the_time_of_the_transition_changes_with_the_status_alone() -> None:
    accepted = after(Acceptance(objective("chat"), None))
    newer = accepted._replace(object=accepted.object._replace(generation=2))
    assert written(newer, WALL + 60)["lastTransitionTime"] == "2027-01-15T08:00:00Z"
    assert written(newer, WALL + 60)["observedGeneration"] == 2
    assert written(accepted._replace(problem=MISSING), WALL + 60)["lastTransitionTime"] == "2027-01-15T08:01:00Z"


def test_a_condition_that_the_agent_withdraws_is_unknown() -> None:
    found = written(Acceptance(objective("chat", pool="other"), None, released=True))
    assert (found["status"], found["reason"]) == ("Unknown", "Pending")
    assert "another endpoint picker serves InferencePool ns/other" in found["message"]
