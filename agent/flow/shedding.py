"""How likely a request of a negative priority is shed, and when a refused client may come back.

Only requests that may be shed come here: those of priority 0 and more wait. The probability grows with the expected
wait of the band relative to the TTL, so that load is shed before the queue is full, and never all of it at once.
"""

from __future__ import annotations

import math
from typing import Final

# OpenAI clients honour a Retry-After of at most 120 seconds; with a longer one they do not retry.
RETRY_MIN_SECONDS: Final = 1.0
RETRY_MAX_SECONDS: Final = 120.0
# A value is spread over this part of it to both sides, so that clients refused together do not return together.
JITTER: Final = 0.25


def shed_probability(wait: float, ttl: float, start: float) -> float:
    """0 while the expected `wait` is at most the part `start` of the TTL (both in seconds), 1 from the TTL on, and
    linear between them. A request that does not wait is never shed; without a TTL none is."""
    if wait <= 0 or ttl == math.inf:
        return 0.0
    if wait >= ttl:
        return 1.0
    low = start * ttl
    return (wait - low) / (ttl - low) if wait > low else 0.0


def retry_after(wait: float, draw: float) -> int:
    """Whole seconds, from 1 to 120, after which a client may come back to a backlog that drains in `wait` seconds.

    `draw` is a random number from 0 to 1.
    """
    longest = RETRY_MAX_SECONDS / (1 + JITTER)
    base = min(max(wait, RETRY_MIN_SECONDS), longest)
    jittered = base * (1 - JITTER + 2 * JITTER * draw)
    return max(int(RETRY_MIN_SECONDS), min(int(RETRY_MAX_SECONDS), math.ceil(jittered)))
