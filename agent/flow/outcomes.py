"""The outcomes of a request: dispatched to an endpoint, or refused for one of six reasons. Each has exactly one.

A refusal is a row of a table: the HTTP status, the value of `x-llm-d-request-dropped-reason`, and whether the response
has `Retry-After`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.flow.request import FlowRequest

# Why an endpoint got a request.
DIRECT: Final = "direct"  # it had room when the request arrived
PLANNED: Final = "planned"  # the request was planned to it
STOLEN: Final = "stolen"  # the request was planned to another one

SHED: Final = "shed"
DISPLACED: Final = "displaced"
EXPIRED: Final = "expired"
NO_ENDPOINTS: Final = "no_endpoints"
CANCELLED: Final = "cancelled"
SHUTTING_DOWN: Final = "shutting_down"


class Refusal(NamedTuple):
    """One reason to refuse a request. `status` is 0 where the client has left; `retry`: with `Retry-After`."""

    status: int
    dropped: str
    meaning: str
    retry: bool = True


REFUSALS: Final[Mapping[str, Refusal]] = {
    SHED: Refusal(429, "rejected-saturated", "its priority is negative, and its band waits too long"),
    DISPLACED: Refusal(
        429, "rejected-saturated", "the bound of the queue is reached, and it is the newest of the lowest band"
    ),
    EXPIRED: Refusal(429, "rejected-ttl-expired", "it has waited for its TTL"),
    NO_ENDPOINTS: Refusal(503, "rejected-no-endpoints", "the pool has no endpoint that may serve it"),
    CANCELLED: Refusal(0, "rejected-context-cancelled", "the client left", retry=False),
    SHUTTING_DOWN: Refusal(503, "rejected-shutting-down", "the agent stops"),
}


class Dispatched(NamedTuple):
    """The request goes to `endpoint` now. `how` is DIRECT, PLANNED or STOLEN."""

    request: FlowRequest
    endpoint: str
    waited_seconds: float
    how: str


class RefusedRequest(NamedTuple):
    """The gateway answers the request. `reason` is a key of REFUSALS; `retry_after` is in seconds, 0 for none."""

    request: FlowRequest
    reason: str
    waited_seconds: float
    retry_after: int

    @property
    def row(self) -> Refusal:
        """The row of the table."""
        return REFUSALS[self.reason]


Outcome = Dispatched | RefusedRequest
