"""Instants and text as the documents contain them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple


class Moment(NamedTuple):
    """An instant on three clocks: monotonic, wall (seconds since 1970), and seconds since the epoch began."""

    now: float
    wall: float
    uptime: float


def rfc3339(wall: float) -> str:
    """`2026-11-23T01:02:03.456789Z`."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def printable(text: str) -> str:
    """Text that UTF-8 can encode: a lone surrogate becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
