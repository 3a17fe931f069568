"""What the room of an endpoint is computed from, for a reader who wonders about it."""

from __future__ import annotations

from typing import Final, NamedTuple

from agent.flow.evidence import Evidence
from agent.flow.room import RoomLimits, cache_tokens
from agent.signals import KV_USAGE, RUNNING, SLOTS_USAGE, WAITING
from agent.state.snapshot import EndpointView

# Where the number of slots comes from.
CONFIGURED: Final = "configured"
REPORTED: Final = "reported"  # by the share of them that is used
LEARNT: Final = "learnt"  # the most that ran while others waited
UNKNOWN: Final = "unknown"
SLOT_SOURCES: Final = (CONFIGURED, REPORTED, LEARNT, UNKNOWN)


class RoomInputs(NamedTuple):
    """The numbers behind one room. None: unknown, so that it limits nothing.

    `seen`: a fresh page shows the endpoint's queue. `slots` are the requests that it runs at once, from `slots_source`.
    `own_requests` are this agent's in flight there, `peer_requests` those that other replicas report,
    `foreign_requests` those of others; `running`, `waiting` and `kv_usage` are those of the last page.
    `sent_requests`, `sent_tokens` and `ended_requests` are what this agent has sent and seen to end since that page.
    `share` is the part of the free slots that this agent claims. `wait_seconds` is for how long a request that is sent
    now waits there. `free_kv_tokens` of `kv_capacity_tokens` are free for this agent.
    """

    seen: bool
    slots: float | None
    slots_source: str
    own_requests: int
    peer_requests: int
    foreign_requests: float
    running: float | None
    waiting: float | None
    sent_requests: int
    sent_tokens: int
    ended_requests: int
    share: float
    wait_seconds: float
    kv_usage: float | None
    free_kv_tokens: float | None
    kv_capacity_tokens: float | None


def room_inputs(view: EndpointView, evidence: Evidence, limits: RoomLimits, now: float) -> RoomInputs:
    """The inputs of the endpoint's room at `now`."""
    work = view.work
    running, usage = view.number(RUNNING, now), view.number(KV_USAGE, now)
    slots, source = _slots(view, evidence, limits, running, now)
    capacity = cache_tokens(view, now)
    free = None
    if usage is not None and capacity is not None:
        free = max(0.0, (1.0 - usage) * capacity * evidence.share - evidence.sent_tokens)
    return RoomInputs(
        work.corrected,
        slots,
        source,
        work.requests - work.of_peers,
        work.of_peers,
        work.foreign,
        running,
        view.number(WAITING, now),
        evidence.sent_requests,
        evidence.sent_tokens,
        evidence.ended_requests,
        evidence.share,
        max(0.0, work.prefill_seconds(now)),
        usage,
        free,
        capacity,
    )


def _slots(
    view: EndpointView, evidence: Evidence, limits: RoomLimits, running: float | None, now: float
) -> tuple[float | None, str]:
    if limits.slots is not None:
        return limits.slots, CONFIGURED
    used = view.number(SLOTS_USAGE, now)
    if view.work.corrected and used is not None and running is not None and used > 0 and running > 0:
        return running / used, REPORTED
    return (None, UNKNOWN) if evidence.slots == float("inf") else (evidence.slots, LEARNT)
