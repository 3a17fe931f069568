"""The state of a pool that a test sets directly, where the rules of the store are not under test."""

from __future__ import annotations

from collections.abc import Callable

from agent.state.snapshot import EndpointView, Snapshot
from agent.state.source import SourceStatus


class FakeStateSource:
    """Holds these views; each `put` or `drop` is one change."""

    def __init__(self, pool: str = "pool", *views: EndpointView) -> None:
        self.pool = pool
        self.version = 1
        self.good_until = float("inf")
        self.on_change: list[Callable[[], None]] = []
        self.views = {view.address: view for view in views}
        self.source: SourceStatus | None = None

    def snapshot(self, now: float) -> Snapshot:
        """The views, sorted by address."""
        views = tuple(self.views[address] for address in sorted(self.views))
        return Snapshot(self.pool, self.version, now, self.good_until, views, source=self.source)

    def set_source(self, source: SourceStatus) -> None:
        """Another status of the source."""
        self.source = source
        self._changed()

    def put(self, *views: EndpointView) -> None:
        """Add or replace these endpoints."""
        self.views |= {view.address: view for view in views}
        self._changed()

    def drop(self, address: str) -> None:
        """Remove this endpoint."""
        del self.views[address]
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        for call in self.on_change:
            call()
