"""Metrics of the agent's replicas: its peers, and what could not be exchanged with them."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Rows

ROWS: Final = Rows()

PEERS: Final = ROWS.add(
    "igw_replica_peers",
    "gauge",
    "replicas",
    "state",
    "events",
    "Other replicas of the agent by what is known of them: left, refused, reporting or silent",
)
PEER_FAILURES: Final = ROWS.counter(
    "igw_replica_peer_failures_total",
    "failures",
    "reason",
    "Tries to follow a peer that failed, and reports of a peer that were refused, by reason",
)
CALLERS_REFUSED: Final = ROWS.counter(
    "igw_replica_callers_refused_total",
    "callers",
    "reason",
    "Callers of the port for replicas that were refused, by reason, and failed look-ups of `replicas.service`",
)
