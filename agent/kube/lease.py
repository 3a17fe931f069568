"""Which of several processes holds a Lease (coordination.k8s.io/v1): a state machine. Pure: answers in, requests out.

    GET --> absent ---------------> POST a Lease without a holder
        --> held by another ------> wait until its version has not changed for its `leaseDurationSeconds` --> PUT
        --> released, or lapsed --> PUT with the observed resourceVersion --> held until `sent` + renew deadline
    held: PUT every retry period; 409, 404 or no answer --> GET

The semantics are those of client-go's leader election, so that `kubectl get leases` and other tools read it. No time of
another machine is compared: a candidate measures with its own monotonic clock, from the receipt of a version, how long
that version lasts. Why two never hold it at once:

* The right of a holder ends `renew_deadline` after it *sent* its last successful PUT. A candidate that takes the Lease
  has seen the version of that PUT, or a later one, for `duration`, counted from its *receipt*: later than the sending.
  Its own PUT names that version, so that the API server refuses it where the holder has renewed meanwhile.
* `duration` is longer than `renew_deadline` and the time-out of one write together, also where the clock of one runs
  MAX_RATE_ERROR too slow and that of the other as much too fast.
* A Lease that is deleted under its holder is created again without a holder, and then lasts `duration` as any other.
* A process that was paused finds at its next `held(now)` that the time is over, because the clock went on.

What remains: a process that is paused between `held` and the sending of a write sends it late. Such a write has to be
harmless twice (an Event), or has to name the resourceVersion that it changes (a condition).
"""

from __future__ import annotations

import math
from random import Random
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

# How much faster or slower than real time the monotonic clock of a machine may run.
MAX_RATE_ERROR: Final = 0.03
MIN_DURATION: Final = 3
# A holder that releases the Lease leaves it with this `leaseDurationSeconds` and no holder, as client-go does.
RELEASED_SECONDS: Final = 1
# While not held, the time between failing tries doubles up to this number of retry periods.
MAX_BACKOFF: Final = 8
OK, CREATED, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT = 200, 201, 401, 403, 404, 409


class LeaseTimes(NamedTuple):
    """Seconds. `duration`: how long others respect a version of the Lease; `renew_deadline`: how long after a renewal
    its holder may begin a write; `retry`: between two tries; `write_timeout`: what one write may take."""

    duration: int
    renew_deadline: float
    retry: float
    write_timeout: float


def lease_times(duration: int) -> LeaseTimes:
    """The times for this duration, in the proportions of client-go: 15, 10 and 2 seconds. ValueError below
    MIN_DURATION."""
    if duration < MIN_DURATION:
        raise ValueError(f"a Lease lasts at least {MIN_DURATION} seconds, not {duration}")
    return LeaseTimes(duration, duration * 2 / 3, duration * 2 / 15, duration * 4 / 15)


class LeaseRequest(NamedTuple):
    """A request to send now: `GET` of the Lease, `POST` to its collection, or `PUT`."""

    method: str
    body: bytes


class LeaseFailure(NamedTuple):
    """Why the last request failed: a word for a label, and a sentence for a person."""

    reason: str
    message: str


class _LeaseMeta(Struct, rename="camel"):
    resource_version: str
    uid: str = ""


class _LeaseSpec(Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    lease_transitions: int | None = None


class _LeaseObject(Struct):
    metadata: _LeaseMeta
    spec: _LeaseSpec = msgspec.field(default_factory=_LeaseSpec)


_LEASES: Final = msgspec.json.Decoder(_LeaseObject)


class LeaseElection:
    """One candidate. `identity` is unique to it and never used again. All times are monotonic seconds of its own clock,
    except `stamp`: the wall clock as MicroTime, which others only print."""

    def __init__(self, namespace: str, name: str, identity: str, times: LeaseTimes, random: Random) -> None:
        self.identity = identity
        self.times = times
        self.due = -math.inf
        self.failure: LeaseFailure | None = None
        self.holder = ""  # the last one that was seen
        self.transitions = 0
        self._namespace = namespace
        self._name = name
        self._random = random
        self._until = -math.inf
        self._lease = _LeaseObject(_LeaseMeta(""))  # the last version that was seen
        self._seen_at = -math.inf  # when this version was first received
        self._current = False  # that version may be the present one: a write may name it
        self._absent = False
        self._failures = 0
        self._ended = False

    def held(self, now: float) -> bool:
        """Whether a write may begin. Call it at the moment of the write."""
        return now < self._until

    @property
    def held_until(self) -> float:
        """When the right ends unless it is renewed."""
        return self._until

    def request(self, now: float, stamp: str) -> LeaseRequest | None:
        """What to send now; None before `due`. Its answer comes before the next call."""
        if self._ended or now < self.due:
            return None
        if self._absent:
            return self._write("POST", "", self.times.duration, stamp)
        if not self._current:
            return LeaseRequest("GET", b"")
        if self._may_take(now):
            return self._write("PUT", self.identity, self.times.duration, stamp)
        self._current = False
        return LeaseRequest("GET", b"")

    def answered(self, request: LeaseRequest, sent: float, received: float, status: int, data: bytes) -> None:
        """The answer: its HTTP status, 0 where none came, and its body or the reason. `sent` was read before the
        request was sent, `received` after the answer had arrived."""
        self._absent, self.failure = False, None
        if status in (OK, CREATED):
            try:
                lease = _LEASES.decode(data)
            except msgspec.DecodeError as error:
                self._failed("unreadable", f"the answer is no Lease: {error}", received)
                return
            self._succeeded(request, sent, received, lease)
        elif status == NOT_FOUND and request.method != "POST":
            self._current, self._absent = False, True
            self.due = received
        elif status == CONFLICT:
            self._current = False
            self.due = received + self.times.retry / 4
        else:
            self._failed(*self._described(status, data), received)

    def end(self) -> None:
        """The right ends for good. The answer to a request that is under way may still be given."""
        self._until, self._ended = -math.inf, True

    def release(self, stamp: str) -> LeaseRequest | None:
        """After `end`: the request that releases the Lease, to be sent once no write is under way. None where this
        candidate does not hold it, or does not know its present version."""
        if not self._current or self.holder != self.identity:
            return None
        return self._write("PUT", "", RELEASED_SECONDS, stamp)

    # -- within --------------------------------------------------------------------------------------------------------

    def _succeeded(self, request: LeaseRequest, sent: float, received: float, lease: _LeaseObject) -> None:
        self._failures = 0
        if lease.metadata.resource_version != self._lease.metadata.resource_version:
            self._lease, self._seen_at = lease, received
        self._current = True
        spec = lease.spec
        self.holder, self.transitions = spec.holder_identity or "", spec.lease_transitions or 0
        if self._ended:
            return
        if request.method == "PUT" and self.holder == self.identity:
            self._until = max(self._until, sent + self.times.renew_deadline)
            self.due = max(received, sent + self.times.retry)
            return
        if self.holder != self.identity:
            self._until = -math.inf
        if request.method == "GET" and self._may_take(received):
            self.due = received
        else:
            pause = self._jittered(1)
            left = self._expires_at() - received
            self.due = received + (min(pause, left) if left > 0 else pause)

    def _may_take(self, now: float) -> bool:
        """Whether the version that was seen is this candidate's, was released, or has lasted long enough."""
        return self.holder == self.identity or self._released() or now >= self._expires_at()

    def _released(self) -> bool:
        """A holder that releases leaves this duration; a Lease without a holder that lasts longer was not released."""
        spec = self._lease.spec
        return not spec.holder_identity and spec.lease_duration_seconds == RELEASED_SECONDS

    def _expires_at(self) -> float:
        seconds = self._lease.spec.lease_duration_seconds
        return self._seen_at + (self.times.duration if seconds is None else seconds)

    def _write(self, method: str, holder: str, seconds: int, stamp: str) -> LeaseRequest:
        metadata: dict[str, Any] = {"namespace": self._namespace, "name": self._name}
        before = _LeaseSpec()
        if method == "PUT":
            # Without the uid, a PUT of a Lease that was deleted meanwhile would create it, whatever version it names.
            metadata |= {"resourceVersion": self._lease.metadata.resource_version, "uid": self._lease.metadata.uid}
            before = self._lease.spec
        taken = bool(holder) and holder != before.holder_identity
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": seconds,
            "acquireTime": stamp if taken or not before.acquire_time else before.acquire_time,
            "renewTime": stamp,
            "leaseTransitions": (before.lease_transitions or 0) + taken,
        }
        document = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        return LeaseRequest(method, msgspec.json.encode(document))

    def _failed(self, reason: str, message: str, now: float) -> None:
        """The request may have had its effect all the same: what the Lease is now is not known."""
        self._current = False
        self.failure = LeaseFailure(reason, message)
        self._failures = 0 if self.held(now) else self._failures + 1
        self.due = now + self._jittered(min(2 ** max(0, self._failures - 1), MAX_BACKOFF))

    def _described(self, status: int, data: bytes) -> tuple[str, str]:
        answer = data[:300].decode("utf-8", "replace")
        if status == 0:
            return "unreachable", answer
        if status == FORBIDDEN:
            remedy = f"let the agent's ServiceAccount get, create and update leases in namespace {self._namespace}"
            return "forbidden", f"403: {answer}; {remedy} (deploy/kubernetes has the Role)"
        if status == UNAUTHORIZED:
            return "unauthorized", f"401: {answer}"
        if status == NOT_FOUND:
            return "not_found", f"404: {answer}; does namespace {self._namespace} exist?"
        return "refused", f"{status}: {answer}"

    def _jittered(self, periods: int) -> float:
        return self.times.retry * periods * self._random.uniform(1.0, 1.2)
