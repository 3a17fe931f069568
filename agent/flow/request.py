"""One request as flow control reads it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agent.flow.band import Band, Flow, PlannedRequests
    from agent.flow.outcomes import Outcome

FOREVER: Final = float("inf")
NOWHERE: Final[frozenset[str]] = frozenset()
_NO_PLACES: Final[Mapping[str, int]] = {}
_NO_SECONDS: Final = array("f")


class FlowRequest:
    """A request that is dispatched, waits or is refused.

    Given by the caller: `item` is the caller's own object, which flow control does not read. `tokens` are the estimate
    of prompt and output together, by which callers share a band; `prompt_tokens` have to fit into a KV cache; `size` is
    in bytes. `ttl` is the longest wait in seconds, None for that of the band. `deadline` (monotonic seconds) is when
    the first token is wanted, None for none; it may order the requests of one flow (`agent.flow.ordering`) and ends no
    wait. `hold` is the longest time in seconds for which the request may wait at all, also in an empty pool.

    The other attributes belong to `agent.flow.control`. `outcome` is None until the request has its one outcome.
    `endpoint` is the address to which it is planned, empty where it is planned to none; while it is `fixed`, only that
    endpoint or one that gets it from a higher band's patience may be sent it. `latest` is when its wait ends
    whatever happens, and `expires_at` when its TTL ends it.
    """

    __slots__ = (
        "arrived_at",
        "band",
        "deadline",
        "due_at",
        "expires_at",
        "expiry",
        "fixed",
        "flow",
        "flow_name",
        "hold",
        "item",
        "latest",
        "outcome",
        "places",
        "planned",
        "planned_at",
        "planned_seconds",
        "priority",
        "prompt_tokens",
        "push",
        "released_at",
        "seconds",
        "sequence",
        "served_by",
        "size",
        "tokens",
        "ttl",
    )

    def __init__(
        self,
        item: object,
        *,
        priority: int = 0,
        flow: str = "",
        tokens: int = 1,
        prompt_tokens: int = 0,
        size: int = 0,
        ttl: float | None = None,
        deadline: float | None = None,
        hold: float = FOREVER,
    ) -> None:
        self.item = item
        self.priority = priority
        self.flow_name = flow
        self.tokens = max(1, tokens)
        self.prompt_tokens = prompt_tokens
        self.size = size
        self.ttl = ttl
        self.hold = hold
        self.deadline = FOREVER if deadline is None else deadline
        self.arrived_at = self.expires_at = self.expiry = self.latest = self.planned_at = self.planned_seconds = 0.0
        self.fixed = False  # planned, and not to be stolen before `released_at`
        self.released_at = 0.0
        self.due_at = 0.0  # by which it is compared with others of its flow
        self.sequence = self.push = 0
        self.outcome: Outcome | None = None
        self.band: Band | None = None
        self.flow: Flow | None = None
        self.planned: PlannedRequests | None = None
        # The seconds of work that the request adds at each endpoint, infinite where it may not be served; `places` maps
        # an address to its place among them. `served_by` are the endpoints that may serve it, None for all.
        self.seconds = _NO_SECONDS
        self.places = _NO_PLACES
        self.served_by: frozenset[str] | None = NOWHERE

    @property
    def endpoint(self) -> str:
        """The address of the endpoint to which the request is planned; empty: none."""
        return "" if self.planned is None else self.planned.endpoint.address

    def seconds_at(self, address: str) -> float:
        """The seconds of work that the request adds at an endpoint; infinite where it may not be served there."""
        place = self.places.get(address)
        return FOREVER if place is None else self.seconds[place]
