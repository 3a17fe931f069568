"""A bound on the label values that clients and servers choose, so that they cannot make a page grow without limit."""

from __future__ import annotations

from typing import Final

from exporters.prometheus import clean

NAME_LENGTH: Final = 256  # characters; a request body may hold a "model name" of megabytes
OTHER: Final = "other"


class LabelLimiter:
    """Passes the first `limit` distinct values; later ones, and those longer than NAME_LENGTH, become `other`.

    A value that was passed once is passed for as long as the process lives.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """The label value for this name."""
        known = self._known.get(name)
        if known is not None:
            return known
        if len(self._known) >= self._limit or len(name) > NAME_LENGTH:
            return OTHER
        self._known[name] = clean(name)
        return self._known[name]
