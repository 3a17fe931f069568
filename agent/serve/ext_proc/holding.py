"""How long a proxy waits for the answer of a held request, and the message that extends it.

Envoy starts a timer of `message_timeout` with each message that it sends, and fails the request when it ends. A picker
that needs longer sends `override_message_timeout`: once for a message, before the timer ends, and at most
`max_message_timeout`; anything else is ignored (external_processor.proto). So `message_timeout` can be short, and a
picker that hangs is noticed, while a held request waits for as long as it may.

    mode                                    timer              extended
    BUFFERED, PARTIAL, STREAMED, NONE       yes                once
    HOLD, the whole body has arrived        yes                once
    HOLD, more of the body follows          with each chunk    no: the next chunk starts it again
    FULL_DUPLEX                             no

Without bytes in either direction Envoy ends a request after `stream_idle_timeout`, in every mode. A held request is
answered before the first of these limits, or the client gets an error of the proxy in place of 429.

A proxy that ignores the override, or ends calls after a time of its own, needs `holdLimit` of the pool.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from agent.config.envoy import MAX_MESSAGE_TIMEOUT_SECONDS, MESSAGE_TIMEOUT_SECONDS, STREAM_IDLE_SECONDS
from agent.serve.ext_proc.actions import Mode

# What remains of a limit for the answer on its way, and for a pause of a busy machine: at most so many seconds, and at
# most this part of the limit.
MARGIN_SECONDS: Final = 2.0
MARGIN_PART: Final = 0.25
FOREVER: Final = float("inf")


class ProxyTimeouts(NamedTuple):
    """The limits of a proxy in seconds: for the answer to a message, up to where an answer extends this (0: it cannot
    be extended), and for a request without bytes in either direction (0: none)."""

    message: float = MESSAGE_TIMEOUT_SECONDS
    max_message: float = MAX_MESSAGE_TIMEOUT_SECONDS
    stream_idle: float = STREAM_IDLE_SECONDS


RENDERED: Final = ProxyTimeouts()  # those of `igw render`


def has_timer(mode: Mode) -> bool:
    """Whether Envoy limits the time until a message is answered."""
    return mode is not Mode.FULL_DUPLEX


def hold_limit(mode: Mode, timeouts: ProxyTimeouts, *, body_follows: bool = False) -> float:
    """For how many seconds a request may be held in this mode; infinite where the proxy sets no limit.

    `body_follows`: it is scheduled before its body has arrived."""
    limit = timeouts.stream_idle or FOREVER
    if has_timer(mode):
        limit = min(limit, _longest_answer(mode, timeouts, body_follows=body_follows))
    return limit - _margin(limit)


def override(mode: Mode, timeouts: ProxyTimeouts, longest_wait: float, *, body_follows: bool = False) -> float | None:
    """The timer of a message that is answered after `longest_wait` seconds at most, from now; None where it needs no
    change, or cannot be changed."""
    longest = _longest_answer(mode, timeouts, body_follows=body_follows)
    if (
        not has_timer(mode)
        or longest <= timeouts.message
        or longest_wait + _margin(timeouts.message) < timeouts.message
    ):
        return None
    # The usual time on top: it is what an answer may take that is not held.
    return min(longest_wait + timeouts.message, longest)


def _longest_answer(mode: Mode, timeouts: ProxyTimeouts, *, body_follows: bool) -> float:
    """The longest time in which a message may be answered, extended where that is possible."""
    if mode is Mode.HOLD and body_follows:
        return timeouts.message
    return max(timeouts.message, timeouts.max_message)


def _margin(limit: float) -> float:
    return 0.0 if limit == FOREVER else min(MARGIN_SECONDS, limit * MARGIN_PART)
