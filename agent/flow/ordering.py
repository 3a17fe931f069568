"""Which of the waiting requests of one flow leaves first: three orders, by name."""

from __future__ import annotations

from typing import Final

from agent.flow.request import FlowRequest

FIRST_COME: Final = "first_come"  # in the order of arrival
EARLIEST_DEADLINE: Final = "earliest_deadline"  # by the end of the TTL, or the wanted first token where that is earlier
WANTED_TOKEN: Final = "wanted_token"  # noqa: S105  by the wanted first token; requests without one come after the others
ORDERINGS: Final = (FIRST_COME, EARLIEST_DEADLINE, WANTED_TOKEN)


def due_at(ordering: str, request: FlowRequest) -> float:
    """The time (monotonic seconds) by which a waiting request is compared with others of its flow, the earlier first;
    of two equal ones the first come leaves first."""
    if ordering == FIRST_COME:
        return request.arrived_at
    wanted = request.deadline
    return min(wanted, request.expires_at) if ordering == EARLIEST_DEADLINE else wanted
