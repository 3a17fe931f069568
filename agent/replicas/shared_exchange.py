"""What the proxy measured of a request, on its way from the replica that has the log to the one that has picked.

Pure.
"""

from __future__ import annotations

from typing import Final

from agent.events.exchange import Exchange, TokenUsage
from agent.replicas.report import MAX_ID, SharedExchange

_UNKNOWN: Final = -1


def shared_exchange(exchange: Exchange) -> SharedExchange:
    """The exchange as it is sent."""
    usage = exchange.usage
    return SharedExchange(
        _microseconds(exchange.duration),
        _UNKNOWN if exchange.first_token is None else _microseconds(exchange.first_token),
        _microseconds(exchange.last_token),
        _bounded(exchange.request_bytes),
        _bounded(exchange.response_bytes),
        exchange.streamed,
        *(_UNKNOWN if number is None else _bounded(number) for number in usage),
    )


def received_exchange(shared: SharedExchange) -> Exchange:
    """The exchange that a peer has sent."""
    return Exchange(
        max(0, shared.duration) / 1e6,
        None if shared.first_token < 0 else shared.first_token / 1e6,
        max(0, shared.last_token) / 1e6,
        max(0, shared.request_bytes),
        max(0, shared.response_bytes),
        shared.streamed,
        TokenUsage(_known(shared.prompt), _known(shared.completion), _known(shared.cached)),
    )


def _microseconds(seconds: float) -> int:
    return _bounded(round(seconds * 1e6))


def _bounded(number: int) -> int:
    return min(MAX_ID, max(0, number))


def _known(number: int) -> int | None:
    return None if number < 0 else number
