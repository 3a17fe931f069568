"""Which Kubernetes Events to write about the problems of objects, and when. Pure: problems in, bodies of requests out.

    a problem appears         -> Event of type Warning
    it appears again          -> the same Event, `series.count` higher
    it stays                  -> the same, twice an hour, because the API server forgets an Event after an hour
    it has been resolved      -> Event of type Normal

What is written is the state of the object, not each change: changes that come faster than the limits become one write
with the count of all of them. Limits: of each object BURST writes at once and one in REFILL_SECONDS, of all objects
TOTAL_BURST and TOTAL_REFILL_SECONDS. Of the Event's API (events.k8s.io/v1): a note has at most 1 KiB, everything but
the series stays as it was created, and a series has a count of at least 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec
import xxhash

from agent.kube.objects import ObjectRef
from agent.kube.pool_endpoints import ObjectProblem
from agent.kube.problem_reasons import RESOLVED, action_of

CONTROLLER: Final = "inference-gateway-agent"
BURST: Final = 10
REFILL_SECONDS: Final = 60.0
TOTAL_BURST: Final = 50
TOTAL_REFILL_SECONDS: Final = 1.0
HEARTBEAT_SECONDS: Final = 1800.0
# An Event that was last written before this is gone from the API server (--event-ttl, by default an hour).
TTL_SECONDS: Final = 3600.0
MAX_OBJECTS: Final = 1000
NOTE_BYTES: Final = 1024
INSTANCE_BYTES: Final = 128
_NAME_LENGTH: Final = 220  # of 253, which leaves room for the suffix
WARNING: Final = "Warning"
NORMAL: Final = "Normal"

_encode: Final = msgspec.json.Encoder().encode


class TokenBucket:
    """At most `burst` at once, and one in `refill` seconds."""

    __slots__ = ("_at", "_burst", "_refill", "_tokens")

    def __init__(self, burst: int, refill: float, now: float) -> None:
        self._burst, self._refill = burst, refill
        self._tokens, self._at = float(burst), now

    def available(self, now: float) -> bool:
        """Whether there is one."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) / self._refill)
        self._at = max(self._at, now)
        return self._tokens >= 1.0

    def take(self) -> None:
        """Take one that is available."""
        self._tokens -= 1.0

    def wait(self) -> float:
        """Seconds from the last question until one is available."""
        return max(0.0, (1.0 - self._tokens) * self._refill)


class EventWrite(NamedTuple):
    """One request: a new Event, or the series of one (`create` is False). `reason` is that of the problem."""

    ref: ObjectRef
    reason: str
    type: str
    note: str
    create: bool
    name: str
    occurrences: int
    body: bytes

    @property
    def path(self) -> str:
        """The path of the request."""
        events = f"/apis/events.k8s.io/v1/namespaces/{self.ref.namespace}/events"
        return events if self.create else f"{events}/{self.name}"


@dataclass(slots=True)
class _Series:
    """An Event that was written: its name, its note, its count, and when it was last written."""

    name: str
    note: str
    count: int
    at: float


@dataclass(slots=True)
class _Entry:
    """One reason of one object. `note` is that of the problem now, None where it is resolved; `seen` is how often it
    appeared since it was last written; `shown` is the type of the last Event."""

    note: str | None = None
    seen: int = 0
    warning: _Series | None = None
    normal: _Series | None = None
    shown: str = ""

    def pending(self, now: float) -> str:
        """The type of the Event that is to be written, empty where none is."""
        if self.note is None:
            return NORMAL if self.shown == WARNING else ""
        series = self.warning
        if self.shown != WARNING or series is None or series.note != self.note or self.seen:
            return WARNING
        return WARNING if now - series.at >= HEARTBEAT_SECONDS else ""


@dataclass(slots=True)
class _Object:
    ref: ObjectRef
    bucket: TokenBucket
    reported: dict[str, tuple[ObjectProblem, ...]] = field(default_factory=dict)  # by source
    entries: dict[str, _Entry] = field(default_factory=dict)  # by reason
    not_before: float = 0.0


class EventSeries:
    """The Events of all objects. `instance` is the name of the agent's pod. `dropped` counts the objects that were over
    MAX_OBJECTS."""

    def __init__(self, instance: str, now: float) -> None:
        self._instance = _cut(instance, INSTANCE_BYTES) or "unknown"
        self._objects: dict[ObjectRef, _Object] = {}
        self._total = TokenBucket(TOTAL_BURST, TOTAL_REFILL_SECONDS, now)
        self._number = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._objects)

    # -- what is wrong -------------------------------------------------------------------------------------------------

    def set_problems(self, source: str, ref: ObjectRef, problems: Sequence[ObjectProblem], now: float) -> None:
        """Replace what `source` reports about an object. Another uid is another object, of which nothing is known."""
        key = ref.anonymous
        known = self._objects.get(key)
        if known is not None and ref.uid and known.ref.uid and ref.uid != known.ref.uid:
            others = known.reported
            del self._objects[key]
            known = None
        else:
            others = {}
        if known is None:
            if not problems:
                return
            known = self._add(key, ref, now)
            if known is None:
                return
            known.reported = others
        if ref.uid:
            known.ref = ref
        known.reported[source] = tuple(problems)
        self._update(known)

    def forget(self, source: str, ref: ObjectRef) -> None:
        """The source has nothing to do with the object any more, or the object was deleted: no Event says so."""
        known = self._objects.get(ref.anonymous)
        if known is None or known.reported.pop(source, None) is None:
            return
        notes = _notes(known)
        for reason in known.entries.keys() - notes.keys():
            del known.entries[reason]
        if not known.entries and not known.reported:
            del self._objects[ref.anonymous]

    def _add(self, key: ObjectRef, ref: ObjectRef, now: float) -> _Object | None:
        if len(self._objects) >= MAX_OBJECTS:
            gone = next((other for other, each in self._objects.items() if not any(each.reported.values())), None)
            if gone is None:
                self.dropped += 1
                return None
            del self._objects[gone]
        self._objects[key] = _Object(ref, TokenBucket(BURST, REFILL_SECONDS, now))
        return self._objects[key]

    def _update(self, known: _Object) -> None:
        notes = _notes(known)
        for reason, note in notes.items():
            entry = known.entries.setdefault(reason, _Entry())
            if entry.note != note:
                entry.note = note
                entry.seen += 1
        for reason, entry in tuple(known.entries.items()):
            if reason not in notes:
                entry.note = None
                if not entry.shown:  # it came and went before it was written
                    del known.entries[reason]

    # -- what to write -------------------------------------------------------------------------------------------------

    def next_write(self, now: float, at: str) -> EventWrite | None:
        """A write that is due at `now` (monotonic seconds; `at` is the same on the wall clock, as MicroTime) within the
        limits, of which it takes its part. It is reported to `written`, `gone` or
        `failed` before the next call."""
        for key, known in tuple(self._objects.items()):
            for reason, entry in tuple(known.entries.items()):
                kind = entry.pending(now)
                if not kind:
                    self._expire(known, reason, entry, now)
                elif now >= known.not_before and known.bucket.available(now) and self._total.available(now):
                    known.bucket.take()
                    self._total.take()
                    return self._write(known, reason, entry, kind, now, at)
            if not known.entries and not any(known.reported.values()):
                del self._objects[key]
        return None

    def next_due(self, now: float) -> float:
        """Seconds until `next_write` has something, as far as it is known now; at most HEARTBEAT_SECONDS."""
        wait = HEARTBEAT_SECONDS
        self._total.available(now)
        for known in self._objects.values():
            known.bucket.available(now)
            for entry in known.entries.values():
                if entry.pending(now):
                    limits = max(known.bucket.wait(), self._total.wait(), known.not_before - now, 0.0)
                    wait = min(wait, limits)
                elif entry.note is not None and entry.warning is not None:
                    wait = min(wait, max(0.0, entry.warning.at + HEARTBEAT_SECONDS - now))
        return wait

    def written(self, write: EventWrite, now: float) -> None:
        """The API server has taken the write."""
        entry = self._entry(write)
        if entry is None:
            return
        series = _Series(write.name, write.note, write.occurrences, now)
        if write.type == WARNING:
            entry.warning = series
            entry.seen = 0
        else:
            entry.normal = series
        entry.shown = write.type

    def gone(self, write: EventWrite) -> None:
        """The Event of a series is no longer there: the next one is a new Event."""
        entry = self._entry(write)
        if entry is not None:
            if write.type == WARNING:
                entry.warning = None
                entry.seen = max(entry.seen, 1)
            else:
                entry.normal = None

    def failed(self, write: EventWrite, until: float) -> None:
        """The write failed; nothing is written about the object before `until` (monotonic seconds)."""
        known = self._objects.get(write.ref.anonymous)
        if known is not None:
            known.not_before = until

    # -- within --------------------------------------------------------------------------------------------------------

    def _entry(self, write: EventWrite) -> _Entry | None:
        known = self._objects.get(write.ref.anonymous)
        return None if known is None else known.entries.get(write.reason)

    def _expire(self, known: _Object, reason: str, entry: _Entry, now: float) -> None:
        """Forget a problem that is resolved, once its Events are gone."""
        if entry.note is None and (entry.normal is None or now - entry.normal.at >= TTL_SECONDS):
            del known.entries[reason]

    def _write(self, known: _Object, reason: str, entry: _Entry, kind: str, now: float, at: str) -> EventWrite:
        if kind == WARNING:
            note, series, seen = entry.note or "", entry.warning, entry.seen or 1
        else:
            note, series, seen = _cut(f"{known.ref}: {reason} is resolved", NOTE_BYTES), entry.normal, 1
        if series is not None and series.note == note and now - series.at < TTL_SECONDS:
            count = series.count + seen
            body = {"series": {"count": count, "lastObservedTime": at}}
            return EventWrite(known.ref, reason, kind, note, False, series.name, count, _encode(body))
        self._number += 1
        ref = known.ref
        unique = xxhash.xxh3_64_hexdigest(f"{at} {self._instance} {self._number}".encode())
        name = f"{ref.name[:_NAME_LENGTH].rstrip('.-')}.{unique}"
        regarding = {"apiVersion": ref.api_version, "kind": ref.kind, "namespace": ref.namespace, "name": ref.name}
        if ref.uid:
            regarding["uid"] = ref.uid
        event: dict[str, object] = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": ref.namespace},
            "eventTime": at,
            "type": kind,
            "reason": reason if kind == WARNING else RESOLVED,
            "action": action_of(reason),
            "note": note,
            "regarding": regarding,
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
        }
        if seen > 1:
            event["series"] = {"count": seen, "lastObservedTime": at}
        return EventWrite(ref, reason, kind, note, True, name, seen, _encode(event))


def _notes(known: _Object) -> dict[str, str]:
    """The note of each reason that the object has now: the message of the first problem with it."""
    messages: dict[str, list[str]] = {}
    for problems in known.reported.values():
        for problem in problems:
            messages.setdefault(problem.reason, []).append(problem.message)
    return {
        reason: _cut(first, NOTE_BYTES - 32) + (f" (and {len(others)} more)" if others else "")
        for reason, (first, *others) in messages.items()
    }


def _cut(text: str, size: int) -> str:
    """The text in at most so many bytes of UTF-8."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= size:
        return encoded.decode()
    return encoded[: size - 3].decode("utf-8", "ignore") + "..."
