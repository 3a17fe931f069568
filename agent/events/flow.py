"""Flow control: requests that wait, and what became of every request that it decided on.

`pool` is the name of the pool and `priority` that of the request.
"""

from __future__ import annotations

from typing import Final, NamedTuple

HELD: Final = "held"  # `RequestSubmitted.outcome` of a request that waits


class RequestHeld(NamedTuple):
    """A request waits: it was neither dispatched nor refused when it arrived."""

    pool: str
    priority: int


class FlowDecided(NamedTuple):
    """A request has its outcome, also where it did not wait. `outcome` is DIRECT, PLANNED or STOLEN of
    `agent.flow.outcomes` where it was dispatched, else a key of REFUSALS there.

    `caller` is the caller that the request names, empty where it names none. `model` is the one that serves the
    request; `requested` is the one that the client named where that is another. `tokens` are the estimate of prompt and
    output together.
    """

    pool: str
    priority: int
    outcome: str
    waited_seconds: float
    caller: str = ""
    model: str = ""
    requested: str = ""
    tokens: int = 0


class RequestSubmitted(NamedTuple):
    """Flow control has processed an arriving request in `took` seconds. `outcome` is as in FlowDecided, or HELD."""

    pool: str
    priority: int
    caller: str
    outcome: str
    took: float


class DispatchRun(NamedTuple):
    """Flow control has looked in `took` seconds for waiting requests to dispatch."""

    pool: str
    took: float


class HeldAtZero(NamedTuple):
    """Requests wait for the first endpoint of an empty pool: emitted once for each time without endpoints, when the
    first of them is held or the last endpoint leaves those that are. `requests` is their number by then."""

    pool: str
    requests: int
