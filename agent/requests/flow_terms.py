"""What flow control reads of a request besides its prompt: headers of the proxy, and the terms that follow."""

from __future__ import annotations

from typing import Final, NamedTuple

from agent.events.exchange import NO_SLO, Slo


class FlowHeaders(NamedTuple):
    """The headers that are believed. `objective` and `caller` are names, empty where the request has none.
    `ttl_seconds` is the longest wait, `ttft_seconds` the wanted time to the first token, and `tpot_seconds` the wanted
    time per output token; None where the request has none."""

    objective: str = ""
    caller: str = ""
    ttl_seconds: float | None = None
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None


class FlowTerms(NamedTuple):
    """How a request is served when requests wait: its priority, its caller (empty: unnamed), the longest wait (None:
    that of its band) and the wanted time to the first token (None: none), both in seconds from its arrival. `slo` is
    what its response is measured against; it has no effect on the order."""

    priority: int = 0
    caller: str = ""
    ttl_seconds: float | None = None
    ttft_seconds: float | None = None
    slo: Slo = NO_SLO


NO_FLOW_HEADERS: Final = FlowHeaders()
DEFAULT_TERMS: Final = FlowTerms()


def default_terms(_headers: FlowHeaders, _model: str) -> FlowTerms:
    """The terms of any request where no objectives are known."""
    return DEFAULT_TERMS
