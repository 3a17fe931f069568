"""The state of a pool that a test sets directly, where the rules of the store are not under test."""

from __future__ import annotations

from collections.abc import Callable

from agent.state.snapshot import EndpointView, Snapshot


class FakeStateSource:
    """Holds these views; each `put` or `drop` is one change."""

    def __init__(self, pool: str = "pool", *views: EndpointView) -> None:
        self.pool = pool
        self.version = 1
        self.good_until = float("inf")
        self.on_change: list[Callable[[], None]] = []
        self.views = {view.address: view for view in views}

    def snapshot(self, now: float) -> Snapshot:
        """The views, sorted by address."""
        return Snapshot(
            self.pool, self.version, now, self.good_until, tuple(self.views[address] for address in sorted(self.views))
        )

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
