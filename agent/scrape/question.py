"""What is asked of a server beside its page, each question at its own interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from agent.scrape.budget import Gate
from agent.scrape.fetch import FetchFailed
from agent.scrape.line import Desk, Line
from agent.scrape.schedule import Firsts

# Scrapes that are due soon are begun together, early by up to this time and this part of their interval: a thousand a
# second need 50 wake-ups and not a thousand, and what one page brought into the CPU's caches serves the next.
TOGETHER_SECONDS: Final = 0.02
TOGETHER_OF_INTERVAL: Final = 0.02
# How often a question is asked at most because another server answers.
ANEW_SECONDS: Final = 1.0


def early(interval: float) -> float:
    """By how many seconds something that comes every `interval` may be begun before its time."""
    return min(TOGETHER_SECONDS, TOGETHER_OF_INTERVAL * interval)


class Timed(Protocol):
    """Something that the loop calls when its time has come; `early`: by how many seconds it may be called before."""

    due_at: float
    early: float
    stopped: bool

    def due(self, now: float) -> None:
        """The time has come."""
        ...


class Loop(Desk, Protocol):
    """What a scraper needs of the loop that it belongs to."""

    firsts: Firsts
    gate: Gate | None

    def at(self, due: float, timed: Timed) -> None:
        """Call `timed.due` at this time, in place of any other time told before."""
        ...


class Asker(Protocol):
    """The scraper that a question belongs to."""

    interval: float

    def ask_beside(self, question: Question, now: float) -> None:
        """The question's time has come, and there was no page next to it."""
        ...

    def asked_beside(self, question: Question, failure: FetchFailed | None) -> None:
        """It was answered, or it failed."""
        ...


class Question:
    """What is asked of a server beside its page, every `interval` seconds, over the page's line where that is free."""

    __slots__ = (
        "_anew_at", "_answered", "_failed", "_line", "_next_at", "_scraper", "apart", "busy", "due_at", "early",
        "interval", "limit", "own", "request", "sent_at", "stopped", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        scraper: Asker,
        limit: int,
        answered: Callable[[bytes], None],
        failed: Callable[[FetchFailed], None],
    ) -> None:
        self._scraper = scraper
        self.limit = limit
        self._answered = answered
        self._failed = failed
        self.request = b""
        self.interval = 0.0
        self.timeout = 0.0
        self.apart = False  # the server does not answer it behind a page
        self._line: Line | None = None  # what the present question is asked on
        self.own: Line | None = None  # what it is always asked on, where that is not the page's port
        self._next_at = float("-inf")
        self._anew_at = float("-inf")
        self.busy = False
        self.sent_at = float("-inf")
        self.due_at = float("inf")
        self.early = 0.0
        self.stopped = False

    def set(self, asked: bytes, interval: float, timeout: float) -> None:
        """What to ask (nothing: never), how often, and how long to wait for it."""
        self.request, self.interval, self.timeout = asked, interval, timeout

    @property
    def asks(self) -> bool:
        """Whether there is anything to ask."""
        return bool(self.request)

    def wanted(self, now: float) -> bool:
        """Whether now is the time, or nearer to it than the next page will be."""
        ahead = min(self.interval, self._scraper.interval) / 2
        return bool(self.request) and not self.busy and now + ahead >= self._next_at

    def ask(self, now: float, line: Line) -> None:
        """Ask it on this line."""
        self.begin(now, line)
        line.ask(self.request, self.limit, self.timeout, self.came, self.went_wrong)

    def begin(self, now: float, line: Line) -> None:
        """It is asked on this line; the time after this one is on a grid that this question begins or keeps."""
        late = now - self._next_at
        self._next_at = now + self.interval if late > self.interval else self._next_at + self.interval
        self._line = line
        self.busy = True
        self.sent_at = now
        self.due_at = float("inf")  # of an earlier time nobody need be reminded

    def remind(self, loop: Loop, now: float) -> None:
        """Be called where no page comes next to the time."""
        slack = self.interval / 2 if self._scraper.interval <= self.interval or self._next_at <= now else 0.0
        self.early = early(self.interval)
        loop.at(max(self._next_at, now) + slack, self)

    def due(self, now: float) -> None:
        """No page has come next to the time."""
        self._scraper.ask_beside(self, now)

    def again(self) -> None:
        """Ask with the next page, whenever the last time was."""
        self._next_at = float("-inf")

    def anew(self, now: float) -> None:
        """Ask now, as there is somebody else to be asked; where that happens again and again, as at an address at which
        two servers answer in turn, every `ANEW_SECONDS`."""
        if now - self._anew_at >= ANEW_SECONDS:
            self._anew_at = self._next_at = now
        else:
            self._next_at = self._anew_at + ANEW_SECONDS

    def stop(self) -> None:
        """Ask nothing more."""
        self.stopped = True
        for line in (self._line, self.own):
            if line is not None:
                line.close()

    def came(self, body: bytes, whole: bool) -> None:  # noqa: FBT001
        """It was answered."""
        self._over()
        self._answered(body)
        self._scraper.asked_beside(self, None)

    def went_wrong(self, failure: FetchFailed) -> None:
        """It failed."""
        self._over()
        self._failed(failure)
        self._scraper.asked_beside(self, failure)

    def unasked(self) -> None:
        """It will not be answered, and that says nothing: its time is still now."""
        self.busy = False
        self._line = None
        self._next_at = self.sent_at

    def _over(self) -> None:
        line, self._line = self._line, None
        self.busy = False
        if line is not None:
            self.sent_at = line.sent_at
