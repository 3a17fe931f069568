"""Outlier detection of one endpoint: how many of its responses failed, and whether it is ejected for it.

    admitted --- failures in a row, or too large a share of recent ones ---> ejected
        ^                                                                       | its ejection time passes
        |                                                                       v
        +---------- the trial succeeds ---------- one trial request at a time --+
                                                  the trial fails: ejected again, for longer

Terms are those of Envoy's outlier detection (`consecutive_5xx`, `base_ejection_time`, `max_ejection_percent`); the
trial is the half-open state of a circuit breaker. Three failures in a row suffice, where Envoy waits for five: the
penalty below keeps requests away after the first ones, so that more may not come for long, and the first ejection is
short. A response that is not the server's fault (4xx, a full queue, a client that left) changes nothing here, in either
direction.

The share of failures is over recent responses: one of `HALF_LIFE_SECONDS` ago counts half. Before an ejection the
failures are a penalty (`penalty`), by which the picker prefers other endpoints.
"""

from __future__ import annotations

from typing import Final, NamedTuple

HALF_LIFE_SECONDS: Final = 10.0
# A trial that has neither succeeded nor failed after this time is a long response, or lost. Another one may begin.
TRIAL_SECONDS: Final = 5.0
# The penalty fades faster: an endpoint that gets no requests because of it is tried again after about five seconds, and
# either ejected for good reason or used.
PENALTY_HALF_LIFE_SECONDS: Final = 2.0
# A penalty below this is no reason to prefer another endpoint.
NEGLIGIBLE: Final = 0.05
FORGOTTEN: Final = 0.01  # a share of failures below this is not kept
_PRIOR_SUCCESSES: Final = 2.0  # a single failed request of a new endpoint is no proof

CONSECUTIVE_FAILURES: Final = "consecutive_failures"
FAILURE_RATIO: Final = "failure_ratio"
TRIAL_FAILED: Final = "trial_failed"
# Why an endpoint is ejected; one word each, a closed list.
EJECTION_REASONS: Final = {
    CONSECUTIVE_FAILURES: "the last responses failed, as many in a row as the limit",
    FAILURE_RATIO: "too large a share of the recent responses failed",
    TRIAL_FAILED: "the trial request after an ejection failed",
}


class OutlierLimits(NamedTuple):
    """When an endpoint is ejected, and for how long.

    `consecutive` failures in a row, or `ratio` of at least `requests` recent responses. The first ejection takes `base`
    seconds, each further one twice as long, up to `longest`. At most the share `largest_share` of a pool is ejected at
    a time, but always at least one endpoint. Not `enabled`: failures are counted, and no endpoint is penalised or
    ejected.
    """

    enabled: bool = True
    consecutive: int = 3
    ratio: float = 0.5
    requests: float = 10.0
    base: float = 2.0
    longest: float = 60.0
    largest_share: float = 0.5


class Errors(NamedTuple):
    """The failures of one endpoint in a snapshot.

    `consecutive` failures in a row; `ratio` of about `requests` recent responses failed, as of `at` (monotonic
    seconds). `last` is the kind of the last failure. `reason` is one of `EJECTION_REASONS` while the endpoint is
    ejected, for the `ejections`-th time, else empty. `trial_at` is when it may get a trial request, None where it is
    not ejected.
    """

    consecutive: int
    ratio: float
    requests: float
    at: float
    last: str
    reason: str = ""
    ejections: int = 0
    trial_at: float | None = None


def penalty(errors: Errors | None, now: float) -> float:
    """How likely the next response fails, from 0 to 1: the larger of the share of recent failures, as if two more
    requests had succeeded, and (n - 1) / n for n failures in a row. It halves each `PENALTY_HALF_LIFE_SECONDS`, so that
    an endpoint without requests is tried again. 0 for an ejected endpoint, which gets its trial only."""
    if errors is None or errors.trial_at is not None:
        return 0.0
    worst = errors.ratio * errors.requests / (errors.requests + _PRIOR_SUCCESSES)
    if errors.consecutive > 1:
        worst = max(worst, (errors.consecutive - 1) / errors.consecutive)
    worst *= 0.5 ** (max(0.0, now - errors.at) / PENALTY_HALF_LIFE_SECONDS)
    return worst if worst >= NEGLIGIBLE else 0.0


class OutlierDetector:
    """The outcomes of one endpoint's requests. `now` never goes back between calls."""

    __slots__ = (
        "_admitted_at", "_at", "_consecutive", "_ejections", "_failed", "_last", "_requests", "_trial_at", "_trial_id",
        "errors", "reason",
    )  # fmt: skip

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over: another server responds now."""
        self._at = 0.0
        self._requests = self._failed = 0.0  # recent ones, faded
        self._consecutive = 0
        self._last = ""
        self.reason = ""  # why the endpoint is ejected, empty where it is not
        self._ejections = 0
        self._admitted_at = float("-inf")  # when the last ejection ended
        self._trial_at: float | None = None  # the next trial may begin then; None while admitted
        self._trial_id = 0  # the request that is the trial; 0 for none
        self.errors: Errors | None = None  # None: no failure that counts

    @property
    def ejected(self) -> bool:
        """Whether the endpoint gets trial requests only."""
        return self._trial_at is not None

    def started(self, work_id: int, now: float) -> None:
        """A request was sent to the endpoint. It is the trial if the endpoint is ejected and none is under way."""
        if self._trial_at is not None and self._trial_at <= now:
            self._trial_id = work_id
            self._trial_at = now + TRIAL_SECONDS
            self._update()

    def succeeded(self, work_id: int, now: float) -> bool:
        """A response came that is not a failure; whether it ends an ejection. A request of before the ejection does
        not."""
        self._fade(now)
        self._requests += 1.0
        ends = self._trial_at is not None and work_id == self._trial_id != 0
        if ends:
            self._trial_at, self._trial_id = None, 0
            self.reason = ""
            self._admitted_at = now
        if self._trial_at is None:
            self._consecutive = 0
        if self.errors is not None:
            self._update()
        return ends

    def failed(self, work_id: int, kind: str, limits: OutlierLimits, now: float) -> str:
        """A request failed: the reason why the endpoint should be ejected (again), or the empty string."""
        self._fade(now)
        self._requests += 1.0
        self._failed += 1.0
        self._consecutive += 1
        self._last = kind
        self._update()
        if self._trial_at is not None:
            return TRIAL_FAILED if work_id == self._trial_id != 0 else ""
        if self._consecutive >= limits.consecutive:
            return CONSECUTIVE_FAILURES
        if self._requests >= limits.requests and self._failed >= limits.ratio * self._requests:
            return FAILURE_RATIO
        return ""

    def eject(self, reason: str, limits: OutlierLimits, now: float) -> float:
        """Eject the endpoint; returns the seconds until its trial. An endpoint that was admitted for `longest` seconds
        begins with the shortest time again."""
        if self._trial_at is None and now - self._admitted_at >= limits.longest:
            self._ejections = 0
        seconds = min(limits.longest, limits.base * 2.0 ** min(self._ejections, 32))
        self._ejections += 1
        self.reason = reason
        self._trial_at, self._trial_id = now + seconds, 0
        self._update()
        return seconds

    def _fade(self, now: float) -> None:
        passed = now - self._at
        if passed > 0:
            fade = 0.5 ** (passed / HALF_LIFE_SECONDS)
            self._requests *= fade
            self._failed *= fade
            self._at = now

    def _update(self) -> None:
        ratio = self._failed / self._requests if self._requests > 0 else 0.0
        if self._trial_at is None and not self._consecutive and ratio < FORGOTTEN:
            self.errors = None
            return
        self.errors = Errors(
            self._consecutive,
            ratio,
            self._requests,
            self._at,
            self._last,
            self.reason,
            self._ejections if self._trial_at is not None else 0,
            self._trial_at,
        )
