"""The one table of health: the state of an endpoint by its last page and the last result of its health path.

The first row that applies is the verdict:

    down      connections are refused, or there is no route
    down      the health path reports that the server is loading or shutting down
    down      `DOWN_AFTER` scrapes in a row failed for any reason (`health_only`: while the health path answers)
    down      one of its accelerators is unhealthy (the reasons of `agent.accelerators.faults`)
    down      the health path reports another failure, or gave no answer `DOWN_AFTER` times in a row
    unknown   no page of this server was ever read
    stale     its last page is stale (`agent.state.freshness`)
    down      its last page reports that it sleeps: its model is not loaded
    failing   its responses failed and it is ejected (the reasons of `agent.state.outliers`)
    healthy   its last page is fresh, and its health path succeeds where one is probed

Only a healthy endpoint is picked; a failing one gets single trial requests, and all requests where there is no healthy
one. A page makes a stale endpoint healthy again, and so does a health path that succeeds
again after failures.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from agent.state.freshness import expiry, is_fresh


class Health(StrEnum):
    """The states."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    STALE = "stale"
    DOWN = "down"
    FAILING = "failing"


# Nothing listens there: one failure is enough. Other failures (a timeout, a bad page) may be transient.
PROOF_OF_DEATH: Final = frozenset({"refused", "unreachable"})
DOWN_AFTER: Final = 3

# Why an endpoint is not healthy although it serves pages, or although it answers; one word each, a closed list.
HEALTH_REASONS: Final[Mapping[str, str]] = {
    "loading": "the health path answers 503 and has not succeeded since the server started",
    "health_unavailable": "the health path answers 503 after it had succeeded: the engine is dead or shutting down",
    "health_status": "the health path answers with another status than 2xx, 404 and 503",
    "health_not_found": "the server has no such health path (404): the configured one is wrong",
    "health_refused": "connections to the health path are refused",
    "health_timeout": "the health path does not answer within half a second",
    "health_broken": "the health path's response breaks off or is not HTTP",
    "asleep": "the server sleeps: its model's weights are not loaded",
    "health_only": "the health path succeeds, and the page cannot be scraped",
}
_UNAVAILABLE: Final = frozenset({"loading", "health_unavailable"})
# A response, or a proof that none will come. The other failures may be transient, as with a page.
_CERTAIN: Final = _UNAVAILABLE | {"health_status", "health_not_found", "health_refused"}
# Scrape failures without a response. A health path that succeeds is the better reason then; a bad page has a reason of
# its own.
_SILENT: Final = frozenset({"timeout", "reset"})


class ProbeResult(NamedTuple):
    """The last result of the health path: success (empty `reason`), or `failures` in a row, the last with `reason`."""

    reason: str
    failures: int

    @property
    def unhealthy(self) -> bool:
        """Whether this result alone makes the server unhealthy."""
        return self.reason in _CERTAIN or self.failures >= DOWN_AFTER


SUCCESS: Final = ProbeResult("", 0)


class Verdict(NamedTuple):
    """A state, the reason as one word (empty when healthy), and when it ends by the passing of time alone."""

    health: Health
    reason: str
    until: float


_FOREVER: Final = float("inf")


def evaluate(
    now: float,
    page_at: float | None,
    failures: int,
    failure: str,
    stale_after: float,
    probe: ProbeResult | None = None,
    fault: str = "",
    *,
    asleep: bool = False,
    ejected: str = "",
) -> Verdict:
    """Health at `now` of an endpoint whose last page was requested at `page_at` (None: never).

    `failures` counts the scrapes that failed since that page, `failure` is the reason of the last one (empty: none).
    `probe` is the last result of the health path (None: unknown, or the health path is not probed), `fault` the reason
    why one of its accelerators is unhealthy (empty: none known). `asleep`: its last page reports that its model is not
    loaded. `ejected` is the reason why it is ejected for the failures of its requests (empty: it is not).
    """
    if failures and failure in PROOF_OF_DEATH:
        return Verdict(Health.DOWN, failure, _FOREVER)
    if probe is not None and probe.reason in _UNAVAILABLE:
        return Verdict(Health.DOWN, probe.reason, _FOREVER)
    if failures >= DOWN_AFTER:
        reason = "health_only" if probe == SUCCESS and failure in _SILENT else failure
        return Verdict(Health.DOWN, reason, _FOREVER)
    if fault:
        return Verdict(Health.DOWN, fault, _FOREVER)
    if probe is not None and probe.unhealthy:
        return Verdict(Health.DOWN, probe.reason, _FOREVER)
    if page_at is None:
        return Verdict(Health.UNKNOWN, failure or "never_scraped", _FOREVER)
    if not is_fresh(page_at, stale_after, now):
        return Verdict(Health.STALE, failure or "no_fresh_page", _FOREVER)
    if asleep:
        return Verdict(Health.DOWN, "asleep", expiry(page_at, stale_after))
    if ejected:
        return Verdict(Health.FAILING, ejected, expiry(page_at, stale_after))
    return Verdict(Health.HEALTHY, "", expiry(page_at, stale_after))
