"""Wall time in the forms of the Kubernetes API."""

from __future__ import annotations

from datetime import UTC, datetime


def micro_time(wall: float) -> str:
    """MicroTime of seconds since 1970, such as `2026-11-23T01:02:03.456789Z`."""
    return _text(wall, "microseconds")


def whole_seconds(wall: float) -> str:
    """Time of seconds since 1970, such as `2026-11-23T01:02:03Z`."""
    return _text(wall, "seconds")


def _text(wall: float, precision: str) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec=precision).replace("+00:00", "Z")
