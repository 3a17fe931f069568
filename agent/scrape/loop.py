"""The scrape loop: due -> GET -> extract -> sink, for every endpoint and exporter on its own schedule.

One heap of due times and one timer serve all endpoints. An endpoint never has two active requests for its page. The
time of a reading is when its page was requested. Probes of the engine's health and models paths are sent besides the
page, on the same connection (`agent.scrape.scraper`). An exporter is not a model server: it only has a page, with its
own reader and sink.

Connections persist between scrapes. When the server closes one while it is idle, the endpoint is scraped at once, so a
killed server is down within milliseconds. This happens at most once per interval, because some servers close every
connection soon, and not within `SOONEST_SECONDS` of the last scrape.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final

from agent.clock import Clock
from agent.engine_specs import AUTO
from agent.engines.auto import EngineRecogniser
from agent.engines.mapping import Extraction, Extractor, LayoutCache
from agent.scrape.budget import Intervals, RateLimiter
from agent.scrape.http_client import HttpClient
from agent.scrape.http_connection import BufferPool
from agent.scrape.probe import Scheduled
from agent.scrape.schedule import MAX_FIRST_SCRAPES_PER_SECOND, StartupLimiter
from agent.scrape.scraper import Scraper
from agent.scrape.target import PageReader, PageSink, ResultT_contra, Sink, Target

# After a pause of the process the whole fleet may be due: responses are read after this number of starts.
MAX_STARTS_AT_ONCE: Final = 100
# A scrape or a probe that could not start because of a defect is tried again after this time.
RETRY_SECONDS: Final = 1.0
# How often deadlines are checked while a request is active: a time-out is late by at most this.
DEADLINE_CHECK_SECONDS: Final = 0.05


def log_defect(error: Exception) -> None:
    """Hand a defect to the event loop's exception handler, which logs it."""
    asyncio.get_running_loop().call_exception_handler({"message": "a scrape could not start", "exception": error})


class ScrapeLoop:
    """Scrapes the targets of every pool until `stop`. All methods are called on the event loop.

    `defect` receives what a scrape or a probe raised when it was due; the others go on.
    """

    def __init__(self, clock: Clock, defect: Callable[[Exception], None] = log_defect) -> None:
        self._clock = clock
        self._defect = defect
        self.buffers: Final = BufferPool()
        self._scrapers: dict[tuple[str, str], Scraper] = {}
        self._due: list[tuple[float, int, Scheduled]] = []
        self._layout_caches: dict[str, LayoutCache] = {}
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._active: set[HttpClient] = set()
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._deadline_check_at = 0.0
        self.startup_limiter = StartupLimiter()
        self.rate_limiter: RateLimiter | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def set_targets(self, pool: str, targets: Sequence[Target], sink: Sink) -> None:
        """Replace the model servers of a pool. Those that stay keep their connection, and their phase if the interval
        stays."""
        self._set(pool, targets, sink, sink, partial(self._reader, pool))

    def keep_targets(self, pool: str, addresses: Collection[str]) -> None:
        """Remove the model servers of a pool at other addresses than these."""
        self._remove(pool, addresses)

    def change_targets(self, pool: str, targets: Iterable[Target], sink: Sink) -> None:
        """Add these model servers to a pool or change them; the others go on as they are."""
        reader = partial(self._reader, pool)
        for target in targets:
            self._place(pool, target, sink, sink, reader)

    def set_exporters(
        self,
        group: str,
        targets: Sequence[Target],
        sink: PageSink[ResultT_contra],
        reader: Callable[[Target], PageReader[ResultT_contra]],
    ) -> None:
        """Replace the exporters of a group, whose name is no pool's; `reader` makes the reader of one's pages."""
        self._set(group, targets, sink, None, reader)

    def _set(
        self,
        group: str,
        targets: Sequence[Target],
        sink: PageSink[Any],
        server: Sink | None,
        reader: Callable[[Target], PageReader[Any]],
    ) -> None:
        wanted = {target.address: target for target in targets}
        self._remove(group, wanted)
        for target in wanted.values():
            self._place(group, target, sink, server, reader)

    def _remove(self, group: str, addresses: Collection[str]) -> None:
        """Stop the scrapes of a group at other addresses than these."""
        for key in [key for key in self._scrapers if key[0] == group and key[1] not in addresses]:
            self._scrapers.pop(key).stop()

    def _place(
        self,
        group: str,
        target: Target,
        sink: PageSink[Any],
        server: Sink | None,
        reader: Callable[[Target], PageReader[Any]],
    ) -> None:
        known = self._scrapers.get((group, target.address))
        if known is not None and known.target.same_server(target):
            known.change(target, sink, server)
            return
        if known is not None:
            known.stop()
        scraper = self._scrapers[group, target.address] = Scraper(self, target, sink, server, reader(target))
        scraper.begin()

    def set_rate_limiter(self, limiter: RateLimiter | None) -> None:
        """Limit the rate of all scrapes of model servers; None: each has its configured interval."""
        self.rate_limiter = limiter
        if limiter is None:
            for scraper in self._scrapers.values():
                scraper.set_interval(scraper.target.interval)

    def set_intervals(self, pool: str, addresses: Iterable[str], busy: Collection[str], intervals: Intervals) -> None:
        """Set the intervals of a pool's endpoints: of the `busy` ones, and of the others, which are idle."""
        for address in addresses:
            scraper = self._scrapers.get((pool, address))
            if scraper is not None:
                scraper.set_interval(intervals.busy if address in busy else intervals.idle)

    def refresh_models(self, pool: str, at: float) -> None:
        """Fetch the lists of models of a pool's servers again, from `at` on and a few at a time."""
        scrapers = [scraper for (group, _), scraper in self._scrapers.items() if group == pool]
        for number, scraper in enumerate(scrapers):
            scraper.refresh_models(at + number / MAX_FIRST_SCRAPES_PER_SECOND)

    async def stop(self) -> None:
        """Stop scraping and close every connection."""
        self._stopped = True
        for scraper in self._scrapers.values():
            scraper.stop()
        self._scrapers.clear()
        for timer in (self._timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._deadline_timer = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- called by scrapers and clients --------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock.now()

    def schedule(self, due: float, scheduled: Scheduled) -> None:
        """Call `scheduled.on_due` at this time, instead of any time scheduled before."""
        scheduled.due_at = due
        self._sequence += 1
        heapq.heappush(self._due, (due, self._sequence, scheduled))
        if due < self._timer_at:
            self._set_timer(due)

    def _reader(self, pool: str, target: Target) -> PageReader[Extraction]:
        if target.engine != AUTO or target.table is not None:
            return self.extractor(target)

        def make_extractor(name: str) -> Extractor:
            return self.extractor(target._replace(engine=name))

        def on_recognised(name: str) -> None:
            self._scrapers[pool, target.address].recognised(name)

        return EngineRecogniser(make_extractor, on_recognised)

    def extractor(self, target: Target) -> Extractor:
        """A reader of one endpoint's pages; those of one engine share a cache. ValueError without an engine."""
        table = target.engine_table()
        if table is None:
            raise ValueError(f"{target.address} is set as a model server and has no engine")
        cache = self._layout_caches.get(table.name)
        if cache is None or cache.engine != table:
            cache = self._layout_caches[table.name] = LayoutCache(table)
        return Extractor(table, cache, target.histograms)

    def start_connect(self, client: HttpClient) -> asyncio.Task[None]:
        """Start a task that opens the client's connection."""
        task = asyncio.get_running_loop().create_task(client.connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def request_started(self, client: HttpClient) -> None:
        """The client has an active GET: check its deadline from now on."""
        self._active.add(client)
        if self._deadline_timer is None:
            self._check_deadlines_after(self._clock.now())

    def request_ended(self, client: HttpClient) -> None:
        """The client has no active GET any more."""
        self._active.discard(client)

    # -- within --------------------------------------------------------------------------------------------------

    def _set_timer(self, due: float) -> None:
        if self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self._clock.now()), self._run)

    def _run(self) -> None:
        self._timer = None
        self._timer_at = float("-inf")  # no timer for what is scheduled within this call
        now = self._clock.now()
        due = self._due
        started = 0
        while due and due[0][0] <= now + due[0][2].early and started < MAX_STARTS_AT_ONCE:
            started += 1
            at, _, scheduled = heapq.heappop(due)
            if scheduled.due_at == at and not scheduled.stopped:
                try:
                    scheduled.on_due(now)
                except Exception as error:  # noqa: BLE001  else the timer is never set again and no server is scraped
                    if scheduled.due_at == at:
                        self.schedule(now + RETRY_SECONDS, scheduled)
                    self._defect(error)
        self._timer_at = float("inf")
        if due:
            self._set_timer(due[0][0])

    def _check_deadlines_after(self, now: float) -> None:
        self._deadline_check_at = now + DEADLINE_CHECK_SECONDS
        self._deadline_timer = asyncio.get_running_loop().call_later(DEADLINE_CHECK_SECONDS, self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._deadline_timer = None
        now = self._clock.now()
        late = now - self._deadline_check_at
        if late > DEADLINE_CHECK_SECONDS:
            # This process was delayed, by many responses or because it was stopped: responses may be unread, so no
            # request times out for that.
            for client in self._active:
                client.deadline += late
        for client in [client for client in self._active if client.deadline <= now]:
            client.time_out()
        if self._active and not self._stopped:
            self._check_deadlines_after(now)
