"""The engine on a real event loop: one timer for a whole server, and a seat for each HTTP request.

The engine says when it next has something to tell; one timer is set for that instant, and what it tells is handed to
the seats. Requests that arrive in one turn of the loop join the same step. The clock is CLOCK_MONOTONIC through
`agent.clock`, as uvloop's own time has a resolution of a millisecond; a timer that rings late delays what is sent, but
no time inside the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agent.clock import Clock
from agent.emulator.engine import Engine
from agent.emulator.orders import Event, Finished, Order
from agent.emulator.settings import Settings

_GRAIN_SECONDS = 0.0005  # half of uvloop's timer resolution: rather late than early and again


class Broken(Exception):
    """The engine died or the server stops: whoever waits for tokens gets this and no more of them."""


class Seat:
    """Where one HTTP request waits for the events of its one or more orders."""

    __slots__ = ("_broken", "_events", "_waiter", "ids")

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._events: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None
        self._broken = False

    def put(self, event: Event) -> None:
        """Hand an event over."""
        self._events.append(event)
        self._wake()

    def break_off(self) -> None:
        """Make `take` raise Broken from now on."""
        self._broken = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Event]:
        """The events since the last call, at least one; Broken if none will come any more."""
        while not self._events:
            if self._broken:
                raise Broken
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        events, self._events = self._events, []
        return events


class Driver:
    """One engine, driven in real time."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self.engine = Engine(settings, clock.now())
        self._seats: dict[int, Seat] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def submit(self, orders: Sequence[Order]) -> Seat:
        """A seat for `orders`, all of them in; QueueFull or DoesNotFit, and none of them in, if one is refused."""
        seat = Seat()
        now = self._clock.now()
        try:
            for order in orders:
                seat.ids.append(self.engine.submit(now, order))
                self._seats[seat.ids[-1]] = seat
        except Exception:
            self.leave(seat)
            raise
        self._arm(now)
        return seat

    def leave(self, seat: Seat) -> None:
        """Whoever had the seat is gone: its orders that still run are aborted."""
        now = self._clock.now()
        for order_id in seat.ids:
            if self._seats.pop(order_id, None) is not None:
                self.engine.abort(now, order_id)
        self._arm(now)

    def break_off(self) -> None:
        """Break every seat: the engine is dead or the server stops."""
        for seat in list(self._seats.values()):
            seat.break_off()

    def stop(self) -> None:
        """Set no more timers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, now: float) -> None:
        due = self.engine.next_event_at()
        if due is None:
            self.stop()
            return
        if self._timer is not None:
            if due == self._due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now + _GRAIN_SECONDS), self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._clock.now()
        for event in self.engine.advance(now):
            over = isinstance(event, Finished)
            seat = self._seats.pop(event.id, None) if over else self._seats.get(event.id)
            if seat is not None:
                seat.put(event)
        self._arm(now)
