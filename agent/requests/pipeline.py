"""The stages between the submission of a request and its decision.

    submit(request, on_decision) --> ticket --> stage --> stage --> ... --> pick | rejection

A stage returns `CONTINUE`, a decision, or `WAIT`: it keeps the ticket and later calls `Pipeline.resume` with `CONTINUE`
or a decision. A client that leaves while a stage waits cancels the ticket, and the stage that holds it is notified; so
queues, guards and quotas are stages, and the code on both sides of the pipeline does not change. Without a stage that
waits, `on_decision` is called within `submit`.

Pure: `now` is a function that the shell supplies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, Protocol

from agent.events import Hook
from agent.events.requests import Abandoned
from agent.pick.decision import Pick
from agent.requests.rejections import Rejection
from agent.requests.ticket import Request, Ticket


class Step(Enum):
    """What a stage returns besides a decision."""

    CONTINUE = 0
    WAIT = 1


CONTINUE: Final = Step.CONTINUE
WAIT: Final = Step.WAIT
Result = Step | Pick | Rejection
OnDecision = Callable[[Ticket, Pick | Rejection], None]


class Stage(Protocol):
    """One step of the pipeline. `name` is the value of a label."""

    name: str

    def process(self, ticket: Ticket, now: float) -> Result:
        """Process a ticket that the stages before have passed."""
        ...

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """A ticket for which this stage returned WAIT was cancelled."""
        ...

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """A picked ticket that this stage has passed or decided ended."""
        ...


class ReportSink(Protocol):
    """Takes load reports."""

    def reported(self, ticket: Ticket, report: str, served: str, now: float) -> None:
        """A load report of a ticket in flight."""
        ...


class Pipeline:
    """The pipeline of one pool. The last stage decides every ticket that reaches it."""

    def __init__(
        self, pool: str, stages: Sequence[Stage], now: Callable[[], float], hook: Hook, reports: ReportSink
    ) -> None:
        self._pool = pool
        self._stages = tuple(stages)
        self._now = now
        self._hook = hook
        self._reports = reports
        self.waiting = 0  # tickets that a stage holds
        self.in_flight = 0  # tickets that were picked and have not ended

    def submit(self, request: Request, on_decision: OnDecision) -> Ticket:
        """Process a request up to its decision, or up to the first stage that waits."""
        ticket = Ticket(self, request, on_decision, self._now())
        self._advance(ticket)
        return ticket

    def resume(self, ticket: Ticket, result: Result) -> bool:
        """Go on with a ticket that a stage held; False where it was cancelled meanwhile."""
        if not ticket.pending:
            return False
        self.waiting -= 1
        if isinstance(result, Step):
            if result is WAIT:
                raise ValueError("a ticket is resumed with CONTINUE or a decision")
            ticket.stage += 1
            self._advance(ticket)
        else:
            self._decide(ticket, result)
        return True

    # -- calls of a ticket -------------------------------------------------------------------------------------------

    def cancelled(self, ticket: Ticket) -> None:
        """A ticket was cancelled before its decision: only a stage that waits can hold it."""
        stage = self._stages[ticket.stage]
        self.waiting -= 1
        stage.cancelled(ticket, self._now())
        self._hook(Abandoned(self._pool, stage.name))

    def reported(self, ticket: Ticket, report: str, served: str) -> None:
        """A load report arrived with the response of a ticket in flight."""
        self._reports.reported(ticket, report, served, self._now())

    def ended(self, ticket: Ticket, how: str) -> None:
        """A picked ticket ended: every stage up to the one that decided is notified, the last one first."""
        self.in_flight -= 1
        now = self._now()
        for stage in reversed(self._stages[: ticket.stage + 1]):
            stage.ended(ticket, how, now)

    # -- within ------------------------------------------------------------------------------------------------------

    def _advance(self, ticket: Ticket) -> None:
        now, stages = ticket.submitted_at if not ticket.stage else self._now(), self._stages
        while True:
            result = stages[ticket.stage].process(ticket, now)
            if isinstance(result, Step):
                if result is WAIT:
                    self.waiting += 1
                    return
                ticket.stage += 1
            else:
                self._decide(ticket, result)
                return

    def _decide(self, ticket: Ticket, decision: Pick | Rejection) -> None:
        if isinstance(decision, Pick):
            self.in_flight += 1
        ticket.decide(decision)
