"""A pool for the picker port whose picks are set by the test; it records the requests and their ends."""

from __future__ import annotations

from collections.abc import Callable

from agent.pick.decision import NoPick, Pick
from agent.pick.request import Prompt
from agent.requests.pipeline import OnDecision
from agent.requests.rejections import Rejection
from agent.requests.stages.parse import ParseStage
from agent.requests.ticket import Request, Result, Ticket


class ScriptedPool:
    """`choose` gives the endpoint of a prompt and its subset, a NoPick, or an exception to raise."""

    name = "pool"

    def __init__(self, *endpoints: str) -> None:
        self.endpoints = endpoints
        self.choose: Callable[[Prompt, frozenset[str] | None], str | NoPick | Exception] = lambda _, __: self.endpoints[
            0
        ]
        self.requests: list[tuple[str, Prompt, frozenset[str] | None]] = []
        self.fallbacks: tuple[str, ...] = ()
        self.picks = 0
        self.ended_as: list[str] = []
        self.ended_twice = 0
        self.is_ready = True
        self.reports = False
        self.load_reports: list[tuple[str, str, str]] = []  # endpoint, report, endpoint that answered
        self._open: set[Ticket] = set()
        self._parse = ParseStage()

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def submit(self, request: Request, on_decision: OnDecision) -> Ticket:
        ticket = Ticket(self, request, on_decision, 0.0)
        parsed = self._parse.process(ticket, 0.0)
        if isinstance(parsed, Rejection):
            ticket.decide(parsed)
            return ticket
        assert ticket.prompt is not None
        self.requests.append((request.request_id, ticket.prompt, request.subset))
        chosen = self.choose(ticket.prompt, request.subset)
        if isinstance(chosen, Exception):
            raise chosen
        if isinstance(chosen, NoPick):
            ticket.decide(Rejection(chosen.reason, chosen.detail))
            return ticket
        self.picks += 1
        self._open.add(ticket)
        ticket.decide(Pick(request.request_id, chosen, self.fallbacks, 1, 0, 0, "tie", (chosen,), (0.0,), {}, 1))
        return ticket

    def resume(self, ticket: Ticket, result: Result) -> bool:
        raise AssertionError("every ticket is decided at once")

    def cancelled(self, ticket: Ticket) -> None:
        raise AssertionError("every ticket is decided at once")

    def reported(self, ticket: Ticket, report: str, served: str) -> None:
        assert ticket in self._open
        assert ticket.pick is not None
        self.load_reports.append((ticket.pick.endpoint, report, served))

    def ended(self, ticket: Ticket, how: str) -> None:
        if ticket in self._open:
            self._open.remove(ticket)
        else:
            self.ended_twice += 1
        self.ended_as.append(how)

    def ready(self) -> bool:
        return self.is_ready
