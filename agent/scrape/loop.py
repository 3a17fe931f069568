"""The one loop of the scraper: due -> GET -> extract -> sink, for every endpoint and exporter on its own schedule.

One heap of due times and one timer serve all endpoints; an endpoint is never asked twice at a time. A reading's time
is the moment at which its page was asked for. Beside the page, and on the same connection, the engine's models path is
asked now and then; what goes wrong there is no failed scrape. An exporter, which is no model server, has a page only,
with a reader and a sink of its own.

A connection stays open between scrapes. When the server closes it while nothing is asked, that is news: the endpoint
is asked at once, so a killed server is down within milliseconds. This happens once in an interval at most, as there are
servers that close every connection soon, and not within `SOONEST_SECONDS` of the last scrape. A connection that turns
out to be closed when it is used again says nothing: the same GET is sent once more on a new one.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import orjson

from agent.clock import Clock
from agent.engines.mapping import Extractor, Memory
from agent.scrape.fetch import Buffers, Connection, FetchFailed
from agent.scrape.http import request
from agent.scrape.page import PageRefused
from agent.scrape.schedule import Firsts, first_due, next_due, retry_due
from agent.scrape.target import PageSink, Reader, Sink, Target, Told

__all__ = ["PageSink", "Reader", "ScrapeLoop", "Sink", "Target", "model_names"]

SOONEST_SECONDS: Final = 0.05
# Scrapes that are due soon are begun together, early by up to this time and this part of their interval: a thousand a
# second need 50 wake-ups and not a thousand, and what one page brought into the CPU's caches serves the next.
TOGETHER_SECONDS: Final = 0.02
TOGETHER_OF_INTERVAL: Final = 0.02
# After a time in which nothing could be begun, the whole fleet may be due: answers are read between so many asks.
BEGUN_AT_ONCE: Final = 100
# How often time-outs are looked for, while anything is asked: a time-out comes late by at most this.
WATCH_SECONDS: Final = 0.05
MODELS_BYTES: Final = 1 << 20
# The page waits while the models are asked, so a server that hangs there must not hold up the page for long.
MODELS_SECONDS: Final = 0.5
_METRICS_TYPE: Final = "text/plain;version=0.0.4"
# Failures after which another server may answer at the address.
_GONE: Final = frozenset({"refused", "unreachable", "reset"})


class ScrapeLoop:
    """Scrapes the targets of every pool until `stop`. All methods are called on the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buffers = Buffers()
        self._scrapers: dict[tuple[str, str], _Scraper] = {}
        self._due: list[tuple[float, int, _Scraper]] = []
        self._memories: dict[str, Memory] = {}
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._asking: set[_Scraper] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._watch_at = 0.0
        self.firsts = Firsts()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def set_targets(self, pool: str, targets: Sequence[Target], sink: Sink) -> None:
        """The model servers of a pool from now on. Those that stay keep their connection, and their phase if the
        interval stays."""
        self._set(pool, targets, sink, sink, self.extractor)

    def set_exporters(
        self, group: str, targets: Sequence[Target], sink: PageSink[Told], reader: Callable[[Target], Reader[Told]]
    ) -> None:
        """The exporters of a group from now on, whose name is no pool's; `reader` makes what reads the pages of one."""
        self._set(group, targets, sink, None, reader)

    def _set(
        self,
        group: str,
        targets: Sequence[Target],
        sink: PageSink[Any],
        server: Sink | None,
        reader: Callable[[Target], Reader[Any]],
    ) -> None:
        wanted = {target.address: target for target in targets}
        for key in [key for key in self._scrapers if key[0] == group and key[1] not in wanted]:
            self._scrapers.pop(key).stop()
        for address, target in wanted.items():
            known = self._scrapers.get((group, address))
            if known is not None and known.target.same_reader(target):
                known.change(target, sink, server)
                continue
            if known is not None:
                known.stop()
            scraper = self._scrapers[group, address] = _Scraper(self, target, sink, server, reader(target))
            scraper.begin()

    async def stop(self) -> None:
        """Ask nothing more and close every connection."""
        self._stopped = True
        for scraper in self._scrapers.values():
            scraper.stop()
        self._scrapers.clear()
        for timer in (self._timer, self._watch):
            if timer is not None:
                timer.cancel()
        self._timer = self._watch = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what a scraper asks of the loop -------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock.now()

    def at(self, due: float, scraper: _Scraper) -> None:
        """Call `scraper.due` at this time, in place of any other time told before."""
        scraper.due_at = due
        self._sequence += 1
        heapq.heappush(self._due, (due, self._sequence, scraper))
        if due < self._timer_at:
            self._arm(due)

    def extractor(self, target: Target) -> Extractor:
        """A reader of one endpoint's pages; those of one engine share what they learn."""
        table = target.engine_table()
        if table is None:
            raise ValueError(f"{target.address} is set as a model server and has no engine")
        memory = self._memories.get(table.name)
        if memory is None or memory.engine != table:
            memory = self._memories[table.name] = Memory(table)
        return Extractor(table, memory, target.histograms)

    def connect(self, scraper: _Scraper) -> None:
        """Open a connection for it, in a task of its own."""
        scraper.connecting = task = asyncio.get_running_loop().create_task(scraper.connect(self._buffers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def asking(self, scraper: _Scraper) -> None:
        """It waits for an answer: look after its time-out."""
        self._asking.add(scraper)
        if self._watch is None:
            self._watch_from(self._clock.now())

    def asked(self, scraper: _Scraper) -> None:
        """It waits no more."""
        self._asking.discard(scraper)

    # -- within --------------------------------------------------------------------------------------------------

    def _arm(self, due: float) -> None:
        if self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self._clock.now()), self._run)

    def _run(self) -> None:
        self._timer = None
        self._timer_at = float("-inf")  # what is told meanwhile needs no timer of its own
        now = self._clock.now()
        due = self._due
        begun = 0
        while due and due[0][0] <= now + due[0][2].early and begun < BEGUN_AT_ONCE:
            begun += 1
            at, _, scraper = heapq.heappop(due)
            if scraper.due_at == at and not scraper.stopped:
                scraper.due(now)
        self._timer_at = float("inf")
        if due:
            self._arm(due[0][0])

    def _watch_from(self, now: float) -> None:
        self._watch_at = now + WATCH_SECONDS
        self._watch = asyncio.get_running_loop().call_later(WATCH_SECONDS, self._look_after)

    def _look_after(self) -> None:
        self._watch = None
        now = self._clock.now()
        late = now - self._watch_at
        if late > WATCH_SECONDS:
            # It is we who were held up, by a crowd of answers or by a stop of the whole process: answers lie unread,
            # and nobody is to be called dead for that.
            for scraper in self._asking:
                scraper.give_up_at += late
        for scraper in [scraper for scraper in self._asking if scraper.give_up_at <= now]:
            scraper.time_out()
        if self._asking and not self._stopped:
            self._watch_from(now)


class _Scraper:
    """One endpoint of one pool, or one exporter, for which `server`, who is told of what is asked beside the page, is
    None."""

    __slots__ = (
        "_asked", "_connection", "_early_at", "_failures", "_grid", "_loop", "_models_at", "_models_request",
        "_page_request", "_page_waits", "_reader", "_retried", "_sent_at", "_server", "_sink", "connecting", "due_at",
        "early", "give_up_at", "stopped", "target",
    )  # fmt: skip

    def __init__(
        self, loop: ScrapeLoop, target: Target, sink: PageSink[Any], server: Sink | None, reader: Reader[Any]
    ) -> None:
        self._loop = loop
        self._sink = sink
        self._server = server
        self._reader = reader
        self._connection: Connection | None = None
        self._failures = 0
        self._grid = 0.0
        self._sent_at = float("-inf")
        self._models_at = float("-inf")
        self._early_at = float("-inf")
        self._retried = False
        self._asked = ""  # what waits for an answer: `page`, `models`, or nothing
        self._page_waits = False  # the page became due while the models were asked
        self.connecting: asyncio.Task[None] | None = None
        self.due_at = 0.0
        self.give_up_at = 0.0
        self.stopped = False
        self._set(target)

    def _set(self, target: Target) -> None:
        self.target = target
        self.early = min(TOGETHER_SECONDS, TOGETHER_OF_INTERVAL * target.interval)
        self._page_request = request(target.address, target.path, _METRICS_TYPE)
        table = target.engine_table()
        models_path = table.models_path if table else None
        self._models_request = request(target.address, models_path, "application/json") if models_path else b""

    def begin(self) -> None:
        """Take the first place on the grid."""
        now, target = self._loop.now, self.target
        self._grid = first_due(target.address, target.interval, now)
        self._loop.at(self._loop.firsts.at(now), self)

    def change(self, target: Target, sink: PageSink[Any], server: Sink | None) -> None:
        """Other settings for the same endpoint."""
        before, self._sink, self._server = self.target, sink, server
        self._set(target)
        if target.interval != before.interval:
            self.begin()

    def stop(self) -> None:
        """Ask nothing more."""
        self.stopped = True
        self._done()
        if self.connecting is not None:
            self.connecting.cancel()
        if self._connection is not None:
            self._connection.close()

    # -- asking --------------------------------------------------------------------------------------------------

    def due(self, now: float) -> None:
        """The time has come; a scrape that is still under way makes this slot be skipped."""
        # Half an interval on: this scrape may be a little early, or between two points of the grid.
        self._grid = next_due(self._grid, self.target.interval, now + self.target.interval / 2)
        self._loop.at(self._grid, self)
        if self._asked == "models":
            self._page_waits = True
        elif not self._asked:
            self._ask("page", now, self.target.timeout)

    def _ask(self, what: str, now: float, timeout: float) -> None:
        self._asked = what
        self._retried = False
        self._sent_at = now
        self.give_up_at = now + timeout
        self._loop.asking(self)
        self._send()

    def _send(self) -> None:
        connection = self._connection
        if connection is None or not connection.open:
            self._loop.connect(self)
        elif self._asked == "page":
            connection.get(self._page_request, self.target.max_page_bytes, self._page, self._failed)
        else:
            connection.get(self._models_request, MODELS_BYTES, self._models, self._failed)

    async def connect(self, buffers: Buffers) -> None:
        """Open a connection and ask on it."""
        host, _, port = self.target.address.rpartition(":")
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                partial(Connection, buffers, self._closed_idle), host.strip("[]"), int(port)
            )
        except ConnectionRefusedError:
            failure = FetchFailed("refused", f"nobody listens at {self.target.address}")
        except (OSError, UnicodeError) as error:
            failure = FetchFailed("unreachable", f"{self.target.address} cannot be reached: {error}")
        else:
            self.connecting = None
            if self.stopped:
                connection.close()
                return
            self._connection = connection
            self._sent_at = self._loop.now
            self._send()
            return
        self.connecting = None
        self._failed(failure)

    def time_out(self) -> None:
        """The answer has not come in time."""
        connecting, self.connecting = self.connecting, None
        if connecting is not None:
            connecting.cancel()
            self._failed(FetchFailed("timeout", f"no connection within {self.target.timeout:g} s"))
        elif self._connection is not None:
            self._connection.fail("timeout", f"no whole answer within {self.target.timeout:g} s")

    # -- answers -------------------------------------------------------------------------------------------------

    def _page(self, page: bytes, whole: bool) -> None:  # noqa: FBT001
        try:
            extraction = self._reader.extract(page, whole=whole)
        except PageRefused as refused:
            self._report(refused.reason, refused.detail)
            return
        self._done()
        self._failures = 0
        at, now = self._sent_at, self._loop.now
        self._sink.observed(self.target.address, extraction, at, now - at, len(page))
        if self._models_request and now - self._models_at >= self.target.models_interval and not self.stopped:
            self._models_at = now
            self._ask("models", now, min(self.target.timeout, MODELS_SECONDS))

    def _models(self, body: bytes, whole: bool) -> None:  # noqa: FBT001
        at = self._sent_at
        names = model_names(body)
        if names is not None and self._server is not None:
            self._server.served_models(self.target.address, names, at)
        self._models_done()

    def _models_done(self) -> None:
        """What the server serves is known, or stays what it was; the next page says whether it lives."""
        page_waits = self._page_waits
        self._done()
        if page_waits and not self.stopped:
            self._ask("page", self._loop.now, self.target.timeout)

    def _failed(self, failure: FetchFailed) -> None:
        if self.stopped:
            return
        if failure.stale and not self._retried:
            self._retried = True
            self._connection = None
            self._send()
        elif self._asked == "models":
            self._models_done()
        else:
            if failure.reason in _GONE:
                self._models_at = float("-inf")  # whoever comes back may serve other models
            self._report(failure.reason, failure.detail)

    def _report(self, reason: str, detail: str) -> None:
        self._done()
        self._failures += 1
        now = self._loop.now
        self._sink.failed(self.target.address, reason, detail, self._sent_at, now - self._sent_at)
        if self._failures > 1 and not self.stopped:
            self._loop.at(retry_due(self.target.address, self._failures - 1, self.target.interval, now), self)

    def _done(self) -> None:
        self._asked = ""
        self._page_waits = False
        self._loop.asked(self)

    def _closed_idle(self) -> None:
        """The server closed a connection on which nothing was asked: see whether it still lives."""
        now = self._loop.now
        if self.stopped or self._asked or now - self._early_at < self.target.interval:
            return
        self._early_at = now
        self._loop.at(min(self.due_at, max(now, self._sent_at + SOONEST_SECONDS)), self)


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
