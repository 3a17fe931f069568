"""The limit of request bodies that one picker port buffers.

In full duplex Envoy sends a body in chunks and keeps none: the agent buffers it until its end has arrived, and then
until Envoy has taken it back. Without a limit many slow uploads would exhaust the memory.
"""

from __future__ import annotations


class BodyBudget:
    """At most `max_bytes` are buffered at a time; `used` is the number that are now."""

    __slots__ = ("max_bytes", "used")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0

    def acquire(self, size: int) -> bool:
        """True, and `size` more bytes are in use; False, and nothing has changed, where they would exceed the limit."""
        if self.used + size > self.max_bytes:
            return False
        self.used += size
        return True

    def release(self, size: int) -> None:
        """`size` bytes are no longer in use."""
        self.used -= size
