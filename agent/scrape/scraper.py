"""One endpoint's scrapes: its page on a grid, and beside the page its engine's health path and its models.

What is asked beside the page goes over the page's own connection while nothing else is on it, so it costs one small
answer. A page that is due meanwhile does not wait: it takes a new connection, and the old one is closed behind its
answer. Health is asked with the page that comes next to its time, and on its own where no page does. As long as it is
not known whether a server lives, it is asked for its health before its page, so that a server which is loading says so
before a page is believed.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from agent.engine_specs import AUTO
from agent.exposition.page import PageRefused
from agent.scrape.budget import Gate
from agent.scrape.fetch import FetchFailed
from agent.scrape.http import request
from agent.scrape.line import Line
from agent.scrape.question import Loop, Question, early
from agent.scrape.schedule import first_due, next_due, retry_due
from agent.scrape.target import PageSink, Reader, Sink, Target
from agent.state.health import DOWN_AFTER

SOONEST_SECONDS: Final = 0.05
MODELS_BYTES: Final = 1 << 20
HEALTH_BYTES: Final = 64 << 10
# What is asked beside the page must be here within this time: it is a short answer.
BESIDE_SECONDS: Final = 0.5
# The part of the time between two questions for health for which a page that takes its time may hold one up.
SLOW_OF_INTERVAL: Final = 0.5
_METRICS_TYPE: Final = "text/plain;version=0.0.4"
# Failures after which another server may answer at the address; the first two without a word with any server.
_NOBODY: Final = frozenset({"refused", "unreachable"})
_GONE: Final = _NOBODY | {"reset"}
# How a health path fails, as `agent.state.health.HEALTH_REASONS` calls it; any other failure is `health_broken`.
_HEALTH_WORDS: Final = {
    "refused": "health_refused",
    "unreachable": "health_refused",
    "timeout": "health_timeout",
    "status": "health_status",
}


class Scraper:
    """One endpoint of one pool, or one exporter, for which `server`, who is told of what is asked beside the page, is
    None."""

    __slots__ = (
        "_asked", "_blocked", "_both_requests", "_early_at", "_engine", "_failures", "_grid", "_health",
        "_line", "_loop", "_models", "_page_at", "_page_request", "_page_waits", "_paged", "_paging", "_reader",
        "_server", "_sink", "_slow_after", "_turn_at", "_written", "due_at", "early", "interval", "stopped",
        "target",
    )  # fmt: skip

    def __init__(
        self, loop: Loop, target: Target, sink: PageSink[Any], server: Sink | None, reader: Reader[Any]
    ) -> None:
        self._loop = loop
        self._sink = sink
        self._server = server
        self._reader = reader
        self._engine = ""  # what was recognised
        self._failures = 0
        self._paged = False
        self._grid = 0.0
        self._early_at = float("-inf")
        self._paging = False  # a scrape is under way
        self._page_waits = False  # and it waits for the health path, which is asked first
        self._health = Question(self, HEALTH_BYTES, self._well, self._unwell)
        self._models = Question(self, MODELS_BYTES, self._served, lambda _: None)
        self.due_at = 0.0
        self.stopped = False
        self.interval = target.interval
        self._page_at = float("-inf")  # when its last good page was asked for
        self._turn_at: float | None = None  # when the gate lets it through
        self._set(target)
        self._line = self._new_line(target.address)
        self._lay()
        self._asked: Line | Question = self._line  # where the page, or what comes before it, was asked last

    def _set(self, target: Target) -> None:
        self.target = target
        self.early = early(target.interval)
        table = self._told(target).engine_table()
        timeout = min(target.timeout, BESIDE_SECONDS)
        health = table.health_path if table and target.health_path is None else target.health_path
        health_at = target.health_at(table)
        models = table.models_path if table else None
        self._written = target.reach.version
        self._blocked: FetchFailed | None = None
        try:
            headers = target.reach.headers()
        except FetchFailed as failure:
            self._blocked, headers, health, models = failure, "", None, None
        self._page_request = request(self._host(target.page_at()), target.path, _METRICS_TYPE, headers)
        ask_health = request(self._host(health_at), health, "*/*", headers) if health and health_at else b""
        ask_models = request(self._host(target.address), models, "application/json", headers) if models else b""
        self._health.set(ask_health, target.health_interval, timeout)
        self._models.set(ask_models, target.models_interval, timeout)
        self._slow_after = min(target.health_interval * SLOW_OF_INTERVAL, BESIDE_SECONDS) if ask_health else 0.0
        in_turn = table is not None and table.answers_in_turn
        self._both_requests = self._page_request + ask_health if ask_health and in_turn else b""

    def _host(self, address: str) -> str:
        """What to call the server at one of its addresses."""
        name = self.target.name
        return f"{name}:{address.rpartition(':')[2]}" if name else address

    def _lay(self) -> None:
        """New lines, where the old ones lead elsewhere."""
        self._line.leave()
        self._line = self._new_line(self.target.page_at())
        self._lay_beside()

    def _lay_beside(self) -> None:
        """New lines to what is asked at another port than the page."""
        target, page = self.target, self.target.page_at()
        health = target.health_at(self._told(target).engine_table()) or page
        for question, address in ((self._health, health), (self._models, target.address)):
            if question.own is not None:
                question.own.leave()
            question.own = None if address == page else self._new_line(address)

    def _new_line(self, address: str) -> Line:
        target = self.target
        on_close = self._closed_idle if address == target.page_at() else _nothing
        return Line(self._loop, address, on_close, target.reach, target.name, self._slow)

    def _told(self, target: Target) -> Target:
        """The target with the engine that was recognised, where it is to be."""
        return target._replace(engine=self._engine) if target.engine == AUTO and self._engine else target

    def recognised(self, engine: str) -> None:
        """Its page is of this engine: ask beside the page what that engine can be asked."""
        self._engine = engine
        self._models.again()
        if self._server is not None:
            self._server.recognised(self.target.address, engine)
        self._set_anew(self.target)
        self._lay_beside()

    def _set_anew(self, target: Target) -> None:
        asked = self._health.asks
        self._set(target)
        if asked and not self._health.asks and self._server is not None:
            self._server.health(target.address, False, "", "", self._loop.now, 0.0)

    def begin(self) -> None:
        """Take the first place on the grid."""
        now, target = self._loop.now, self.target
        self._grid = first_due(target.address, target.interval, now)
        self._loop.at(self._loop.firsts.at(now), self)

    def change(self, target: Target, sink: PageSink[Any], server: Sink | None) -> None:
        """Other settings for the same endpoint."""
        before, self._sink, self._server = self.target, sink, server
        self._set_anew(target)
        if self._health.asks:
            self._health.remind(self._loop, self._loop.now)
        if target.way() != before.way():
            self._lay()
        if target.interval != before.interval:
            self.interval = target.interval
            self.begin()

    def pace(self, interval: float) -> None:
        """Ask every so many seconds from now on, be it the configured interval or a longer one."""
        before, self.interval = self.interval, interval
        if interval < 0.9 * before and self._paged and not self._failures:
            self._loop.at(min(self.due_at, max(self._loop.now, self._page_at + interval)), self)
        if before <= self._health.interval < interval and self._health.asks:
            self._health.remind(self._loop, self._loop.now)  # it does not come with every page any more

    def stop(self) -> None:
        """Ask nothing more."""
        self.stopped = True
        self._health.stop()
        self._models.stop()
        self._line.close()
        if isinstance(self._asked, Line):  # with a page that is under way, and perhaps left to it
            self._asked.close()

    # -- asking --------------------------------------------------------------------------------------------------

    def due(self, now: float) -> None:
        """The time has come; a scrape that is still under way makes this slot be skipped."""
        gate = self._loop.gate
        if gate is not None and self._server is not None and not self._paging and self._waits(gate, now):
            return
        if gate is None or self._server is None:
            # Half an interval on: this scrape may be a little early, or between two points of the grid.
            self._grid = next_due(self._grid, self.interval, now + self.interval / 2)
        else:  # whose intervals change: it is the gate that spreads them
            self._grid = now + self.interval
        self._loop.at(self._grid, self)
        if self._paging:
            return
        self._paging = True
        reach = self.target.reach
        reach.look(now)
        if reach.version != self._written:
            self._set(self.target)
        # Who comes back is whole with its first page, so its health is asked before.
        again = self._failures >= DOWN_AFTER and self._health.asks and not self._health.busy
        if again or ((self._failures or not self._paged) and self._health.wanted(now)):
            self._page_waits = True
            self._ask_beside(self._health, now)
        else:
            self._ask_page()

    def _waits(self, gate: Gate, now: float) -> bool:
        """Whether it is not yet its turn; it is called again when it is."""
        turn = self._turn_at
        if turn is None:
            known = self._paged and not self._failures
            self._turn_at = turn = gate.at(now, self._page_at if known else float("inf"))
        if turn <= now + self.early:
            self._turn_at = None
            return False
        self._loop.at(turn, self)
        return True

    def _ask_page(self) -> None:
        self._page_waits = False
        target = self.target
        if self._blocked is not None:
            self._asked = self._line
            self._line.sent_at = self._loop.now
            self._page_failed(self._blocked)
            return
        self._asked = line = self._free_line()
        health, now = self._health, self._loop.now
        request, follower = self._page_request, None
        together = self._both_requests and self._paged and not self._failures and line.open and not health.apart
        if together and health.own is None and health.wanted(now):
            request, follower = self._both_requests, health
            health.begin(now, line)
            if self.interval > health.interval:
                health.remind(self._loop, now)
        line.ask(
            request, target.max_page_bytes, target.timeout, self._page, self._page_failed, self._slow_after, follower
        )

    def _slow(self, line: Line) -> None:
        """The page takes its time: health does not wait for it."""
        now = self._loop.now
        if line.drop():
            self._ask_beside(self._health, now)
        elif self._health.asks:
            self._health.remind(self._loop, now)

    def _free_line(self) -> Line:
        """The line with nothing on it; one that waits for an answer is left to it."""
        line = self._line
        if line.busy:
            line.leave()
            line = self._line = self._new_line(line.address)
        return line

    def ask_beside(self, question: Question, now: float) -> None:
        """The question's time has come, and there was no page next to it."""
        if question.wanted(now):
            self._ask_beside(question, now)
        else:  # it is asked right now
            question.remind(self._loop, now)

    def _ask_beside(self, question: Question, now: float) -> None:
        line = question.own or self._line
        if line.busy:  # with a page, which must not be disturbed
            line = Line(self._loop, line.address, _nothing, self.target.reach, self.target.name)
            question.ask(now, line)
            line.leave()
        else:
            question.ask(now, line)
        if question is not self._health:
            return
        # Where pages come at least as often, the next one sees to it: it comes in time, or is slow, or fails.
        if self._paging or self._failures or not self._paged or self.interval > question.interval:
            question.remind(self._loop, now)

    def _beside(self, now: float) -> None:
        """Ask what is due beside the page, one after the other."""
        if self.stopped or self._paging or self._line.busy or self._server is None:
            return
        if self._health.wanted(now):
            self._ask_beside(self._health, now)
        elif self._paged and not self._failures and self._models.wanted(now):
            self._ask_beside(self._models, now)

    def asked_beside(self, question: Question, failure: FetchFailed | None) -> None:
        """A question was answered, or it failed."""
        if self.stopped:
            return
        if question is self._models:
            return
        if not self._page_waits:
            self._beside(self._loop.now)
        elif failure is not None and failure.reason in _NOBODY and question.own is None:
            self._asked = question
            self._page_failed(failure)  # nobody to be asked for a page either
        else:
            self._ask_page()

    # -- answers -------------------------------------------------------------------------------------------------

    def _page(self, page: bytes, whole: bool) -> None:  # noqa: FBT001
        try:
            extraction = self._reader.extract(page, whole=whole)
        except PageRefused as refused:
            self._report(refused.reason, refused.detail)
            return
        self._paging = False
        self._paged = True
        self._failures = 0
        at, now = self._asked.sent_at, self._loop.now
        self._page_at = at
        if self._sink.observed(self.target.address, extraction, at, now - at, len(page)):
            self._models.anew(now)
        self._beside(now)

    def _page_failed(self, failure: FetchFailed) -> None:
        if self.stopped:
            return
        if failure.reason in _GONE:
            # Whoever comes back may serve other models, and be asked in another way.
            self._models.again()
            self._health.apart = False
        failure = self.target.reach.understood(failure)
        self._report(failure.reason, failure.detail)

    def _report(self, reason: str, detail: str) -> None:
        self._paging = self._page_waits = False
        self._failures += 1
        at, now = self._asked.sent_at, self._loop.now
        self._sink.failed(self.target.address, reason, detail, at, now - at)
        if self.stopped:
            return
        if self._failures > 1:
            self._loop.at(retry_due(self.target.address, self._failures - 1, self.interval, now), self)
        if self._health.asks:
            self._health.remind(self._loop, now)
        if reason not in _NOBODY:
            self._beside(now)

    def _well(self, body: bytes) -> None:
        self._tell_health("", "")

    def _unwell(self, failure: FetchFailed) -> None:
        failure = self.target.reach.understood(failure)
        if 200 < failure.status < 300:
            self._tell_health("", "")
        elif self._page_waits and failure.reason in _NOBODY and self._health.own is None:
            pass  # told as the failure of the page, which was not asked for
        elif failure.status == 503:
            self._tell_health("health_unavailable", failure.detail)
        elif failure.status == 404:
            self._tell_health("health_not_found", "HTTP 404: the server has no such path; write its healthPath")
        else:
            self._tell_health(_HEALTH_WORDS.get(failure.reason, "health_broken"), failure.detail)

    def _tell_health(self, reason: str, detail: str) -> None:
        if self._server is not None and not self.stopped:
            at = self._health.sent_at
            self._server.health(self.target.address, not reason, reason, detail, at, self._loop.now - at)

    def _served(self, body: bytes) -> None:
        names = model_names(body)
        if names is not None and self._server is not None and not self.stopped:
            self._server.served_models(self.target.address, names, self._models.sent_at)

    def _closed_idle(self) -> None:
        """The server closed a connection on which nothing was asked: see whether it still lives."""
        now = self._loop.now
        if self.stopped or self._paging or now - self._early_at < self.interval:
            return
        self._early_at = now
        self._loop.at(min(self.due_at, max(now, self._line.sent_at + SOONEST_SECONDS)), self)


def _nothing() -> None:
    """Nobody needs to know that this connection was closed."""


def model_names(body: bytes) -> frozenset[str] | None:
    """The names in an OpenAI list of models (`data[].id`), or None where the body is none."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        return None
    return frozenset(entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str))
