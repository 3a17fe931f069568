"""Peers: the other replicas of the agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class PeerChanged(NamedTuple):
    """What is known of a peer has changed. `state` is a key of `agent.state.replicas.STATES`; `reason` is a key of
    `agent.state.replicas.REASONS`, empty where nothing is wrong. `counts`: peers by state after the change."""

    address: str
    name: str
    state: str
    reason: str
    detail: str
    counts: Mapping[str, int]


class PeerFailed(NamedTuple):
    """A try to follow a peer has failed, or a report of it was refused; `reason` as in PeerChanged."""

    address: str
    reason: str


class PeerRefused(NamedTuple):
    """A caller of the replicas' port was refused; `peer` is the name that it gives, if any."""

    peer: str
    reason: str
    detail: str


class PeersCounted(NamedTuple):
    """Peers by state, after some came or went."""

    counts: Mapping[str, int]
