"""The scrapes of one endpoint: its page on a grid of times, and probes of its engine's health and models paths.

Probes are sent on the page's connection while it has no active request, so a probe costs one small response. A page
that is due while a probe is active does not wait: it takes a new connection, and the old one is closed after its
response. Health is probed together with the page that is nearest to its due time, and alone if there is none. Until an
endpoint's first page, and while its pages fail, health is probed before the page, so that a loading server is detected
before its page is used.

Where no health path is known, because the engine is unknown or has none, `ASSUMED_HEALTH_PATH` is probed while the page
brings nothing: it may show that the server lives. Its success, a status of 500 or above and a refused connection are
results; any other response only shows that this server has no such path.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from agent.engine_specs import AUTO
from agent.exposition.page import PageRefused
from agent.scrape.budget import RateLimiter
from agent.scrape.http import get_request
from agent.scrape.http_client import HttpClient
from agent.scrape.http_connection import FetchFailed
from agent.scrape.probe import Probe, ScraperContext, early
from agent.scrape.schedule import MAX_FIRST_SCRAPE_LATE_SECONDS, MAX_TIMES_PUT_OFF, first_due, next_due, retry_due
from agent.scrape.target import PageReader, PageSink, Sink, Target
from agent.state.health import DOWN_AFTER, PROOF_OF_LIFE

# The minimum time between a scrape and an immediate one after the server closed the connection.
SOONEST_SECONDS: Final = 0.05
MAX_MODELS_BYTES: Final = 1 << 20
MAX_HEALTH_BYTES: Final = 64 << 10
# Requested of a server whose engine is unknown, or has no such path: the paths of most engines.
ASSUMED_HEALTH_PATH: Final = "/health"
ASSUMED_MODELS_PATH: Final = "/v1/models"
# The longest time-out of a probe, whose response is short.
PROBE_SECONDS: Final = 0.5
# A page that takes longer than this fraction of the health interval does not delay the pipelined health probe further.
SLOW_OF_INTERVAL: Final = 0.5
_METRICS_TYPE: Final = "text/plain;version=0.0.4"
# Failures without any contact to a server.
_NO_SERVER: Final = frozenset({"refused", "unreachable"})
# Failures after which the address may belong to another server.
_SERVER_GONE: Final = _NO_SERVER | {"reset"}
# Failure of a health probe -> `agent.state.health.HEALTH_REASONS`; any other failure is `health_broken`.
_HEALTH_REASONS: Final = {
    "refused": "health_refused",
    "unreachable": "health_refused",
    "timeout": "health_timeout",
    "status": "health_status",
}


class Scraper:
    """Scrapes one endpoint of one pool, or one exporter. `server` receives the results of probes; None for an
    exporter."""

    __slots__ = (
        "_answers", "_assumed", "_assumed_models", "_blocked", "_both_requests", "_client", "_context", "_early_at",
        "_engine", "_failures", "_grid", "_health", "_health_address", "_models", "_page_at", "_page_read",
        "_page_request", "_page_waits", "_reader", "_refresh_at", "_reserved_at", "_scraping", "_sent_by", "_server",
        "_sink", "_slow_after", "_starting", "_written", "due_at", "early", "interval", "stopped", "target",
    )  # fmt: skip

    def __init__(
        self,
        context: ScraperContext,
        target: Target,
        sink: PageSink[Any],
        server: Sink | None,
        reader: PageReader[Any],
    ) -> None:
        self._context = context
        self._sink = sink
        self._server = server
        self._reader = reader
        self._engine = ""  # the recognised one
        self._failures = 0  # in a row
        self._answers = False  # the last request for the page or for health had a response
        self._page_read = False
        self._starting = 0  # how often the first scrape may be put off, while it is due
        self._grid = 0.0
        self._early_at = float("-inf")
        self._scraping = False
        self._page_waits = False  # the active scrape begins with a health probe
        self._health = Probe(self, MAX_HEALTH_BYTES, self._healthy, self._unhealthy)
        self._models = Probe(self, MAX_MODELS_BYTES, self._served, lambda _: None)
        self.due_at = 0.0
        self.stopped = False
        self.interval = target.interval
        self._page_at = float("-inf")  # when its last good page was requested
        self._reserved_at: float | None = None  # when the rate limiter admits it
        self._refresh_at: float | None = None  # when to fetch the list of models after the fetch that is due
        self._set(target)
        self._client = self._new_client(target.address)
        self._replace_clients()
        self._sent_by: HttpClient | Probe = self._client  # the last request for the page, or the probe before it

    def _set(self, target: Target) -> None:
        self.target = target
        self.early = early(target.interval)
        table = self._resolved(target).engine_table()
        timeout = min(target.timeout, PROBE_SECONDS)
        health = table.health_path if table and target.health_path is None else target.health_path
        health_address = target.health_address(table)
        models = table.models_path if table else None
        self._written = target.access.version
        self._blocked: FetchFailed | None = None
        try:
            headers = target.access.headers()
        except FetchFailed as failure:
            self._blocked, headers, models = failure, "", None
        self._page_request = get_request(self._host(target.page_address()), target.path, _METRICS_TYPE, headers)
        self._health_address = health_address or target.page_address()
        health_request = (
            get_request(self._host(health_address), health, "*/*", headers) if health and health_address else b""
        )
        models_request = get_request(self._host(target.address), models, "application/json", headers) if models else b""
        self._assumed = self._assumed_models = b""
        if self._server is not None and target.health_path is None and not health_request:
            self._health_address = target.address
            self._assumed = get_request(self._host(target.address), ASSUMED_HEALTH_PATH, "*/*", headers)
            if table is None and self._blocked is None:
                self._assumed_models = get_request(
                    self._host(target.address), ASSUMED_MODELS_PATH, "application/json", headers
                )
        self._health.configure(health_request, target.health_interval, timeout)
        self._models.configure(models_request, target.models_interval, timeout)
        self._slow_after = min(target.health_interval * SLOW_OF_INTERVAL, PROBE_SECONDS) if health_request else 0.0
        pipelining = table is not None and table.pipelining
        self._both_requests = self._page_request + health_request if health_request and pipelining else b""
        if self._assumed and self._failures:
            self._assume(enabled=True)

    def _assume(self, *, enabled: bool) -> None:
        """Probe the assumed health path from now on, or not any more."""
        if self._health.enabled is enabled:
            return
        target = self.target
        timeout = min(target.timeout, PROBE_SECONDS)
        self._health.configure(self._assumed if enabled else b"", target.health_interval, timeout)
        if self._assumed_models:
            self._models.configure(self._assumed_models if enabled else b"", target.models_interval, timeout)
        if not enabled:
            self._report_not_probed()

    def _host(self, address: str) -> str:
        """The Host header for one of the server's addresses."""
        name = self.target.name
        return f"{name}:{address.rpartition(':')[2]}" if name else address

    def _replace_clients(self) -> None:
        """New clients, because the connection settings changed."""
        self._client.close_when_idle()
        self._client = self._new_client(self.target.page_address())
        self._replace_probe_clients()

    def _replace_probe_clients(self) -> None:
        """New clients for the probes whose port is not the page's."""
        target, page = self.target, self.target.page_address()
        for probe, address in ((self._health, self._health_address), (self._models, target.address)):
            if probe.own_client is not None:
                probe.own_client.close_when_idle()
            probe.own_client = None if address == page else self._new_client(address)

    def _new_client(self, address: str) -> HttpClient:
        target = self.target
        on_idle_close = self._closed_idle if address == target.page_address() else _ignore_close
        return HttpClient(self._context, address, on_idle_close, target.access, target.name, self._page_slow)

    def _resolved(self, target: Target) -> Target:
        """The target, with the recognised engine in place of `auto`."""
        return target._replace(engine=self._engine) if target.engine == AUTO and self._engine else target

    def recognised(self, engine: str) -> None:
        """Its page is of this engine: send that engine's probes."""
        self._engine = engine
        self._models.make_due()
        if self._server is not None:
            self._server.recognised(self.target.address, engine)
        self._reset(self.target)
        self._replace_probe_clients()

    def _reset(self, target: Target) -> None:
        enabled = self._health.enabled
        self._set(target)
        if enabled and not self._health.enabled:
            self._report_not_probed()

    def begin(self) -> None:
        """Start, with the first scrape as soon as the startup limiter allows it."""
        now, target = self._context.now, self.target
        self._starting = MAX_TIMES_PUT_OFF
        self._grid = first_due(target.address, target.interval, now)
        self._context.schedule(self._context.startup_limiter.reserve(now), self)

    def change(self, target: Target, sink: PageSink[Any], server: Sink | None) -> None:
        """Apply other settings for the same endpoint."""
        before, self._sink, self._server = self.target, sink, server
        self._reset(target)
        if self._health.enabled:
            self._health.schedule(self._context, self._context.now)
        if target.connection_key() != before.connection_key():
            self._replace_clients()
        if target.interval != before.interval:
            self.interval = target.interval
            self.begin()

    def set_interval(self, interval: float) -> None:
        """Scrape every `interval` seconds, which is the configured interval or longer."""
        before, self.interval = self.interval, interval
        if interval < 0.9 * before and self._page_read and not self._failures:
            self._context.schedule(min(self.due_at, max(self._context.now, self._page_at + interval)), self)
        if before <= self._health.interval < interval and self._health.enabled:
            self._health.schedule(self._context, self._context.now)  # it is not sent with every page any more

    def refresh_models(self, at: float) -> None:
        """Fetch the list of models at this time, where its server is scraped."""
        if not self._models.enabled or not self._page_read or self._failures:
            return
        if self._models.set_due(at):
            self._context.schedule(at, self._models)
        else:
            self._refresh_at = at  # after the one that is due before

    def stop(self) -> None:
        """Stop, and close every connection."""
        self.stopped = True
        self._health.stop()
        self._models.stop()
        self._client.close()
        if isinstance(self._sent_by, HttpClient):  # it may be a replaced client whose page is still outstanding
            self._sent_by.close()

    # -- requests ------------------------------------------------------------------------------------------------

    def on_due(self, now: float) -> None:
        """A scrape is due; this slot is skipped while another scrape is active."""
        if self._starting:
            if now - self.due_at > MAX_FIRST_SCRAPE_LATE_SECONDS:
                self._starting -= 1
                self._context.schedule(self._context.startup_limiter.reserve(now), self)
                return
            self._starting = 0
        limiter = self._context.rate_limiter
        if limiter is not None and self._server is not None and not self._scraping and self._waits(limiter, now):
            return
        if limiter is None or self._server is None:
            # Half an interval later: this scrape may be a little early, or between two points of the grid.
            self._grid = next_due(self._grid, self.interval, now + self.interval / 2)
        else:  # intervals change, and the rate limiter spreads the scrapes
            self._grid = now + self.interval
        self._context.schedule(self._grid, self)
        if self._scraping:
            return
        access = self.target.access
        access.refresh(now)
        if access.version != self._written:
            self._set(self.target)
        self._scraping = True
        # The first page after an outage makes the endpoint healthy, so its health is probed before.
        down = self._failures >= DOWN_AFTER and self._health.enabled and not self._health.busy
        if down or ((self._failures or not self._page_read) and self._health.wanted(now)):
            self._page_waits = True
            self._send_probe(self._health, now)
        else:
            self._request_page()

    def _waits(self, limiter: RateLimiter, now: float) -> bool:
        """Whether the rate limiter delays the scrape; `on_due` is called again when it is admitted."""
        reserved = self._reserved_at
        if reserved is None:
            known = self._page_read and not self._failures
            self._reserved_at = reserved = limiter.reserve(now, self._page_at if known else float("inf"))
        if reserved <= now + self.early:
            self._reserved_at = None
            return False
        self._context.schedule(reserved, self)
        return True

    def _request_page(self) -> None:
        self._page_waits = False
        target = self.target
        if self._blocked is not None:
            self._sent_by = self._client
            self._client.sent_at = self._context.now
            self._page_failed(self._blocked)
            return
        self._sent_by = client = self._free_client()
        health, now = self._health, self._context.now
        request, pipelined = self._page_request, None
        possible = self._both_requests and self._page_read and not self._failures and client.connected
        if possible and not health.send_alone and health.own_client is None and health.wanted(now):
            request, pipelined = self._both_requests, health
            health.begin(now, client)
            if self.interval > health.interval:
                health.schedule(self._context, now)
        client.get(
            request,
            target.max_page_bytes,
            target.timeout,
            self._page_received,
            self._page_failed,
            self._slow_after,
            pipelined,
        )

    def _page_slow(self, client: HttpClient) -> None:
        """The page is slow: health does not wait for it."""
        now = self._context.now
        if client.drop_pipelined():
            self._send_probe(self._health, now)
        elif self._health.enabled:
            self._health.schedule(self._context, now)

    def _free_client(self) -> HttpClient:
        """The page's client; replaced by a new one if it is waiting for a response."""
        client = self._client
        if client.busy:
            client.close_when_idle()
            client = self._client = self._new_client(client.address)
        return client

    def probe_due(self, probe: Probe, now: float) -> None:
        """A probe is due, and was not sent together with a page."""
        if probe.wanted(now):
            self._send_probe(probe, now)
        else:  # it is active
            probe.schedule(self._context, now)

    def _send_probe(self, probe: Probe, now: float) -> None:
        client = probe.own_client or self._client
        if client.busy:  # with a page, which must not be delayed
            client = HttpClient(self._context, client.address, _ignore_close, self.target.access, self.target.name)
            probe.send(now, client)
            client.close_when_idle()
        else:
            probe.send(now, client)
        if probe is not self._health:
            return
        # If pages are at least as frequent, the next one schedules the probe: when it is sent, is slow, or fails.
        if self._scraping or self._failures or not self._page_read or self.interval > probe.interval:
            probe.schedule(self._context, now)

    def _send_due_probe(self, now: float) -> None:
        """Send a probe that is due; the next one follows when it has ended."""
        if self.stopped or self._scraping or self._client.busy or self._server is None:
            return
        if self._health.wanted(now):
            self._send_probe(self._health, now)
        elif self._answers and self._models.wanted(now):
            self._send_probe(self._models, now)

    def probe_ended(self, probe: Probe, failure: FetchFailed | None) -> None:
        """A probe has a response, or it failed."""
        if self.stopped:
            return
        if probe is self._models:
            at, self._refresh_at = self._refresh_at, None
            if at is not None:
                self.refresh_models(max(at, self._context.now))
            return
        if not self._page_waits:
            self._send_due_probe(self._context.now)
        elif failure is not None and failure.reason in _NO_SERVER and probe.own_client is None:
            self._sent_by = probe
            self._page_failed(failure)  # a request for the page would fail in the same way
        else:
            self._request_page()

    # -- results -------------------------------------------------------------------------------------------------

    def _page_received(self, page: bytes, whole: bool) -> None:  # noqa: FBT001
        try:
            extraction = self._reader.extract(page, whole=whole)
        except PageRefused as refused:
            self._report_failure(refused.reason, refused.detail)
            return
        self._scraping = False
        self._page_read = self._answers = True
        self._failures = 0
        at, now = self._sent_by.sent_at, self._context.now
        self._page_at = at
        if self._sink.observed(self.target.address, extraction, at, now - at, len(page)):
            self._models.reset(now)
        if self._assumed:  # the page of an unknown engine may have no sample yet
            self._assume(enabled=self._resolved(self.target).engine_table() is None)
        self._send_due_probe(now)

    def _page_failed(self, failure: FetchFailed) -> None:
        if self.stopped:
            return
        if failure.reason in _SERVER_GONE:
            # Another server may start at the address, with other models, and it may support pipelining.
            self._models.make_due()
            self._health.send_alone = False
        failure = self.target.access.explained(failure)
        reason = failure.reason
        if reason == "refused" and self._health.enabled and self._health.own_client is not None:
            reason = "page_refused"  # it proves nothing about the port of the health path
        self._report_failure(reason, failure.detail)

    def _report_failure(self, reason: str, detail: str) -> None:
        self._scraping = self._page_waits = False
        self._failures += 1
        self._answers = reason in PROOF_OF_LIFE
        at, now = self._sent_by.sent_at, self._context.now
        self._sink.failed(self.target.address, reason, detail, at, now - at)
        if self.stopped:
            return
        if self._failures > 1:
            self._context.schedule(retry_due(self.target.address, self._failures - 1, self.interval, now), self)
        if self._assumed:
            self._assume(enabled=True)
        if self._health.enabled:
            self._health.schedule(self._context, now)
        if reason not in _NO_SERVER:
            self._send_due_probe(now)

    def _healthy(self, body: bytes) -> None:
        self._report_health("", "")

    def _unhealthy(self, failure: FetchFailed) -> None:
        failure = self.target.access.explained(failure)
        if 200 < failure.status < 300:
            self._report_health("", "")
        elif self._blocked is not None and failure.status in (401, 403):
            self._report_health("", "")  # the agent has no token to send: more cannot be expected
        elif self._page_waits and failure.reason in _NO_SERVER and self._health.own_client is None:
            pass  # reported as the failure of the page, which was not requested
        elif self._assumed and failure.status < 500 and failure.reason not in _NO_SERVER:
            self._report_not_probed()  # this server has no such path
        elif failure.status == 503:
            self._report_health("health_unavailable", failure.detail)
        elif failure.status == 404:
            self._report_health("health_not_found", "HTTP 404: the server has no such path; write its healthPath")
        else:
            self._report_health(_HEALTH_REASONS.get(failure.reason, "health_broken"), failure.detail)

    def _report_health(self, reason: str, detail: str) -> None:
        self._answers = self._answers or not reason
        if self._server is not None and not self.stopped:
            at = self._health.sent_at
            self._server.health(self.target.address, not reason, reason, detail, at, self._context.now - at)

    def _report_not_probed(self) -> None:
        """Health has no result any more."""
        if self._server is not None and not self.stopped:
            self._server.health(self.target.address, False, "", "", self._context.now, 0.0)

    def _served(self, body: bytes) -> None:
        names = model_names(body)
        if names is not None and self._server is not None and not self.stopped:
            self._server.served_models(self.target.address, names, self._models.sent_at, model_roots(body))

    def _closed_idle(self) -> None:
        """The server closed the idle connection: check soon whether it still runs."""
        now = self._context.now
        if self.stopped or self._scraping or now - self._early_at < self.interval:
            return
        self._early_at = now
        self._context.schedule(min(self.due_at, max(now, self._client.sent_at + SOONEST_SECONDS)), self)


def _ignore_close() -> None:
    """The closing of this connection while idle has no meaning."""


def model_names(body: bytes) -> frozenset[str] | None:
    """The names in an OpenAI list of models (`data[].id`), or None where the body is not one."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        return None
    return frozenset(entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str))


def model_roots(body: bytes) -> dict[str, str]:
    """The place of the weights of each model in an OpenAI list of models (`data[].root`, as vLLM and SGLang write it);
    adapters, which have a parent, are left out. Call it with a body that `model_names` accepts."""
    found: dict[str, str] = {}
    for entry in orjson.loads(body)["data"]:
        if isinstance(entry, dict) and not entry.get("parent"):
            name, root = entry.get("id"), entry.get("root")
            if isinstance(name, str) and isinstance(root, str):
                found[name] = root
    return found
