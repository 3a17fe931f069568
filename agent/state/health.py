"""The one table of health: what an endpoint is, given what its page and its engine's health path said last.

Health is what both say. The first row that holds is the verdict:

    down      it refuses connections, or nothing leads there
    down      the health path says that the server is loading or leaving
    down      `DOWN_AFTER` scrapes in a row failed in whatever way (`health_only`: while the health path answers)
    down      one of its accelerators is sick (the reasons of `agent.accelerators.faults`)
    down      the health path says no in another way, or did not answer `DOWN_AFTER` times in a row
    unknown   no page was ever read from this server
    stale     its last page is older than `stale_after`: it may live, but nobody knows how it is
    down      its last page says that it sleeps: its model is not loaded
    healthy   its last page is younger, and its health path answers, where it has one that is asked

Only a healthy endpoint is picked. A page that comes in later than it went stale makes the endpoint healthy again, and
so does a health path that answers again.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple


class Health(StrEnum):
    """The four states."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    STALE = "stale"
    DOWN = "down"


# Nobody listens there: no need to wait for a second proof. The other failures (a time-out, a bad page) may be a hiccup.
PROOF_OF_DEATH: Final = frozenset({"refused", "unreachable"})
DOWN_AFTER: Final = 3

# Why an endpoint that gives pages is not healthy, or gives none though it answers; one word each, a closed list.
HEALTH_REASONS: Final[Mapping[str, str]] = {
    "loading": "the health path answers 503, and has not answered well since the server came up",
    "health_unavailable": "the health path answers 503, and answered well before: its engine is dead or is leaving",
    "health_status": "the health path answers with another status than 2xx, 404 and 503",
    "health_not_found": "the server has no such health path (404): the configuration names a wrong one",
    "health_refused": "nobody listens where the health path is asked",
    "health_timeout": "the health path does not answer within half a second",
    "health_broken": "the health path's answer breaks off or is not HTTP",
    "asleep": "the server sleeps: its model's weights are not loaded",
    "health_only": "the health path answers, and the page does not come",
}
_UNAVAILABLE: Final = frozenset({"loading", "health_unavailable"})
# An answer, or a proof that none will come. The others may be a hiccup, as with a page.
_CERTAIN: Final = _UNAVAILABLE | {"health_status", "health_not_found", "health_refused"}
# How a page fails that does not come: of these a health path that answers says more. A page that comes and is wrong has
# a reason of its own.
_SILENT: Final = frozenset({"timeout", "reset"})


class Word(NamedTuple):
    """What the health path said last: it answered (empty `reason`), or failed `times` in a row, last with `reason`."""

    reason: str
    times: int

    @property
    def no(self) -> bool:
        """Whether this says that the server is not well."""
        return self.reason in _CERTAIN or self.times >= DOWN_AFTER


ANSWERED: Final = Word("", 0)


class Verdict(NamedTuple):
    """A state, the reason in a few words (empty when healthy), and when it ends by the mere passing of time."""

    health: Health
    reason: str
    until: float


_FOREVER: Final = float("inf")


def judge(
    now: float,
    page_at: float | None,
    failures: int,
    failure: str,
    stale_after: float,
    word: Word | None = None,
    sick: str = "",
    *,
    asleep: bool = False,
) -> Verdict:
    """Health at `now` of an endpoint whose last page was asked for at `page_at` (None: never).

    `failures` counts the scrapes that failed since that page, `failure` is the reason of the last one (empty: none).
    `word` is what the health path said last (None: nothing is known of it, as where it is not asked), `sick` what one
    of its accelerators suffers from (empty: nothing that is known). `asleep`: its last page says that its model is not
    loaded.
    """
    if failures and failure in PROOF_OF_DEATH:
        return Verdict(Health.DOWN, failure, _FOREVER)
    if word is not None and word.reason in _UNAVAILABLE:
        return Verdict(Health.DOWN, word.reason, _FOREVER)
    if failures >= DOWN_AFTER:
        reason = "health_only" if word == ANSWERED and failure in _SILENT else failure
        return Verdict(Health.DOWN, reason, _FOREVER)
    if sick:
        return Verdict(Health.DOWN, sick, _FOREVER)
    if word is not None and word.no:
        return Verdict(Health.DOWN, word.reason, _FOREVER)
    if page_at is None:
        return Verdict(Health.UNKNOWN, failure or "never_scraped", _FOREVER)
    if now - page_at >= stale_after:
        return Verdict(Health.STALE, failure or "no_fresh_page", _FOREVER)
    if asleep:
        return Verdict(Health.DOWN, "asleep", page_at + stale_after)
    return Verdict(Health.HEALTHY, "", page_at + stale_after)
