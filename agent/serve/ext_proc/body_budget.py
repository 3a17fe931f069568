"""The memory that the request bodies of one picker port share.

In full duplex Envoy hands us a body in chunks and forgets them: until its end is here we hold it, however slowly it
comes, and then until Envoy has taken it back. Many slow uploads at a time would be held without bound. A body that
Envoy buffers comes in one message and is let go of in the same step.
"""

from __future__ import annotations


class Room:
    """At most `most_bytes` held at a time; `held` says how many are now."""

    __slots__ = ("held", "most_bytes")

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held = 0

    def take(self, size: int) -> bool:
        """True, and so many more bytes are held; False, and nothing has changed, where they would be too many."""
        if self.held + size > self.most_bytes:
            return False
        self.held += size
        return True

    def give(self, size: int) -> None:
        """So many bytes less are held."""
        self.held -= size
