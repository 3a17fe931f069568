"""The one table of health: the state of an endpoint by its last page, the last result of its health path, and the last
answer that proves that the server lives.

The first row that applies is the verdict:

    down      connections are refused, or there is no route
    down      the health path reports that the server is loading or shutting down
    down      `DOWN_AFTER` scrapes in a row failed, and nothing proves that the server lives
    down      one of its accelerators is unhealthy (the reasons of `agent.accelerators.faults`)
    down      the health path reports another failure, or gave no answer `DOWN_AFTER` times in a row
    down      its last page is fresh and reports that the server sleeps: its model is not loaded
    blind     `DOWN_AFTER` scrapes in a row failed; or one, where no page of this server was ever read
    unknown   no page of this server was ever read
    blind     its last page is stale (`agent.state.freshness`), and a fresh answer proves that the server lives
    stale     its last page is stale
    healthy   its last page is fresh, and its health path succeeds where one is probed

A healthy or blind endpoint whose requests fail is `failing` while it is ejected (the reasons of
`agent.state.outliers`).

Two answers prove that a server lives: a health path that succeeds, and any HTTP response to the request for the page
(`PROOF_OF_LIFE`). The second one counts for every server, because a health path that fails is an earlier row. A proof
is from after the first failure, and holds for as long as a reading is fresh. A refused connection is the opposite proof
(`PROOF_OF_DEATH`).

Healthy and blind endpoints are picked (`PICKED`). The load of a blind one is unknown: `agent.pick.candidates` has the
rule for its cost. A failing one gets single trial requests, and all requests where no other is left. A page makes an
endpoint healthy again that is not failing, and so does a health path that succeeds again after failures.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from agent.state.freshness import expiry, is_fresh


class Health(StrEnum):
    """The six states."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    BLIND = "blind"
    STALE = "stale"
    DOWN = "down"
    FAILING = "failing"

    @property
    def picked(self) -> bool:
        """Whether an endpoint in this state is picked."""
        return self in PICKED


# The states in which an endpoint is picked.
PICKED: Final = frozenset({Health.HEALTHY, Health.BLIND})

# Nothing listens there: one failure is enough. Other failures (a timeout, a bad page) may be transient.
PROOF_OF_DEATH: Final = frozenset({"refused", "unreachable"})
# Failures of a scrape with an HTTP response: the server answers, and its page is of no use.
PROOF_OF_LIFE: Final = frozenset(
    {"status", "too_large", "truncated", "empty", "encoding", "not_metrics", "wrong_engine"}
)
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
}
_UNAVAILABLE: Final = frozenset({"loading", "health_unavailable"})
# A response, or a proof that none will come. The other failures may be transient, as with a page.
_CERTAIN: Final = _UNAVAILABLE | {"health_status", "health_not_found", "health_refused"}


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
    answered_at: float | None = None,
    ejected: str = "",
) -> Verdict:
    """Health at `now` of an endpoint whose last page was requested at `page_at` (None: never).

    `failures` counts the scrapes that failed since that page, `failure` is the reason of the last one (empty: none).
    `probe` is the last result of the health path (None: unknown, or the health path is not probed), `fault` the reason
    why one of its accelerators is unhealthy (empty: none known). `asleep`: its last page reports that its model is not
    loaded. `answered_at` is the time of the last proof of life since the first of the failures, or since the last page
    (None: there is none). `ejected` is the reason why it is ejected for failed requests (empty: it is not).
    """
    if failures and failure in PROOF_OF_DEATH:
        return Verdict(Health.DOWN, failure, _FOREVER)
    if probe is not None and probe.reason in _UNAVAILABLE:
        return Verdict(Health.DOWN, probe.reason, _FOREVER)
    lives = answered_at is not None and is_fresh(answered_at, stale_after, now)
    if failures >= DOWN_AFTER and not lives:
        return Verdict(Health.DOWN, failure, _FOREVER)
    if fault:
        return Verdict(Health.DOWN, fault, _FOREVER)
    if probe is not None and probe.unhealthy:
        return Verdict(Health.DOWN, probe.reason, _FOREVER)
    fresh = page_at is not None and is_fresh(page_at, stale_after, now)
    if asleep and fresh and page_at is not None:
        return Verdict(Health.DOWN, "asleep", expiry(page_at, stale_after))
    if answered_at is not None and lives and (failures >= DOWN_AFTER or (failures and page_at is None)):
        return _picked(Health.BLIND, failure, expiry(answered_at, stale_after), ejected)
    if page_at is None:
        return Verdict(Health.UNKNOWN, failure or "never_scraped", _FOREVER)
    if fresh:
        return _picked(Health.HEALTHY, "", expiry(page_at, stale_after), ejected)
    if answered_at is not None and lives:
        return _picked(Health.BLIND, failure or "no_fresh_page", expiry(answered_at, stale_after), ejected)
    return Verdict(Health.STALE, failure or "no_fresh_page", _FOREVER)


def _picked(health: Health, reason: str, until: float, ejected: str) -> Verdict:
    """A state that is picked, unless the endpoint is ejected."""
    return Verdict(Health.FAILING, ejected, until) if ejected else Verdict(health, reason, until)
