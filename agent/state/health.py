"""The one table of health: what an endpoint is, given its last page and its last failures.

    unknown   no page was ever read from this server
    healthy   its last page is younger than `stale_after`
    stale     its last page is older: it may live, but nobody knows how it is
    down      it refuses or drops connections, or `DOWN_AFTER` scrapes in a row failed in whatever way,
              or one of its accelerators is sick (the reasons of `agent.accelerators.faults`)

Only a healthy endpoint is picked. A page that comes in later than it went stale makes the endpoint healthy again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Health(StrEnum):
    """The four states, from the least to the most that we know."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    STALE = "stale"
    DOWN = "down"


# Nobody listens there: no need to wait for a second proof. The other failures (a time-out, a bad page) may be a hiccup.
PROOF_OF_DEATH: Final = frozenset({"refused", "unreachable"})
DOWN_AFTER: Final = 3


class Verdict(NamedTuple):
    """A state, the reason in a few words (empty when healthy), and when it ends by the mere passing of time."""

    health: Health
    reason: str
    until: float


_FOREVER: Final = float("inf")


def judge(
    now: float, page_at: float | None, failures: int, failure: str, stale_after: float, sick: str = ""
) -> Verdict:
    """Health at `now` of an endpoint whose last page was asked for at `page_at` (None: never).

    `failures` counts the scrapes that failed since that page, `failure` is the reason of the last one (empty: none).
    `sick` is what one of its accelerators suffers from (empty: nothing that is known).
    """
    if failures and (failure in PROOF_OF_DEATH or failures >= DOWN_AFTER):
        return Verdict(Health.DOWN, failure, _FOREVER)
    if sick:
        return Verdict(Health.DOWN, sick, _FOREVER)
    if page_at is None:
        return Verdict(Health.UNKNOWN, failure or "never_scraped", _FOREVER)
    if now - page_at >= stale_after:
        return Verdict(Health.STALE, failure or "no_fresh_page", _FOREVER)
    return Verdict(Health.HEALTHY, "", page_at + stale_after)
