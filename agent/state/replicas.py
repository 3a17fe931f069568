"""What is known of the other replicas of the agent: each a peer, its state, and why it does not report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

REPORTING: Final = "reporting"
SILENT: Final = "silent"
REFUSED: Final = "refused"
LEFT: Final = "left"
SELF: Final = "self"
STATES: Final = {
    REPORTING: "its reports arrive",
    SILENT: "no report has arrived within the time for it: what it does is unknown",
    REFUSED: "it is not believed: what it does is unknown",
    LEFT: "it said goodbye and has not come back",
    SELF: "the address is this replica's own",
}
REASONS: Final = {
    "not_reached": "no connection was tried yet",
    "unreachable": "the connection cannot be opened, or was lost",
    "timeout": "it is connected, and sends nothing",
    "version": "it runs a version with another protocol",
    "unauthenticated": "its token or certificate is another one, or it refuses those of this replica",
    "duplicate": "another address leads to the same replica",
    "too_many": "it has as many peers as it accepts",
    "too_large": "a report exceeds the size limit",
    "malformed": "a message cannot be read, or contradicts itself or the ones before",
}


class PeerView(NamedTuple):
    """What is known of a peer. `reported_at` is when its last report arrived (monotonic seconds), None before the
    first; `in_flight` its requests by pool, None while they are unknown."""

    address: str
    state: str
    reason: str
    detail: str
    instance: str
    name: str
    software: str
    reported_at: float | None
    in_flight: Mapping[str, int] | None


class ReplicasView(NamedTuple):
    """A replica and its peers. `unknown`: the peers whose part is unknown, one phrase each."""

    instance: str
    name: str
    address: str
    peers: tuple[PeerView, ...]
    unknown: tuple[str, ...]
