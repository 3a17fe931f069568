"""When a pool's lists of models are fetched again because a request names a model that none of them has.

An adapter that was just loaded would be unknown until the next regular fetch. A client that sends wrong names must not
turn into load on the model servers: the lists of a pool are fetched at most every `SPACING_SECONDS`, and in a large
pool less often. Pure: `now` is an argument.
"""

from __future__ import annotations

from typing import Final

SPACING_SECONDS: Final = (
    0.5  # an adapter that is requested is found within a second, whatever other names are requested
)
MAX_PER_SECOND: Final = 400  # fetches in one pool; each takes about 0.1 ms of the agent's CPU


class ModelRefresh:
    """Spaces the fetches of one pool."""

    def __init__(self) -> None:
        self._next_at = float("-inf")

    def due(self, now: float, endpoints: int) -> float | None:
        """When to fetch the lists after a request at `now`: at once or later; None where a fetch is due already."""
        if now < self._next_at:
            return None
        spacing = max(SPACING_SECONDS, endpoints / MAX_PER_SECOND)
        self._next_at = max(now, self._next_at + spacing)
        return self._next_at
