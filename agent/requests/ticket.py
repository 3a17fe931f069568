"""One request between its submission and its end.

    submit --> PENDING --+--> PICKED ----> ENDED        `end`: the request is over
                         +--> REJECTED
                         +--> CANCELLED                 `cancel`: the client left before the decision

A ticket is decided at most once and ends at most once; `on_decision` is called exactly once unless the ticket is
cancelled before. Whatever is called in a state that does not allow it changes nothing and returns False.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, NamedTuple, Protocol

from agent.events.exchange import Exchange, TokenUsage
from agent.pick.decision import Pick
from agent.pick.request import PickRequest, Prompt
from agent.requests.flow_terms import DEFAULT_TERMS, NO_FLOW_HEADERS, FlowHeaders
from agent.requests.rejections import Rejection
from agent.requests.response import Response

# States. Integers because a ticket changes state twice for each request.
PENDING: Final = 0
PICKED: Final = 1
REJECTED: Final = 2
CANCELLED: Final = 3
ENDED: Final = 4


class Step(Enum):
    """What a stage returns besides a decision."""

    CONTINUE = 0
    WAIT = 1


NEVER: Final = float("inf")
CONTINUE: Final = Step.CONTINUE
WAIT: Final = Step.WAIT
Result = Step | Pick | Rejection


class Request(NamedTuple):
    """The proxy's data of a request that is to be decided.

    `body` is None if the method has none or the proxy does not send it. `subset` holds
    the only addresses (`ip:port`) that the proxy allows, None for any. `encoding` is the content-encoding.
    `requested` is the model that the client named, where another one replaced it in the body. `content_type` and
    `method` are empty where the proxy does not send them. `hold_limit` is for how many seconds the proxy waits for the
    decision, infinite where it sets no limit.
    """

    request_id: str
    path: str = ""
    body: bytes | None = None
    encoding: str = ""
    subset: frozenset[str] | None = None
    requested: str = ""
    content_type: str = ""
    method: str = ""
    flow_headers: FlowHeaders = NO_FLOW_HEADERS
    hold_limit: float = float("inf")


class TicketOwner(Protocol):
    """The pipeline, as far as a ticket calls it."""

    def resume(self, ticket: Ticket, result: Result) -> bool:
        """A stage has decided on the ticket that it held."""
        ...

    def cancelled(self, ticket: Ticket) -> None:
        """The ticket was cancelled before its decision."""
        ...

    def reported(self, ticket: Ticket, report: str, served: str) -> None:
        """A load report arrived with the response of a picked ticket."""
        ...

    def responded(self, ticket: Ticket, response: Response) -> None:
        """The proxy reported the response to a picked ticket."""
        ...

    def body_started(self, ticket: Ticket) -> None:
        """The first bytes of the response to a picked ticket have passed."""
        ...

    def body_ended(self, ticket: Ticket, size: int, usage: TokenUsage, *, streamed: bool) -> None:
        """The body of the response to a picked ticket is over."""
        ...

    def ended(self, ticket: Ticket, how: str) -> None:
        """A picked ticket ended."""
        ...


class Ticket:
    """One submitted request; `request_id` to `hold_limit` are those of the `Request`.

    `stage` is the index of the stage that processes or holds it, `held` whether it is held; `longest_wait` is for how
    many seconds from now at most, set by the stage that holds it. `terms` are those by which it is picked. `body_bytes`
    is the size of the body as it came.
    `body`, `prompt` and `wanted` are the results of the stages so far; each is released by the stage that consumes it.
    `work_id` identifies the request in the routing state while it is in flight.

    `endpoint` is where the request is: picked, or another one that the proxy named. `result` is a key of
    `agent.requests.outcomes.RESULTS`, empty until the proxy reports the response, `status` is its HTTP status, and
    `completed` whether its end was reported. `first_byte_at` is when the first byte of the response's body passed
    (NEVER: none was seen), `exchange` what was measured where the proxy sends the body. `chain` are the prompt's blocks
    while their credit may have to be taken back, `known_blocks` those of them that the endpoint held before, each of
    `block_tokens`.
    """

    __slots__ = (
        "_on_decision", "_owner", "block_tokens", "body", "body_bytes", "chain", "completed", "content_type",
        "encoding", "endpoint", "exchange", "first_byte_at", "flow_headers", "held", "hold_limit",
        "known_blocks", "longest_wait", "method", "model", "path", "pick", "picked_at", "prompt",
        "request_id", "requested", "result", "stage", "state", "status", "submitted_at", "subset", "terms",
        "wanted", "work_id",
    )  # fmt: skip

    def __init__(
        self,
        owner: TicketOwner,
        request: Request,
        on_decision: Callable[[Ticket, Pick | Rejection], None],
        now: float,
    ) -> None:
        self._owner = owner
        self._on_decision: Callable[[Ticket, Pick | Rejection], None] | None = on_decision
        self.request_id = request.request_id
        self.path = request.path
        self.body = request.body
        self.body_bytes = 0 if request.body is None else len(request.body)
        self.encoding = request.encoding
        self.subset = request.subset
        self.requested = request.requested
        self.content_type = request.content_type
        self.method = request.method
        self.flow_headers = request.flow_headers
        self.hold_limit = request.hold_limit
        self.submitted_at = now
        self.state = PENDING
        self.stage = 0
        self.held = False
        self.longest_wait = 0.0
        self.model = ""
        self.terms = DEFAULT_TERMS
        self.prompt: Prompt | None = None
        self.wanted: PickRequest | None = None
        self.pick: Pick | None = None
        self.picked_at = now
        self.work_id = 0
        self.endpoint = ""
        self.result = ""
        self.status = 0
        self.first_byte_at = NEVER
        self.exchange: Exchange | None = None
        self.completed = False
        self.chain: Sequence[int] = ()
        self.known_blocks = 0
        self.block_tokens = 1

    @property
    def pending(self) -> bool:
        """Whether there is no decision yet."""
        return self.state == PENDING

    @property
    def picked(self) -> bool:
        """Whether the request is in flight at an endpoint."""
        return self.state == PICKED

    def decide(self, decision: Pick | Rejection) -> bool:
        """Record the decision and report it; called by the pipeline alone."""
        if self.state != PENDING:
            return False
        if isinstance(decision, Pick):
            self.state = PICKED
            self.pick = decision
        else:
            self.state = REJECTED
        on_decision = self._on_decision
        self._release()
        if on_decision is not None:
            on_decision(self, decision)
        return True

    def resume(self, result: Result) -> bool:
        """Go on with `CONTINUE` or a decision; called by the stage that returned WAIT. False after a cancellation."""
        return self._owner.resume(self, result)

    def cancel(self) -> bool:
        """The client left before the decision."""
        if self.state != PENDING:
            return False
        self.state = CANCELLED
        self._release()
        self._owner.cancelled(self)
        return True

    def report(self, report: str, served: str) -> bool:
        """A load report arrived with the response, from the endpoint `served` (empty: unknown)."""
        if self.state != PICKED:
            return False
        self._owner.reported(self, report, served)
        return True

    def respond(self, response: Response) -> bool:
        """The response headers arrived at the proxy."""
        if self.state != PICKED:
            return False
        self._owner.responded(self, response)
        return True

    def body_started(self) -> bool:
        """The first bytes of the response's body have passed the proxy."""
        if self.state != PICKED:
            return False
        self._owner.body_started(self)
        return True

    def body_ended(self, size: int, usage: TokenUsage, *, streamed: bool) -> bool:
        """The response's body is over."""
        if self.state != PICKED:
            return False
        self._owner.body_ended(self, size, usage, streamed=streamed)
        return True

    def end(self, how: str) -> bool:
        """The request is over: `closed` by the proxy, or `lost` by the agent."""
        if self.state != PICKED:
            return False
        self.state = ENDED
        self._owner.ended(self, how)
        return True

    def _release(self) -> None:
        """Drop what no stage needs any more; the callback too, which would close a reference cycle."""
        self._on_decision = None
        self.body = None
        self.prompt = None
        self.wanted = None
