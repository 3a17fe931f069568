"""The stages between the submission of a request and its decision.

    submit(request, on_decision) --> ticket --> stage --> stage --> ... --> pick | rejection

A stage returns `CONTINUE`, a decision, or `WAIT`: it keeps the ticket and later calls `Ticket.resume` with `CONTINUE`
or a decision. A client that leaves while a stage waits cancels the ticket, and the stage that holds it is notified; so
queues, guards and quotas are stages, and the code on both sides of the pipeline does not change. Without a stage that
waits, `on_decision` is called within `submit`.

What a stage reserves for a ticket is returned in `ended`, which is called once for each stage that the ticket has
passed, whether it is picked, rejected or cancelled. A stage that raises rejects its ticket, and affects no other.

Pure: `now` is a function that the shell supplies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from agent.events import Hook
from agent.events.exchange import Exchange, TokenUsage
from agent.events.requests import Abandoned, StreamBroken
from agent.pick.decision import Pick
from agent.requests.rejections import Rejection
from agent.requests.response import Response
from agent.requests.ticket import CONTINUE, NEVER, PENDING, WAIT, Request, Result, Ticket

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
        """A ticket that this stage has passed or picked for is over.

        `how`: `closed` or `lost` for a picked one; `rejected` or `cancelled` at a later stage.
        """
        ...

    def shut_down(self, now: float) -> None:
        """The agent stops: decide on every ticket that this stage holds, and hold none from now on."""
        ...


class ReportSink(Protocol):
    """Takes load reports."""

    def reported(self, ticket: Ticket, report: str, served: str, now: float) -> None:
        """A load report of a ticket in flight."""
        ...


class ResponseSink(Protocol):
    """Takes what the proxy reports of responses."""

    def responded(self, ticket: Ticket, response: Response, now: float) -> None:
        """The response headers of a ticket in flight."""
        ...


class Pipeline:
    """The pipeline of one pool. The last stage decides every ticket that reaches it."""

    def __init__(
        self,
        pool: str,
        stages: Sequence[Stage],
        now: Callable[[], float],
        hook: Hook,
        reports: ReportSink,
        responses: ResponseSink,
    ) -> None:
        self._pool = pool
        self._stages = tuple(stages)
        self._now = now
        self._hook = hook
        self._reports = reports
        self._responses = responses
        self.waiting = 0  # tickets that a stage holds
        self.in_flight = 0  # tickets that were picked and have not ended

    def submit(self, request: Request, on_decision: OnDecision) -> Ticket:
        """Process a request up to its decision, or up to the first stage that waits."""
        ticket = Ticket(self, request, on_decision, self._now())
        self._advance(ticket)
        return ticket

    def shut_down(self) -> None:
        """Decide on every ticket that a stage holds: no time is left to wait."""
        for stage in self._stages:
            try:
                stage.shut_down(self._now())
            except Exception as error:  # noqa: BLE001  the other stages decide on theirs all the same
                self._failed(stage, error)

    # -- calls of a ticket -------------------------------------------------------------------------------------------

    def resume(self, ticket: Ticket, result: Result) -> bool:
        """Go on with a ticket that a stage held; False where it was cancelled meanwhile."""
        if result is WAIT:
            raise ValueError("a ticket is resumed with CONTINUE or a decision")
        if not ticket.pending:
            return False
        self._end_hold(ticket)
        if result is CONTINUE:
            ticket.stage += 1
            self._advance(ticket)
        else:
            self._decide(ticket, result)
        return True

    def cancelled(self, ticket: Ticket) -> None:
        """A ticket was cancelled before its decision."""
        stage, now = self._stages[ticket.stage], self._now()
        if self._end_hold(ticket):  # else the stage is processing it, and its result is dropped
            try:
                stage.cancelled(ticket, now)
            except Exception as error:  # noqa: BLE001  the stages before it are notified all the same
                self._failed(stage, error)
        self._notify(ticket, self._stages[: ticket.stage], "cancelled", now)
        self._hook(Abandoned(self._pool, stage.name))

    def reported(self, ticket: Ticket, report: str, served: str) -> None:
        """A load report arrived with the response of a ticket in flight."""
        self._reports.reported(ticket, report, served, self._now())

    def responded(self, ticket: Ticket, response: Response) -> None:
        """The response headers of a ticket in flight arrived at the proxy."""
        self._responses.responded(ticket, response, self._now())

    def body_started(self, ticket: Ticket) -> None:
        """The first bytes of the response to a ticket in flight have passed the proxy."""
        ticket.first_byte_at = self._now()

    def body_ended(self, ticket: Ticket, size: int, usage: TokenUsage, *, streamed: bool) -> None:
        """The body of the response is over. The times are from the submission of the request: where the agent measures,
        the time in which the request's body arrived is no part of them."""
        took = self._now() - ticket.submitted_at
        first = ticket.first_byte_at - ticket.submitted_at
        ticket.exchange = Exchange(
            took, None if ticket.first_byte_at == NEVER else first, took, ticket.body_bytes, size, streamed, usage
        )

    def ended(self, ticket: Ticket, how: str) -> None:
        """A picked ticket ended: every stage up to the one that decided is notified, the last one first."""
        self.in_flight -= 1
        self._notify(ticket, self._stages[: ticket.stage + 1], how, self._now())

    # -- within ------------------------------------------------------------------------------------------------------

    def _advance(self, ticket: Ticket) -> None:
        now, stages = ticket.submitted_at if not ticket.stage else self._now(), self._stages
        while True:
            number = ticket.stage
            try:
                result = stages[number].process(ticket, now)
            except Exception as error:  # noqa: BLE001  a defect of a stage must not leave a client without an answer
                self._failed(stages[number], error)
                result = Rejection("error", "The gateway's endpoint picker failed on this request.")
            if result is CONTINUE and ticket.state == PENDING:
                ticket.stage = number + 1
                continue
            if result is WAIT:
                if ticket.pending and ticket.stage == number:  # else it was resumed or cancelled within `process`
                    ticket.held = True
                    self.waiting += 1
            else:
                self._decide(ticket, result)
            return

    def _decide(self, ticket: Ticket, decision: Result) -> None:
        if not ticket.pending:  # cancelled within `process`: a pick is taken back
            if isinstance(decision, Pick):
                self._notify(ticket, (self._stages[ticket.stage],), "cancelled", self._now())
            return
        if isinstance(decision, Pick):
            self.in_flight += 1
            ticket.decide(decision)
        elif isinstance(decision, Rejection):
            self._notify(ticket, self._stages[: ticket.stage], "rejected", self._now())
            ticket.decide(decision)

    def _end_hold(self, ticket: Ticket) -> bool:
        """End the hold of a stage on the ticket; whether there was one."""
        held = ticket.held
        if held:
            ticket.held = False
            self.waiting -= 1
        return held

    def _notify(self, ticket: Ticket, stages: tuple[Stage, ...], how: str, now: float) -> None:
        """Notify these stages that the ticket is over, the last one first."""
        for stage in reversed(stages):
            try:
                stage.ended(ticket, how, now)
            except Exception as error:  # noqa: BLE001  the other stages are notified all the same
                self._failed(stage, error)

    def _failed(self, stage: Stage, error: Exception) -> None:
        self._hook(StreamBroken(self._pool, "error", f"stage {stage.name}: {error!r}"))
