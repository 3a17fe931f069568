"""A pool's state that a test sets by hand, where the store's own rules are not what is tested."""

from __future__ import annotations

from collections.abc import Callable

from agent.state.snapshot import EndpointView, Snapshot


class FakeSource:
    """Holds the views that it was given; each `put` or `drop` is one change."""

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
        """These endpoints are new or different."""
        self.views |= {view.address: view for view in views}
        self._changed()

    def drop(self, address: str) -> None:
        """This endpoint is gone."""
        del self.views[address]
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        for call in self.on_change:
            call()
