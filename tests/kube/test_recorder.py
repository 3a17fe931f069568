"""The recorder writes what is due, one replica at a time, and survives every answer of the API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from agent.clock import SystemClock
from agent.events import Event
from agent.events.kubernetes import KubernetesWriteFailed, KubernetesWritten
from agent.kube import recorder as recorder_module
from agent.kube.errors import ApiFailed, NoCluster, NotHeld, Unreachable
from agent.kube.objectives import Acceptance, Condition
from agent.kube.objects import ObjectRef
from agent.kube.pool_endpoints import ObjectProblem
from agent.kube.recorder import EventRecorder
from tests.kube.rule_objects import objective
from tests.waiting import eventually

POOL = ObjectRef("inference.networking.k8s.io/v1", "InferencePool", "ns", "llama", "uid-1")
PROBLEM = ObjectProblem("NoMatchingPods", "InferencePool ns/llama selects no pod")


class ScriptedCluster:
    """An API server that takes every write, or raises `error`."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.tries = 0
        self.sent: list[tuple[str, str, Any]] = []

    async def send(self, method: str, path: str, body: bytes, content_type: str = "") -> bytes:
        assert content_type
        self.tries += 1
        if self.error is not None:
            raise self.error
        self.sent.append((method, path, msgspec.json.decode(body)))
        return b"{}"


class Rig:
    """A running recorder."""

    def __init__(self) -> None:
        self.cluster = ScriptedCluster()
        self.events: list[Event] = []
        self.holder = True
        self.recorder = EventRecorder(
            self.cluster.send, lambda: self.holder, SystemClock(), self.events.append, "agent-0"
        )
        self.task = asyncio.get_running_loop().create_task(self.recorder.run())

    def report(self, *problems: ObjectProblem) -> None:
        self.recorder.set_problems("discovery", POOL, problems)

    async def sent(self, count: int) -> list[tuple[str, str, Any]]:
        """The writes, once there are so many."""
        await eventually(lambda: len(self.cluster.sent) >= count, what=f"{count} writes")
        return self.cluster.sent

    async def failure(self) -> KubernetesWriteFailed:
        def failures() -> list[KubernetesWriteFailed]:
            return [event for event in self.events if isinstance(event, KubernetesWriteFailed)]

        return (await eventually(failures))[-1]


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    for name in ("FIRST_BACKOFF_SECONDS", "MAX_BACKOFF_SECONDS", "TURN_SECONDS", "REFUSED_SECONDS", "ECHO_SECONDS"):
        monkeypatch.setattr(recorder_module, name, 0.02)
    made = Rig()
    yield made
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)


async def test_a_problem_is_written_and_its_end_too(rig: Rig) -> None:
    rig.report(PROBLEM)
    ((method, path, body),) = await rig.sent(1)
    assert (method, path) == ("POST", "/apis/events.k8s.io/v1/namespaces/ns/events")
    assert (body["type"], body["note"]) == ("Warning", PROBLEM.message)
    rig.report()
    *_, (_, _, body) = await rig.sent(2)
    assert (body["type"], body["reason"]) == ("Normal", "ProblemResolved")
    assert rig.events == [KubernetesWritten("event"), KubernetesWritten("event")]


async def test_a_condition_is_written_once_until_the_watch_has_brought_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "ECHO_SECONDS", 60.0)
    acceptance = Acceptance(objective("chat", 3), None)
    rig.recorder.set_acceptances([acceptance])
    ((method, path, body),) = await rig.sent(1)
    assert method == "PATCH"
    assert path.startswith("/apis/llm-d.ai/v1alpha2/namespaces/ns/inferenceobjectives/chat/status?")
    written = msgspec.convert(body["status"]["conditions"][0], Condition)
    rig.recorder.set_acceptances([acceptance])
    arrived = acceptance._replace(object=acceptance.object._replace(accepted=written, resource_version="2"))
    rig.recorder.set_acceptances([arrived])
    changed = arrived._replace(object=arrived.object._replace(generation=2, resource_version="3"))
    rig.recorder.set_acceptances([changed])
    *_, (_, _, body) = await rig.sent(2)
    assert body["status"]["conditions"][0]["observedGeneration"] == 2
    assert len(rig.cluster.sent) == 2


async def test_another_replica_writes_while_this_one_may_not(rig: Rig) -> None:
    rig.holder = False
    rig.report(PROBLEM)
    rig.recorder.set_acceptances([Acceptance(objective("chat"), None)])
    other = Rig()
    other.report(PROBLEM)
    await other.sent(1)  # it had its turn since
    other.task.cancel()
    assert rig.cluster.tries == 0
    rig.holder = True
    assert {method for method, _, _ in await rig.sent(2)} == {"POST", "PATCH"}


async def test_nothing_is_written_where_it_is_switched_off(rig: Rig) -> None:
    rig.recorder.enabled = False
    rig.report(PROBLEM)
    other = Rig()
    other.report(PROBLEM)
    await other.sent(1)
    other.task.cancel()
    assert rig.cluster.tries == 0
    rig.recorder.enabled = True
    rig.recorder.wake()
    await rig.sent(1)


FORBIDDEN = 'events.events.k8s.io is forbidden: User "x" cannot create resource "events"'


async def test_a_missing_permission_is_named_with_the_rule_that_grants_it(rig: Rig) -> None:
    rig.cluster.error = ApiFailed(403, FORBIDDEN)
    rig.report(PROBLEM)
    failure = await rig.failure()
    assert (failure.what, failure.result, failure.object) == ("event", "forbidden", "InferencePool ns/llama")
    assert FORBIDDEN in failure.detail
    assert "needs the verbs create and patch on events of events.k8s.io" in failure.detail
    rig.cluster.error = None
    await rig.sent(1)


async def test_a_missing_permission_for_conditions_is_named_with_its_resource(rig: Rig) -> None:
    rig.cluster.error = ApiFailed(403, "no")
    rig.recorder.set_acceptances([Acceptance(objective("chat"), None)])
    failure = await rig.failure()
    assert (failure.what, failure.result) == ("condition", "forbidden")
    assert "needs the verb patch on inferenceobjectives/status of llm-d.ai" in failure.detail


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (lambda: Unreachable("connection refused"), "failed"),
        (lambda: ApiFailed(500, "etcd"), "failed"),
        (lambda: ApiFailed(429, "too many", 0.01), "failed"),
        (lambda: ApiFailed(401, "expired"), "failed"),
        (lambda: ApiFailed(422, "note: too long"), "refused"),
        (lambda: ApiFailed(409, "exists"), "refused"),
    ],
)
async def test_a_write_that_fails_is_counted_and_made_when_the_api_server_takes_it(
    rig: Rig, error: Callable[[], Exception], result: str
) -> None:
    rig.cluster.error = error()
    rig.report(PROBLEM)
    assert (await rig.failure()).result == result
    rig.cluster.error = None
    await rig.sent(1)
    assert rig.events[-1] == KubernetesWritten("event")


@pytest.mark.parametrize("error", [NoCluster("outside"), NotHeld("another replica holds it")])
async def test_a_write_that_is_not_sent_waits_for_its_turn_and_is_no_failure(rig: Rig, error: Exception) -> None:
    rig.cluster.error = error
    rig.report(PROBLEM)
    await eventually(lambda: rig.cluster.tries > 1)
    rig.cluster.error = None
    await rig.sent(1)
    assert rig.events == [KubernetesWritten("event")]


async def test_an_object_that_is_gone_when_its_condition_is_written_is_no_failure(rig: Rig) -> None:
    rig.cluster.error = ApiFailed(404, "not found")
    rig.recorder.set_acceptances([Acceptance(objective("chat"), None)])
    await eventually(lambda: rig.cluster.tries)
    rig.recorder.set_acceptances([])
    rig.cluster.error = None
    rig.report(PROBLEM)
    await rig.sent(1)
    assert rig.events == [KubernetesWritten("event")]
