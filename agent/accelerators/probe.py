"""Sources of accelerator readings that are no page: a client library that is asked from time to time.

A probe blocks while it asks, so it is asked in a thread, never twice at a time. Its library is optional and imported
when the configuration names the source, so that nobody needs it who does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from agent.accelerators.device import Device

# Why a probe brought nothing, one word each.
REASONS: Final[Mapping[str, str]] = {
    "not_installed": "the client library of the source is not installed",
    "client_error": "the client library, or the service behind it, refuses",
    "timeout": "no answer within the time-out",
}


class ProbeFailed(Exception):
    """A probe brought nothing: `reason` is one of REASONS, `detail` a sentence that says what to do."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Probe(Protocol):
    """One source that is asked; called in a thread, one call at a time."""

    def devices(self, now: float, wall: float) -> list[Device]:
        """The devices as of now (monotonic seconds, and seconds since 1970); ProbeFailed when nobody can say."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...
