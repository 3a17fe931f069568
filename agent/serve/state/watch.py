"""The stream of changes behind `GET /v1/state/watch`: made once, sent to many, remembered for those who come back.

While nobody watches, a change of state costs one addition. While somebody does, changes are gathered for
`gather_seconds`, compared with what was last told, encoded once, and put into a bounded history from which every
watcher takes at its own pace. A watcher that falls out of the history, or that does not take a message within
`drain_seconds`, is let go; it holds up nobody, because nobody waits for it and nothing is queued for it alone. It can
come back with the id of the last event that it saw: if the history still covers that, it gets what it missed, and
otherwise a full state. A message holds whole endpoints, so that applying one twice does no harm.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import orjson

from agent.clock import Clock
from agent.serve.state import documents as state_json
from agent.serve.state.documents import Moment
from agent.state.snapshot import EndpointView, Snapshot


class StateSource(Protocol):
    """One pool's state, as `agent.state.store.RoutingStore` keeps it."""

    pool: str
    on_change: list[Callable[[], None]]

    def snapshot(self, now: float) -> Snapshot:
        """All endpoints at `now`."""
        ...


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """How much the stream may cost."""

    watchers: int = 64
    gather_seconds: float = 0.05
    heartbeat_seconds: float = 5.0
    drain_seconds: float = 5.0
    message_bytes: int = 64 << 20
    history_bytes: int = 16 << 20
    history_messages: int = 1024


class Message(NamedTuple):
    """A `change` event: it makes the state at `version` of any state from `since` on."""

    since: int
    version: int
    payload: bytes


class Told(NamedTuple):
    """A state that changes are told of: what a full `state` event is made from."""

    version: int
    snapshots: Sequence[Snapshot]
    moment: Moment


class History:
    """The last messages, bounded in number and bytes but for the newest; all that was told after `base` is in them."""

    def __init__(self, most_bytes: int, most_messages: int) -> None:
        self.base = 0
        self._most_bytes = most_bytes
        self._most_messages = most_messages
        self._bytes = 0
        self._messages: deque[Message] = deque()

    def add(self, message: Message) -> None:
        """Remember a message; the oldest ones leave when there are too many."""
        self._messages.append(message)
        self._bytes += len(message.payload)
        while len(self._messages) > 1 and (len(self._messages) > self._most_messages or self._bytes > self._most_bytes):
            gone = self._messages.popleft()
            self._bytes -= len(gone.payload)
            self.base = gone.version

    def restart(self, version: int) -> None:
        """Forget all: nobody who is behind `version` can be helped any more."""
        self._messages.clear()
        self._bytes = 0
        self.base = version

    def knows(self, version: int) -> bool:
        """Whether a state of exactly this version was told, and everything since then is remembered.

        A version between two messages does not do: an endpoint may have come before it and gone after it, and no
        message would tell that it has gone.
        """
        return version == self.base or any(version in (each.since, each.version) for each in self._messages)

    def after(self, version: int) -> list[Message] | None:
        """What somebody at `version` has not seen, oldest first; None when part of that is forgotten."""
        if version < self.base:
            return None
        missed = []
        for message in reversed(self._messages):
            if message.version <= version:
                break
            missed.append(message)
        missed.reverse()
        return missed


def event(kind: str, epoch: str, version: int, payload: bytes) -> bytes:
    """A server-sent event. The payload is JSON without line ends, so one `data` line holds it."""
    return b"id: %s.%d\nevent: %s\ndata: %s\n\n" % (epoch.encode(), version, kind.encode(), payload)


def parse_id(text: str) -> tuple[str, int] | None:
    """Epoch and version of an event's id, or None where the text is none of ours."""
    epoch, dot, version = text.rpartition(".")
    if not (dot and epoch and version.isascii() and version.isdigit() and len(version) < 20):
        return None
    return epoch, int(version)


_SOON: Final = 0.001  # seconds; a timer may be early by the clock's grain, and a reading must have expired by then


class Feed:
    """All pools' state with one version, and the stream of its changes. One event loop; nothing here is locked."""

    def __init__(self, clock: Clock, epoch: str, limits: WatchLimits) -> None:
        self.epoch = epoch
        self.limits = limits
        self.version = 1
        self.closed = False
        self.oversized = 0  # the last version that was too large to be told as a change
        self.history = History(limits.history_bytes, limits.history_messages)
        self._clock = clock
        self._began = clock.now()
        self._sources: list[StateSource] = []
        self._told: dict[str, dict[str, EndpointView]] = {}
        self.told_version = 0
        self._watchers: set[asyncio.Event] = set()
        self._due: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None

    def set_sources(self, sources: Sequence[StateSource]) -> None:
        """The pools from now on. Versions go on: a pool that comes or goes is a change like any other."""
        for source in self._sources:
            source.on_change.remove(self._changed)
        self._sources = list(sources)
        for source in self._sources:
            source.on_change.append(self._changed)
        self._changed()

    def moment(self) -> Moment:
        """Now, on the three clocks of a document."""
        now = self._clock.now()
        return Moment(now, self._clock.wall(), now - self._began)

    def snapshots(self, now: float, pool: str | None = None) -> list[Snapshot]:
        """The newest snapshot of each pool, or of one of them."""
        return [source.snapshot(now) for source in self._sources if pool is None or source.pool == pool]

    def pools(self) -> list[str]:
        """The names of the pools."""
        return [source.pool for source in self._sources]

    # -- watchers --------------------------------------------------------------------------------------------------

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._watchers)

    def join(self) -> asyncio.Event:
        """One watcher more; the event that it gets is set whenever there is something new in the history."""
        awake = asyncio.Event()
        self._watchers.add(awake)
        return awake

    def leave(self, awake: asyncio.Event) -> None:
        """One watcher less."""
        self._watchers.discard(awake)
        if not self._watchers:
            self._cancel_timers()

    def covers(self, version: int) -> bool:
        """Whether a watcher at `version` can be brought up to date from the history."""
        return version == self.told_version or self.history.knows(version)

    def close(self) -> None:
        """Let every watcher go: the agent stops."""
        self.closed = True
        self._cancel_timers()
        for awake in self._watchers:
            awake.set()

    def tell(self) -> Told:
        """Encode what changed since this was last called, if anything did, and wake the watchers; returns the state."""
        moment = self.moment()
        snapshots = self.snapshots(moment.now)
        after = {each.pool: {view.address: view for view in each.endpoints} for each in snapshots}
        changes, gone = state_json.differences(self._told, after)
        since = self.told_version
        if (changes or gone) and self.version == since:
            self.version += 1  # a source that has changed without a word
        version = self.version
        self._told, self.told_version = after, version
        if since == 0:
            self.history.restart(version)
        elif version != since:  # told even when nothing in it can be seen, so that every watcher comes to this version
            document = state_json.change(self.epoch, since, version, changes, gone, moment)
            payload = event("change", self.epoch, version, orjson.dumps(document))
            if len(payload) > self.limits.message_bytes:
                self.history.restart(version)
                self.oversized = version
            else:
                self.history.add(Message(since, version, payload))
            for awake in self._watchers:
                awake.set()
        self._schedule_expiry(min((each.good_until for each in snapshots), default=float("inf")), moment.now)
        return Told(version, snapshots, moment)

    def _changed(self) -> None:
        self.version += 1
        if self._watchers and self._due is None and not self.closed:
            self._due = asyncio.get_running_loop().call_later(self.limits.gather_seconds, self._gathered)

    def _gathered(self) -> None:
        self._due = None
        self.tell()

    def _schedule_expiry(self, good_until: float, now: float) -> None:
        """A reading that goes stale is a change that nobody reports: look again when the first one does."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._watchers and good_until != float("inf") and not self.closed:
            wait = max(self.limits.gather_seconds, good_until - now) + _SOON
            self._expiry = asyncio.get_running_loop().call_later(wait, self.tell)

    def _cancel_timers(self) -> None:
        for timer in (self._due, self._expiry):
            if timer is not None:
                timer.cancel()
        self._due = self._expiry = None
