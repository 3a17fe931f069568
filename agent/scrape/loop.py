"""The one loop of the scraper: due -> GET -> extract -> sink, for every endpoint and exporter on its own schedule.

One heap of due times and one timer serve all endpoints; an endpoint is never asked for two pages at a time. A
reading's time is the moment at which its page was asked for. Beside the page, and on the same connection, the engine's
health path is asked every second, and its models path now and then (`agent.scrape.scraper`). An exporter, which is no
model server, has a page only, with a reader and a sink of its own.

A connection stays open between scrapes. When the server closes it while nothing is asked, that is news: the endpoint
is asked at once, so a killed server is down within milliseconds. This happens once in an interval at most, as there are
servers that close every connection soon, and not within `SOONEST_SECONDS` of the last scrape.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final

from agent.clock import Clock
from agent.engine_specs import AUTO
from agent.engines.auto import Recogniser
from agent.engines.mapping import Extraction, Extractor, Memory
from agent.scrape.budget import Gate, Shared
from agent.scrape.fetch import Buffers
from agent.scrape.line import Line
from agent.scrape.question import Timed
from agent.scrape.schedule import Firsts
from agent.scrape.scraper import Scraper
from agent.scrape.target import PageSink, Reader, Sink, Target, Told

__all__ = ["PageSink", "Reader", "ScrapeLoop", "Sink", "Target"]

# After a time in which nothing could be begun, the whole fleet may be due: answers are read between so many asks.
BEGUN_AT_ONCE: Final = 100
# How often time-outs are looked for, while anything is asked: a time-out comes late by at most this.
WATCH_SECONDS: Final = 0.05


class ScrapeLoop:
    """Scrapes the targets of every pool until `stop`. All methods are called on the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.buffers: Final = Buffers()
        self._scrapers: dict[tuple[str, str], Scraper] = {}
        self._due: list[tuple[float, int, Timed]] = []
        self._memories: dict[str, Memory] = {}
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._asking: set[Line] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._watch_at = 0.0
        self.firsts = Firsts()
        self.gate: Gate | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def set_targets(self, pool: str, targets: Sequence[Target], sink: Sink) -> None:
        """The model servers of a pool from now on. Those that stay keep their connection, and their phase if the
        interval stays."""
        self._set(pool, targets, sink, sink, partial(self._reader, pool))

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
            if known is not None and known.target.same_server(target):
                known.change(target, sink, server)
                continue
            if known is not None:
                known.stop()
            scraper = self._scrapers[group, address] = Scraper(self, target, sink, server, reader(target))
            scraper.begin()

    def set_gate(self, gate: Gate | None) -> None:
        """What lets scrapes of model servers through from now on; None: every one at its configured interval."""
        self.gate = gate
        if gate is None:
            for scraper in self._scrapers.values():
                scraper.pace(scraper.target.interval)

    def pace(self, pool: str, addresses: Iterable[str], busy: Collection[str], intervals: Shared) -> None:
        """Ask the `busy` ones of a pool's endpoints and the others at these intervals from now on."""
        for address in addresses:
            scraper = self._scrapers.get((pool, address))
            if scraper is not None:
                scraper.pace(intervals.busy if address in busy else intervals.idle)

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

    def at(self, due: float, timed: Timed) -> None:
        """Call `timed.due` at this time, in place of any other time told before."""
        timed.due_at = due
        self._sequence += 1
        heapq.heappush(self._due, (due, self._sequence, timed))
        if due < self._timer_at:
            self._arm(due)

    def _reader(self, pool: str, target: Target) -> Reader[Extraction]:
        if target.engine != AUTO or target.table is not None:
            return self.extractor(target)

        def made(name: str) -> Extractor:
            return self.extractor(target._replace(engine=name))

        def told(name: str) -> None:
            self._scrapers[pool, target.address].recognised(name)

        return Recogniser(made, told)

    def extractor(self, target: Target) -> Extractor:
        """A reader of one endpoint's pages; those of one engine share what they learn. ValueError without an engine."""
        table = target.engine_table()
        if table is None:
            raise ValueError(f"{target.address} is set as a model server and has no engine")
        memory = self._memories.get(table.name)
        if memory is None or memory.engine != table:
            memory = self._memories[table.name] = Memory(table)
        return Extractor(table, memory, target.histograms)

    def run(self, line: Line) -> asyncio.Task[None]:
        """A task that opens the line's connection."""
        task = asyncio.get_running_loop().create_task(line.connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def asking(self, line: Line) -> None:
        """It waits for an answer: look after its time-out."""
        self._asking.add(line)
        if self._watch is None:
            self._watch_from(self._clock.now())

    def asked(self, line: Line) -> None:
        """It waits no more."""
        self._asking.discard(line)

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
            at, _, timed = heapq.heappop(due)
            if timed.due_at == at and not timed.stopped:
                timed.due(now)
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
            for line in self._asking:
                line.give_up_at += late
        for line in [line for line in self._asking if line.give_up_at <= now]:
            line.time_out()
        if self._asking and not self._stopped:
            self._watch_from(now)
