"""The changes behind `GET /v1/state/watch`: encoded once, sent to every watcher, kept so that a watcher can resume.

While there are no watchers, a change of the state costs one addition. Otherwise changes are collected for
`gather_seconds`, compared with the state that was published last, encoded once, and added to a bounded history. Each
watcher reads the history at its own pace. A watcher that falls behind the history, or that does not receive an event
within `drain_seconds`, is disconnected; it delays no other watcher, because nothing is queued for a single watcher. It
may reconnect with the id of the last event that it received: it gets the events that it missed if the history covers
them, and a full state otherwise. An event contains complete endpoints, so applying it twice is harmless.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from agent.clock import Clock
from agent.flow.report import FlowReport
from agent.serve.state import documents
from agent.serve.state.flow_documents import pool_flow
from agent.serve.state.moment import Moment
from agent.serve.state.schema import PoolFlowJson
from agent.state.snapshot import EndpointView, Snapshot
from agent.state.source import SourceStatus


class StateSource(Protocol):
    """The state of one pool, as `agent.state.store.RoutingStore` keeps it."""

    pool: str
    on_change: list[Callable[[], None]]

    def snapshot(self, now: float) -> Snapshot:
        """All endpoints at `now`."""
        ...


class FlowSource(Protocol):
    """The reports of flow control, as `agent.app.pools.Pools` gives them."""

    def __call__(self, now: float, pool: str | None = None, *, inputs: bool = False) -> Sequence[FlowReport]:
        """Those of all pools, or of the one of this name; `inputs`: with what each room is computed from."""
        ...


def no_flows(now: float, pool: str | None = None, *, inputs: bool = False) -> Sequence[FlowReport]:
    """No pool has flow control."""
    return ()


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """Bounds on the cost of the stream. `history_bytes` and `history_events` do not apply to the newest event. Flow
    control is published at most once in `flow_seconds`: rooms change with every request."""

    watchers: int = 64
    gather_seconds: float = 0.05
    flow_seconds: float = 1.0
    heartbeat_seconds: float = 5.0
    drain_seconds: float = 5.0
    message_bytes: int = 64 << 20
    history_bytes: int = 16 << 20
    history_events: int = 1024


class ChangeEvent(NamedTuple):
    """A `change` event: turns the state at `since`, or at any later version, into the state at `version`."""

    since: int
    version: int
    payload: bytes


class PublishedState(NamedTuple):
    """The state at the version of the last event: a full `state` event is made from it."""

    version: int
    snapshots: Sequence[Snapshot]
    moment: Moment
    flows: Mapping[str, PoolFlowJson] = documents.NO_FLOWS


class History:
    """The last events, bounded in number and bytes except for the newest. It holds every event after `base`."""

    def __init__(self, max_bytes: int, max_events: int) -> None:
        self.base = 0
        self._max_bytes = max_bytes
        self._max_events = max_events
        self._bytes = 0
        self._events: deque[ChangeEvent] = deque()

    def add(self, change: ChangeEvent) -> None:
        """Append an event; the oldest ones are removed while there are too many."""
        self._events.append(change)
        self._bytes += len(change.payload)
        while len(self._events) > 1 and (len(self._events) > self._max_events or self._bytes > self._max_bytes):
            removed = self._events.popleft()
            self._bytes -= len(removed.payload)
            self.base = removed.version

    def reset(self, version: int) -> None:
        """Remove every event: a watcher behind `version` needs a full state."""
        self._events.clear()
        self._bytes = 0
        self.base = version

    def covers(self, version: int) -> bool:
        """Whether exactly this version was published and every later event is in the history.

        A version between two events is not covered: an endpoint may have been added before it and removed after it, and
        no event would report the removal.
        """
        return version == self.base or any(version in (each.since, each.version) for each in self._events)

    def after(self, version: int) -> list[ChangeEvent] | None:
        """The events after `version`, the oldest first; None when some of them are no longer in the history."""
        if version < self.base:
            return None
        missed = []
        for each in reversed(self._events):
            if each.version <= version:
                break
            missed.append(each)
        missed.reverse()
        return missed


def event(kind: str, epoch: str, version: int, payload: bytes) -> bytes:
    """A server-sent event. The payload is JSON without line breaks, so one `data` line holds it."""
    return b"id: %s.%d\nevent: %s\ndata: %s\n\n" % (epoch.encode(), version, kind.encode(), payload)


def parse_id(text: str) -> tuple[str, int] | None:
    """Epoch and version of an event's id; None for text that is not an id."""
    epoch, dot, version = text.rpartition(".")
    if not (dot and epoch and version.isascii() and version.isdigit() and len(version) < 20):
        return None
    return epoch, int(version)


# Seconds after the first reading expires. A timer may fire early by the clock's resolution.
_EXPIRY_MARGIN: Final = 0.001


class Feed:
    """The state of all pools under one version, and the events of its changes. For one event loop; no locks."""

    def __init__(self, clock: Clock, epoch: str, limits: WatchLimits) -> None:
        self.epoch = epoch
        self.limits = limits
        self.version = 1
        self.published_version = 0
        self.closed = False
        self.oversized = 0  # the last version whose change was too large for an event
        self.history = History(limits.history_bytes, limits.history_events)
        self.flow_reports: FlowSource = no_flows
        self._clock = clock
        self._began = clock.now()
        self._sources: list[StateSource] = []
        self._published: dict[str, dict[str, EndpointView]] = {}
        self._published_sources: dict[str, SourceStatus | None] = {}
        self._published_flows: Mapping[str, PoolFlowJson] = documents.NO_FLOWS
        self._flows_at = float("-inf")
        self._watchers: set[asyncio.Event] = set()
        self._gathering: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._flows_due: asyncio.TimerHandle | None = None

    def set_sources(self, sources: Sequence[StateSource]) -> None:
        """Replace the pools. The version continues: an added or removed pool is a change like any other."""
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
        """The newest snapshot of each pool, or of the pool of this name."""
        return [source.snapshot(now) for source in self._sources if pool is None or source.pool == pool]

    def flows(self, now: float, pool: str | None = None) -> dict[str, PoolFlowJson]:
        """Flow control by pool, of all pools or of the one of this name."""
        return {each.pool: pool_flow(each) for each in self.flow_reports(now, pool)}

    def pools(self) -> list[str]:
        """The names of the pools."""
        return [source.pool for source in self._sources]

    # -- watchers --------------------------------------------------------------------------------------------------

    @property
    def watchers(self) -> int:
        """The number of watchers."""
        return len(self._watchers)

    def join(self) -> asyncio.Event:
        """Add a watcher. The returned event is set whenever the history has a new event, and when the feed closes."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        return changed

    def leave(self, changed: asyncio.Event) -> None:
        """Remove the watcher that got this event."""
        self._watchers.discard(changed)
        if not self._watchers:
            self._cancel_timers()

    def covers(self, version: int) -> bool:
        """Whether a watcher at `version` can resume from the history."""
        return version == self.published_version or self.history.covers(version)

    def close(self) -> None:
        """Wake every watcher to end its stream: the agent stops."""
        self.closed = True
        self._cancel_timers()
        for changed in self._watchers:
            changed.set()

    def publish(self) -> PublishedState:
        """Encode what changed since the last call, if anything did, and wake the watchers; returns the state."""
        moment = self.moment()
        snapshots = self.snapshots(moment.now)
        after = {each.pool: {view.address: view for view in each.endpoints} for each in snapshots}
        changes, removed_pools = documents.differences(self._published, after)
        sources = {each.pool: each.source for each in snapshots}
        changes = documents.with_sources(changes, self._published_sources, sources)
        flows = self._flows(moment.now, sources)
        changes = documents.with_flows(changes, self._published_flows, flows, sources)
        since = self.published_version
        if (changes or removed_pools) and self.version == since:
            self.version += 1  # a source changed without calling on_change, as a reading that expired
        version = self.version
        self._published, self._published_sources, self._published_flows = after, sources, flows
        self.published_version = version
        if since == 0:
            self.history.reset(version)
        elif version != since:  # also without a visible change, so that every watcher reaches this version
            document = documents.change(self.epoch, since, version, changes, removed_pools, moment)
            payload = event("change", self.epoch, version, documents.encode(document))
            if len(payload) > self.limits.message_bytes:
                self.history.reset(version)
                self.oversized = version
            else:
                self.history.add(ChangeEvent(since, version, payload))
            for changed in self._watchers:
                changed.set()
        self._schedule_expiry(min((each.good_until for each in snapshots), default=float("inf")), moment.now)
        return PublishedState(version, snapshots, moment, flows)

    def _flows(self, now: float, pools: Mapping[str, object]) -> Mapping[str, PoolFlowJson]:
        """Flow control of these pools: that of now, or the published one while that is new enough; then it is published
        when that time is over."""
        left = self._flows_at + self.limits.flow_seconds - now
        if left <= 0 or self._published_flows.keys() != pools.keys():
            self._flows_at = now
            return self.flows(now)
        if self._watchers and self._flows_due is None and not self.closed:
            self._flows_due = asyncio.get_running_loop().call_later(left + _EXPIRY_MARGIN, self._publish_flows)
        return self._published_flows

    def _publish_flows(self) -> None:
        self._flows_due = None
        self.publish()

    def _changed(self) -> None:
        self.version += 1
        if self._watchers and self._gathering is None and not self.closed:
            self._gathering = asyncio.get_running_loop().call_later(self.limits.gather_seconds, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self.publish()

    def _schedule_expiry(self, good_until: float, now: float) -> None:
        """Publish again when the first reading becomes stale: no source reports that change."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._watchers and good_until != float("inf") and not self.closed:
            delay = max(self.limits.gather_seconds, good_until - now) + _EXPIRY_MARGIN
            self._expiry = asyncio.get_running_loop().call_later(delay, self.publish)

    def _cancel_timers(self) -> None:
        for timer in (self._gathering, self._expiry, self._flows_due):
            if timer is not None:
                timer.cancel()
        self._gathering = self._expiry = self._flows_due = None
