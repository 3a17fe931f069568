"""Accelerator sources that are read through a client library instead of a page.

Reading blocks, so it runs in a thread, one call at a time. The library is optional and only imported when the
configuration names the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from agent.accelerators.device import Device

# Why a source could not be read.
REASONS: Final[Mapping[str, str]] = {
    "not_installed": "the client library of the source is not installed",
    "client_error": "the client library, or the service behind it, returned an error",
    "timeout": "no response within the time-out",
}


class DeviceSourceFailed(Exception):
    """A source could not be read: `reason` is one of REASONS, `detail` a sentence that says what to do."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class DeviceSource(Protocol):
    """One source; it is called in a thread, one call at a time."""

    def devices(self, now: float, wall: float) -> list[Device]:
        """The current devices; `now` in monotonic seconds, `wall` in seconds since 1970. Raises DeviceSourceFailed."""
        ...

    def close(self) -> None:
        """Release the library's resources."""
        ...
