"""Writes Kubernetes Events and conditions about the objects that need a correction.

    discovery, objectives --problems of an object--> EventSeries  --> POST, PATCH events.k8s.io/v1 events
                          --acceptances--------------> condition_write --> PATCH .../status (server-side apply)

What is to be written is decided by `agent.kube.event_series` and `agent.kube.conditions`. A write that fails is counted
and tried again later; it stops nothing. Of several replicas, the one that holds the Lease writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from agent.clock import Clock
from agent.events import Hook
from agent.events.kubernetes import KubernetesWriteFailed, KubernetesWritten
from agent.kube.conditions import APPLY, ConditionWrite, condition_write
from agent.kube.errors import ApiFailed, NoCluster, NotHeld, Unreachable
from agent.kube.event_series import EventSeries, EventWrite, TokenBucket
from agent.kube.objectives import PLURALS, Acceptance
from agent.kube.objects import ObjectRef
from agent.kube.pool_endpoints import ObjectProblem
from agent.kube.wall_time import micro_time, whole_seconds

FIRST_BACKOFF_SECONDS: Final = 1.0
MAX_BACKOFF_SECONDS: Final = 60.0
# After an answer that only a person can change: a missing permission, an object that is refused.
REFUSED_SECONDS: Final = 300.0
# How long a condition that was written may take to arrive by the watch, before it is written again.
ECHO_SECONDS: Final = 10.0
# While something is to be written and another replica writes, this one looks again after this time.
TURN_SECONDS: Final = 1.0
MERGE_PATCH: Final = "application/merge-patch+json"
# Of each object: more of them are a conflict with another writer.
CONDITION_BURST: Final = 5
CONDITION_REFILL_SECONDS: Final = 60.0


class Send(Protocol):
    """Sends a request that only one replica may send. Raises NotHeld where it is not this one's turn, NoCluster,
    ApiFailed and Unreachable."""

    async def __call__(self, method: str, path: str, body: bytes, content_type: str = ...) -> bytes:
        """The answer."""
        ...


class _Condition:
    """An acceptance, and the limits of writing its condition."""

    __slots__ = ("acceptance", "bucket", "not_before", "written_version")

    def __init__(self, acceptance: Acceptance, now: float) -> None:
        self.acceptance = acceptance
        self.bucket = TokenBucket(CONDITION_BURST, CONDITION_REFILL_SECONDS, now)
        self.not_before = 0.0
        self.written_version = ""  # the version that was written to; another one is the answer of the watch


class EventRecorder:
    """Writes what is wrong with objects. `enabled`: whether it writes at all; `wake` follows a change of it.
    `may_write` says whether it is this replica's turn to `send`. `instance` is the name of the agent's pod. All methods
    are called on the event loop."""

    def __init__(
        self,
        send: Send,
        may_write: Callable[[], bool],
        clock: Clock,
        hook: Hook,
        instance: str,
    ) -> None:
        self.enabled = True
        self._send = send
        self._may_write = may_write
        self._clock = clock
        self._hook = hook
        self._events = EventSeries(instance, clock.now())
        self._conditions: dict[ObjectRef, _Condition] = {}
        self._wake = asyncio.Event()
        self._backoff = FIRST_BACKOFF_SECONDS

    def set_problems(self, source: str, ref: ObjectRef, problems: Sequence[ObjectProblem]) -> None:
        """Replace what `source` reports about an object."""
        self._events.set_problems(source, ref, problems, self._clock.now())
        self._wake.set()

    def forget(self, source: str, ref: ObjectRef) -> None:
        """The source has nothing to do with the object any more, or it was deleted."""
        self._events.forget(source, ref)

    def set_acceptances(self, acceptances: Sequence[Acceptance]) -> None:
        """Replace the objects whose status gets a condition."""
        known, self._conditions, now = self._conditions, {}, self._clock.now()
        for acceptance in acceptances:
            ref = acceptance.object.ref
            condition = known.get(ref) or _Condition(acceptance, now)
            condition.acceptance = acceptance
            self._conditions[ref] = condition
        self._wake.set()

    async def run(self) -> None:
        """Write what is due, until it is cancelled."""
        while True:
            self._wake.clear()
            wait = await self._write_due() if self.enabled else None
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def wake(self) -> None:
        """Look again whether something is to be written, after a change of `enabled`."""
        self._wake.set()

    # -- within --------------------------------------------------------------------------------------------------------

    async def _write_due(self) -> float | None:
        """Write what is due. Returns the seconds until more is, None where nothing is known."""
        wait = self._next_due()
        if wait is None or wait > 0.0:
            return wait
        if not self._may_write():
            return TURN_SECONDS
        while self._may_write():
            event = self._events.next_write(self._clock.now(), micro_time(self._clock.wall()))
            if event is not None:
                paused = await self._send_event(event)
            else:
                condition = self._next_condition()
                if condition is None:
                    return self._next_due()
                paused = await self._send_condition(condition)
            if paused:
                return paused
        return TURN_SECONDS

    def _next_due(self) -> float | None:
        """Seconds until something is to be written."""
        now = self._clock.now()
        wait = self._events.next_due(now) if len(self._events) else None
        for condition in self._conditions.values():
            if self._condition_write(condition) is not None:
                condition.bucket.available(now)
                own = max(condition.not_before - now, condition.bucket.wait(), 0.0)
                wait = own if wait is None else min(wait, own)
        return wait

    def _condition_write(self, condition: _Condition) -> ConditionWrite | None:
        """What is to be written, whenever that may be."""
        version = condition.acceptance.object.resource_version
        if condition.written_version and version != condition.written_version:  # the write has arrived
            condition.written_version, condition.not_before = "", 0.0
        return condition_write(condition.acceptance, whole_seconds(self._clock.wall()))

    def _next_condition(self) -> ConditionWrite | None:
        now = self._clock.now()
        for condition in self._conditions.values():
            write = self._condition_write(condition)
            if write is None or now < condition.not_before or not condition.bucket.available(now):
                continue
            condition.bucket.take()
            return write
        return None

    async def _send_event(self, write: EventWrite) -> float:
        """Write an Event. Returns how many seconds to pause all writes, 0 for none."""
        method, content = ("POST", "application/json") if write.create else ("PATCH", MERGE_PATCH)
        try:
            await self._send(method, write.path, write.body, content)
        except (NotHeld, NoCluster):  # the Lease was lost meanwhile; discovery reports a missing cluster
            return TURN_SECONDS
        except (ApiFailed, Unreachable) as error:
            if isinstance(error, ApiFailed) and error.status == 404 and not write.create:
                self._events.gone(write)
                return 0.0
            pause = self._failed("event", write.ref, error)
            self._events.failed(write, self._clock.now() + (pause or REFUSED_SECONDS))
            return pause
        self._succeeded("event")
        self._events.written(write, self._clock.now())
        return 0.0

    async def _send_condition(self, write: ConditionWrite) -> float:
        """Write a condition; as `_send_event`."""
        condition = self._conditions.get(write.ref)
        try:
            await self._send("PATCH", write.path, write.body, APPLY)
        except (NotHeld, NoCluster):  # the Lease was lost meanwhile; discovery reports a missing cluster
            return TURN_SECONDS
        except (ApiFailed, Unreachable) as error:
            # Deleted, or changed since it was read: the watch brings it.
            gone = isinstance(error, ApiFailed) and error.status in (404, 409)
            pause = 0.0 if gone else self._failed("condition", write.ref, error)
            if condition is not None:
                condition.written_version = write.resource_version if gone else ""
                condition.not_before = self._clock.now() + (pause or (ECHO_SECONDS if gone else REFUSED_SECONDS))
            return pause
        self._succeeded("condition")
        if condition is not None:
            condition.written_version = write.resource_version
            condition.not_before = self._clock.now() + ECHO_SECONDS
        return 0.0

    def _succeeded(self, what: str) -> None:
        self._backoff = FIRST_BACKOFF_SECONDS
        self._hook(KubernetesWritten(what))

    def _failed(self, what: str, ref: ObjectRef, error: ApiFailed | Unreachable) -> float:
        """Report a failure. Returns how long to pause all writes: none where it is about this object alone."""
        if isinstance(error, ApiFailed) and error.status == 403:
            self._hook(KubernetesWriteFailed(what, "forbidden", str(ref), f"{error}; {_missing_rule(what, ref)}"))
            return 0.0
        if isinstance(error, ApiFailed) and 400 <= error.status < 500 and error.status not in (401, 408, 429):
            self._hook(KubernetesWriteFailed(what, "refused", str(ref), str(error)))
            return 0.0
        self._hook(KubernetesWriteFailed(what, "failed", str(ref), str(error)))
        pause = max(self._backoff, (error.retry_after or 0.0) if isinstance(error, ApiFailed) else 0.0)
        self._backoff = min(2 * self._backoff, MAX_BACKOFF_SECONDS)
        return pause


def _missing_rule(what: str, ref: ObjectRef) -> str:
    """The rule of RBAC that the agent lacks."""
    if what == "event":
        rule = "verbs create and patch on events of events.k8s.io"
    else:
        group = ref.api_version.partition("/")[0]
        rule = f"verb patch on {PLURALS[ref.kind]}/status of {group}"
    return f"the role of the agent's ServiceAccount in namespace {ref.namespace} needs the {rule}"
