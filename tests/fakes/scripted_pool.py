"""A pool for the picker port whose picks are set by the test; it records the requests and their ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.events import Hook, ignore
from agent.pick.decision import NoPick, Pick
from agent.pick.request import Prompt
from agent.requests.flow_headers import DEFAULT_RULES
from agent.requests.flow_terms import FlowHeaders
from agent.requests.pipeline import OnDecision, Pipeline
from agent.requests.rejections import Rejection
from agent.requests.response import Response
from agent.requests.stages.parse import ParseStage
from agent.requests.ticket import WAIT, Request, Result, Ticket


class ScriptedPool:
    """`choose` gives the endpoint of a prompt and its subset, a NoPick, or an exception to raise.

    With `holds` every request is held for so many seconds at most, or for as long as its proxy waits, and then rejected
    as expired; `held` has those that are.
    """

    name = "pool"

    def __init__(self, *endpoints: str, hook: Hook = ignore) -> None:
        self.endpoints = endpoints
        self.choose: Callable[[Prompt, frozenset[str] | None], str | NoPick | Exception] = lambda _, __: self.endpoints[
            0
        ]
        self.requests: list[tuple[str, Prompt, frozenset[str] | None]] = []
        self.fallbacks: tuple[str, ...] = ()
        self.picks = 0
        self.holds: float | None = None
        self.never = False  # a request is neither held for a known time nor decided
        self.held: dict[Ticket, asyncio.TimerHandle] = {}
        self.cancels = 0
        self.ended_as: list[str] = []
        self.ended_twice = 0
        self.is_ready = True
        self.reports = False
        self.flow_rules = DEFAULT_RULES
        self.flow_headers: list[FlowHeaders] = []  # of the requests
        self.load_reports: list[tuple[str, str, str]] = []  # endpoint, report, endpoint that answered
        self.responses: list[Response] = []  # from response headers
        self.open_logs = 0
        self.log: list[tuple[str, Response]] = []  # from the access log
        self.open: set[Ticket] = set()
        self.pipeline = Pipeline(self.name, [ParseStage(), ChooseStage(self)], lambda: 0.0, hook, self, self)

    def pick(self, ticket: Ticket, chosen: str, waited: float = 0.0) -> Pick:
        self.picks += 1
        self.open.add(ticket)
        pick = Pick(ticket.request_id, chosen, self.fallbacks, 1, 0, 0, "tie", (chosen,), (0.0,), {}, 1)
        return pick._replace(waited_seconds=waited)

    def release(self, waited: float = 1.5) -> None:
        """Pick for every held request."""
        for ticket in list(self.held):
            self.release_one(ticket, waited)

    def release_one(self, ticket: Ticket, waited: float = 1.5) -> None:
        """Pick for one held request."""
        self.held.pop(ticket).cancel()
        ticket.resume(self.pick(ticket, self.endpoints[0], waited))

    @property
    def in_flight(self) -> int:
        return len(self.open)

    def submit(self, request: Request, on_decision: OnDecision) -> Ticket:
        return self.pipeline.submit(request, on_decision)

    def reported(self, ticket: Ticket, report: str, served: str, now: float) -> None:
        assert ticket in self.open
        assert ticket.pick is not None
        self.load_reports.append((ticket.pick.endpoint, report, served))

    def responded(self, ticket: Ticket, response: Response, now: float) -> None:
        assert ticket in self.open
        self.responses.append(response)

    def shut_down(self) -> None:
        self.pipeline.shut_down()

    def log_opened(self) -> None:
        self.open_logs += 1

    def log_closed(self) -> None:
        self.open_logs -= 1

    def logged(self, request_id: str, response: Response) -> None:
        self.log.append((request_id, response))

    def ready(self) -> bool:
        return self.is_ready


class ChooseStage:
    """The stage that picks what the pool's `choose` says."""

    name = "pick"

    def __init__(self, pool: ScriptedPool) -> None:
        self._pool = pool

    def process(self, ticket: Ticket, now: float) -> Result:
        pool = self._pool
        assert ticket.prompt is not None
        pool.flow_headers.append(ticket.flow_headers)
        pool.requests.append((ticket.request_id, ticket.prompt, ticket.subset))
        chosen = pool.choose(ticket.prompt, ticket.subset)
        if isinstance(chosen, Exception):
            raise chosen
        if isinstance(chosen, NoPick):
            return Rejection(chosen.reason, chosen.detail)
        if pool.never:
            pool.held[ticket] = asyncio.get_running_loop().call_later(3600, self._expire, ticket)
            return WAIT
        if pool.holds is not None:
            ticket.longest_wait = wait = min(pool.holds, ticket.hold_limit)
            pool.held[ticket] = asyncio.get_running_loop().call_later(wait, self._expire, ticket)
            return WAIT
        return pool.pick(ticket, chosen)

    def _expire(self, ticket: Ticket, reason: str = "expired") -> None:
        self._pool.held.pop(ticket).cancel()
        ticket.resume(Rejection(reason, "it was held", waited_seconds=1.0))

    def cancelled(self, ticket: Ticket, now: float) -> None:
        self._pool.held.pop(ticket).cancel()
        self._pool.cancels += 1

    def shut_down(self, now: float) -> None:
        for ticket in list(self._pool.held):
            self._expire(ticket, "shutting_down")

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        pool = self._pool
        if ticket in pool.open:
            pool.open.remove(ticket)
        else:
            pool.ended_twice += 1
        pool.ended_as.append(how)
