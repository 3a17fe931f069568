"""Sinks of a scrape loop that record what they receive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.clock import Clock, SystemClock
from agent.engines.mapping import Extraction
from agent.state.snapshot import EndpointView
from agent.state.store import RoutingStore
from tests.waiting import eventually


class RecordingSink:
    """Records pages, failures and probes by address. `restarted`: the result of `observed`."""

    def __init__(self) -> None:
        self.pages: dict[str, list[tuple[Extraction, float, float, int]]] = {}
        self.failures: dict[str, list[tuple[str, str]]] = {}
        self.models: dict[str, frozenset[str]] = {}
        self.health_reasons: dict[str, list[str]] = {}
        self.engines: dict[str, list[str]] = {}
        self.restarted: Callable[[Extraction], bool] = lambda _: False
        self._changed = asyncio.Event()

    def observed(self, address: str, extraction: Extraction, at: float, took: float, size: int) -> bool:
        self.pages.setdefault(address, []).append((extraction, at, took, size))
        self._changed.set()
        return self.restarted(extraction)

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        self.failures.setdefault(address, []).append((reason, detail))
        self._changed.set()

    def recognised(self, address: str, engine: str) -> None:
        self.engines.setdefault(address, []).append(engine)

    def served_models(self, address: str, names: frozenset[str], at: float, roots: object = None) -> None:
        self.models[address] = names
        self._changed.set()

    def health(self, address: str, answered: bool, reason: str, detail: str, at: float, took: float) -> None:
        assert answered is not bool(reason)
        self.health_reasons.setdefault(address, []).append(reason)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds after something was recorded; TimeoutError after 20 seconds."""

        async def wait() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(wait(), 20)

    def count(self, address: str) -> int:
        """The number of pages of this address."""
        return len(self.pages.get(address, ()))


class RecordingStore:
    """A routing store, and the results that it received in order: `page`, `page: REASON`, `healthy`, or the reason of a
    failed health probe."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.store = RoutingStore("pool", stale_after=3.0)
        self.order: list[str] = []
        self.pages_at: list[float] = []
        self.details: list[str] = []
        self._clock = clock or SystemClock()

    def observed(self, address: str, extraction: Extraction, at: float, took: float, size: int) -> bool:
        self.order.append("page")
        self.pages_at.append(at)
        return self.store.observed(address, extraction, at, took, size)

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        self.order.append(f"page: {reason}")
        self.store.failed(address, reason, detail, at, took)

    def health(self, address: str, answered: bool, reason: str, detail: str, at: float, took: float) -> None:
        self.order.append(reason or "healthy")
        self.details.append(detail)
        self.store.health(address, answered, reason, detail, at, took)

    def set_endpoints(self, engines: dict[str, str], now: float) -> None:
        self.store.set_endpoints(engines, now)

    def recognised(self, address: str, engine: str) -> None:
        self.store.recognised(address, engine)

    def served_models(self, address: str, names: frozenset[str], at: float, roots: object = None) -> None:
        self.store.served_models(address, names, at)

    @property
    def view(self) -> EndpointView:
        """The one endpoint, now."""
        (view,) = self.store.snapshot(self._clock.now()).endpoints
        return view

    @property
    def verdict(self) -> tuple[str, str]:
        """Health and reason of the one endpoint, now."""
        view = self.view
        return view.health.value, view.reason

    async def until_recorded(self, result: str, times: int = 1) -> None:
        """Wait until this result was received `times` times."""
        await eventually(lambda: self.order.count(result) >= times, what=f"{times} times {result}")
