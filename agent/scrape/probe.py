"""Probes: the periodic GETs to a server besides its page, such as its health path and its list of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from agent.scrape.budget import RateLimiter
from agent.scrape.http_client import ClientContext, HttpClient
from agent.scrape.http_connection import FetchFailed
from agent.scrape.schedule import StartupLimiter

# Requests that are due soon are started together, early by at most this time and this fraction of their interval: a
# thousand per second need 50 wake-ups instead of a thousand, and consecutive pages share the CPU's caches.
TOGETHER_SECONDS: Final = 0.02
TOGETHER_OF_INTERVAL: Final = 0.02
# The minimum time between two probes that are reset because another server responds.
RESET_SECONDS: Final = 1.0


def early(interval: float) -> float:
    """By how many seconds a request with this interval may be started before it is due."""
    return min(TOGETHER_SECONDS, TOGETHER_OF_INTERVAL * interval)


class Scheduled(Protocol):
    """An object that the loop calls when it is due; `early`: it may be called this many seconds before."""

    due_at: float
    early: float
    stopped: bool

    def on_due(self, now: float) -> None:
        """Its time has come."""
        ...


class ScraperContext(ClientContext, Protocol):
    """What a scraper needs of the scrape loop."""

    startup_limiter: StartupLimiter
    rate_limiter: RateLimiter | None

    def schedule(self, due: float, scheduled: Scheduled) -> None:
        """Call `scheduled.on_due` at this time, instead of any time scheduled before."""
        ...


class ProbeOwner(Protocol):
    """The scraper that a probe belongs to."""

    interval: float

    def probe_due(self, probe: Probe, now: float) -> None:
        """The probe is due, and was not sent together with a page."""
        ...

    def probe_ended(self, probe: Probe, failure: FetchFailed | None) -> None:
        """The probe has a response, or it failed."""
        ...


class Probe:
    """A GET to a server besides its page, every `interval` seconds, on the page's client where that is free."""

    __slots__ = (
        "_client", "_exact", "_next_at", "_on_body", "_on_failure", "_owner", "_reset_at", "busy", "due_at", "early",
        "interval", "limit", "own_client", "request", "send_alone", "sent_at", "stopped", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        owner: ProbeOwner,
        limit: int,
        on_body: Callable[[bytes], None],
        on_failure: Callable[[FetchFailed], None],
    ) -> None:
        self._owner = owner
        self.limit = limit
        self._on_body = on_body
        self._on_failure = on_failure
        self.request = b""
        self.interval = 0.0
        self.timeout = 0.0
        self.send_alone = False  # the server does not answer it when it is pipelined
        self._client: HttpClient | None = None  # of the active request
        self.own_client: HttpClient | None = None  # set where the probe's port is not the page's
        self._next_at = float("-inf")
        self._exact = False  # it is not sent before `_next_at`
        self._reset_at = float("-inf")
        self.busy = False
        self.sent_at = float("-inf")
        self.due_at = float("inf")
        self.early = 0.0
        self.stopped = False

    def configure(self, request: bytes, interval: float, timeout: float) -> None:
        """Set the GET (empty: the probe is disabled), its interval and its time-out."""
        self.request, self.interval, self.timeout = request, interval, timeout

    @property
    def enabled(self) -> bool:
        """Whether there is a GET to send."""
        return bool(self.request)

    def wanted(self, now: float) -> bool:
        """Whether it is due, or will be due before the middle of the time to the next page; not sooner than
        `set_due` has set."""
        ahead = 0.0 if self._exact else min(self.interval, self._owner.interval) / 2
        return bool(self.request) and not self.busy and now + ahead >= self._next_at

    def send(self, now: float, client: HttpClient) -> None:
        """Send it on this client."""
        self.begin(now, client)
        client.get(self.request, self.limit, self.timeout, self.completed, self.failed)

    def begin(self, now: float, client: HttpClient) -> None:
        """It is sent on this client; the next one is due on the grid of this probe, or on a new grid if it is late."""
        late = now - self._next_at
        self._next_at = now + self.interval if late > self.interval else self._next_at + self.interval
        self._exact = False
        self._client = client
        self.busy = True
        self.sent_at = now
        self.due_at = float("inf")  # cancels an earlier schedule

    def schedule(self, context: ScraperContext, now: float) -> None:
        """Schedule the next one, which is only sent then if it was not sent with a page before."""
        slack = self.interval / 2 if self._owner.interval <= self.interval or self._next_at <= now else 0.0
        self.early = early(self.interval)
        context.schedule(max(self._next_at, now) + slack, self)

    def on_due(self, now: float) -> None:
        """It was not sent with a page in time."""
        self._owner.probe_due(self, now)

    def make_due(self) -> None:
        """Send it with the next page, whenever the last one was sent."""
        self._next_at = float("-inf")

    def set_due(self, at: float) -> bool:
        """Make it due at this time and not before; False where it was set to be due sooner."""
        if self._exact and self._next_at <= at:
            return False
        self._next_at = at
        self._exact = True
        return True

    def reset(self, now: float) -> None:
        """Make it due now, because another server responds; if that repeats, as at an address with two servers behind
        it, at most every `RESET_SECONDS`."""
        if now - self._reset_at >= RESET_SECONDS:
            self._reset_at = self._next_at = now
        else:
            self._next_at = self._reset_at + RESET_SECONDS

    def stop(self) -> None:
        """Stop, and close its clients."""
        self.stopped = True
        for client in (self._client, self.own_client):
            if client is not None:
                client.close()

    def completed(self, body: bytes, whole: bool) -> None:  # noqa: FBT001
        """It has a response with status 200."""
        self._end()
        self._on_body(body)
        self._owner.probe_ended(self, None)

    def failed(self, failure: FetchFailed) -> None:
        """It failed."""
        self._end()
        self._on_failure(failure)
        self._owner.probe_ended(self, failure)

    def not_sent(self) -> None:
        """There will be no response, for a reason that is not the server's: the probe is still due."""
        self.busy = False
        self._client = None
        self._next_at = self.sent_at

    def _end(self) -> None:
        client, self._client = self._client, None
        self.busy = False
        if client is not None:
            self.sent_at = client.sent_at
