"""Requests: picked for, refused, reported on, ended; and conversations that broke."""

from __future__ import annotations

from typing import NamedTuple


class Picked(NamedTuple):
    """A request was given an endpoint. `took` is the seconds that the decision cost."""

    pool: str
    profile: str
    model: str
    endpoint: str
    prompt_tokens: int
    predicted_hit_tokens: int
    left_warmest: bool
    took: float


class Refused(NamedTuple):
    """A request was answered by us, not by a model server: the HTTP status and the reason (one word)."""

    pool: str
    model: str
    status: int
    reason: str


class Reported(NamedTuple):
    """A load report came with an answer: taken where `reason` is empty, else one of `agent.engines.report.REASONS`."""

    pool: str
    endpoint: str
    reason: str


class Ended(NamedTuple):
    """A picked request is over. `how` is `closed` (the ext_proc stream ended) or `lost` (the agent let go of it)."""

    pool: str
    model: str
    endpoint: str
    took: float
    how: str


class Abandoned(NamedTuple):
    """A request ended before its decision: the client left, or the proxy rejected its body. `stage` is the stage that
    held it, or `body` while its body was arriving."""

    pool: str
    stage: str


class StreamBroken(NamedTuple):
    """An ext_proc conversation that ended against the protocol or on an error of ours; the reason is one word. `http2`:
    a whole connection did."""

    pool: str
    reason: str
    detail: str
