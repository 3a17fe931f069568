"""Why a call of the API server has no result. Pure."""

from __future__ import annotations


class NoCluster(Exception):
    """There is no configuration for an API server, or no client for it; the message says what was looked for."""


class Unreachable(Exception):
    """The API server gave no answer: connection refused, a time-out, TLS."""


class ApiFailed(Exception):
    """The API server answered with an error: its HTTP status, its message, and after how many seconds it may be called
    again, None where it names no time."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {message}" if message else str(status))
        self.status = status
        self.retry_after = retry_after


class NotHeld(Exception):
    """The write was not sent, because another replica may hold the Lease."""
