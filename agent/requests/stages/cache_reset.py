"""The stage that follows requests which empty a prefix cache: the index forgets the blocks of their endpoint."""

from __future__ import annotations

from collections.abc import Callable

from agent.requests.paths import empties
from agent.requests.response import OK
from agent.requests.ticket import CONTINUE, Result, Ticket


class CacheResetStage:
    """Calls `reset(address, reason, now)` when a request that empties the cache of its endpoint has ended.

    At its end and not at its pick: a prompt that is sent there meanwhile is lost as well. A request that failed emptied
    nothing, so where the proxy reports results (`awaited`) the stage waits for them (`reported`).
    """

    name = "cache_reset"

    def __init__(self, reset: Callable[[str, str, float], None], awaited: Callable[[Ticket], bool]) -> None:
        self._reset = reset
        self._awaited = awaited

    def process(self, ticket: Ticket, now: float) -> Result:
        """CONTINUE: nothing happens before the end of the request."""
        return CONTINUE

    def shut_down(self, now: float) -> None:
        """Nothing: it holds no ticket."""

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """Never called: the stage does not wait."""

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """Report the endpoint's cache as empty where the request had emptied it."""
        if ticket.pick is None or not empties(ticket.path, ticket.method):
            return
        if ticket.result == OK or not (ticket.result or self._awaited(ticket)):
            self._reset(ticket.endpoint, "request", now)

    def reported(self, ticket: Ticket, now: float) -> None:
        """The result of a request that is over became known."""
        if ticket.result == OK and empties(ticket.path, ticket.method):
            self._reset(ticket.endpoint, "request", now)
