"""A pool for the picker port whose picks are set by the test; it records the requests and their ends."""

from __future__ import annotations

from collections.abc import Callable

from agent.events import Hook, ignore
from agent.pick.decision import NoPick, Pick
from agent.pick.request import Prompt
from agent.requests.pipeline import OnDecision, Pipeline
from agent.requests.rejections import Rejection
from agent.requests.response import Response
from agent.requests.stages.parse import ParseStage
from agent.requests.ticket import Request, Result, Ticket


class ScriptedPool:
    """`choose` gives the endpoint of a prompt and its subset, a NoPick, or an exception to raise."""

    name = "pool"

    def __init__(self, *endpoints: str, hook: Hook = ignore) -> None:
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
        self.responses: list[Response] = []  # from response headers
        self.open_logs = 0
        self.log: list[tuple[str, Response]] = []  # from the access log
        self.open: set[Ticket] = set()
        self.pipeline = Pipeline(self.name, [ParseStage(), ChooseStage(self)], lambda: 0.0, hook, self, self)

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
        pool.requests.append((ticket.request_id, ticket.prompt, ticket.subset))
        chosen = pool.choose(ticket.prompt, ticket.subset)
        if isinstance(chosen, Exception):
            raise chosen
        if isinstance(chosen, NoPick):
            return Rejection(chosen.reason, chosen.detail)
        pool.picks += 1
        pool.open.add(ticket)
        return Pick(ticket.request_id, chosen, pool.fallbacks, 1, 0, 0, "tie", (chosen,), (0.0,), {}, 1)

    def cancelled(self, ticket: Ticket, now: float) -> None:
        raise AssertionError("every ticket is decided at once")

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        pool = self._pool
        if ticket in pool.open:
            pool.open.remove(ticket)
        else:
            pool.ended_twice += 1
        pool.ended_as.append(how)
