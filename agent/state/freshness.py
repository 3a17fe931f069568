"""The one rule of freshness.

The age of a reading counts from the time at which the request that brought it was sent. A reading is fresh, and may be
used, while its age is below `stale_after` seconds; at exactly that age it is stale. `is_fresh` compares with `expiry`,
so that the two agree whatever the rounding. No other module compares a time with a staleness limit.
"""

from __future__ import annotations

from typing import Final

NOT_REPORTED: Final = "not_reported"
STALE: Final = "stale"


def expiry(at: float, stale_after: float) -> float:
    """When a reading of `at` becomes stale (monotonic seconds, as `at`)."""
    return at + stale_after


def is_fresh(at: float, stale_after: float, now: float) -> bool:
    """Whether a reading of `at` may be used at `now`."""
    return now < at + stale_after


def why_not_fresh(at: float | None, stale_after: float, now: float) -> str:
    """Why there is no fresh reading at `now`: NOT_REPORTED where there is none (`at` is None), STALE, or the empty
    string where it is fresh."""
    if at is None:
        return NOT_REPORTED
    return "" if is_fresh(at, stale_after, now) else STALE
