"""Whether a request met its objectives: the time to its first token, and the time per output token. Pure.

A request that failed by the fault of the service has missed them. One whose client left, or that was wrong itself, says
nothing of the service: it has no result. What was not measured is unknown, and not met.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.events.exchange import Exchange, Slo
from agent.requests.response import CLIENT_ERROR, CLIENT_LEFT, CUT, OK, UNSUPPORTED

TTFT: Final = "ttft"
TPOT: Final = "tpot"
MET: Final = "met"
MISSED: Final = "missed"
NOT_MEASURED: Final = "unknown"
_NO_RESULT: Final = frozenset({CLIENT_LEFT, CLIENT_ERROR, CUT, UNSUPPORTED})


def attainment(slo: Slo, result: str, exchange: Exchange | None) -> Mapping[str, str]:
    """The result for each objective that the request has; `result` is a key of `agent.requests.response.RESULTS`.

    The time per output token is that of a stream with at least two tokens. A whole response has none: its time per
    token is not seen, and its objective is unknown. A response of one token has met it.
    """
    if result in _NO_RESULT:
        return {}
    found: dict[str, str] = {}
    if slo.ttft is not None:
        found[TTFT] = _compared(None if exchange is None else exchange.first_token, slo.ttft, result)
    if slo.tpot is not None:
        found[TPOT] = _compared(time_per_token(exchange), slo.tpot, result)
    return found


def refusal(slo: Slo) -> Mapping[str, str]:
    """The result for each objective of a request that the agent refused by no fault of its client."""
    wanted = {TTFT: slo.ttft, TPOT: slo.tpot}
    return {objective: MISSED for objective, seconds in wanted.items() if seconds is not None}


def time_per_token(exchange: Exchange | None) -> float | None:
    """The seconds for each token after the first one; 0 of a single token, None where that is unknown."""
    if exchange is None or not exchange.streamed or exchange.first_token is None:
        return None
    tokens = exchange.usage.completion
    if tokens is None:
        return None
    return (exchange.last_token - exchange.first_token) / (tokens - 1) if tokens > 1 else 0.0


def _compared(seconds: float | None, wanted: float, result: str) -> str:
    if result != OK:
        return MISSED
    if seconds is None:
        return NOT_MEASURED
    return MET if seconds <= wanted else MISSED
