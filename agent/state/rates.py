"""Rates from counters: what a server did in the last half minute, though its page only tells what it ever did.

A counter says little until it is held against an earlier page. Kept of each endpoint are the counters of a page every
few seconds, back to `WINDOW_SECONDS`; a rate is the difference between the last page and the oldest that is kept, over
the time between the two requests. A counter that went back is another server's: what was kept is dropped, and there is
no rate until enough pages of the new one are here. Nothing is computed before somebody reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.signals import FINISHED, GENERATION_TOKENS, PREEMPTIONS, PREFIX_HITS, PREFIX_QUERIES, PROMPT_TOKENS, Value

WINDOW_SECONDS: Final = 30.0
# Pages closer than this add nothing to a window but memory.
SPACING_SECONDS: Final = 3.0
# The time that a rate looks back on at the least: over less, one request more or less is all that it shows.
LEAST_SECONDS: Final = 5.0


class Rate(NamedTuple):
    """What a rate is made of: the increase of `part` over that of `whole`, or over seconds where that is None."""

    name: str
    unit: str
    part: str
    whole: str | None
    help: str


_ROWS: Final = (
    Rate(
        "prefix_hit_ratio",
        "ratio",
        PREFIX_HITS,
        PREFIX_QUERIES,
        "part of the prompt tokens that the cache held already",
    ),
    Rate("prompt_tokens_per_second", "tokens per second", PROMPT_TOKENS, None, "prompt tokens, cached ones included"),
    Rate("generation_tokens_per_second", "tokens per second", GENERATION_TOKENS, None, "tokens generated"),
    Rate("finished_requests_per_second", "requests per second", FINISHED, None, "requests ended, whatever the reason"),
    Rate("preemptions_per_second", "preemptions per second", PREEMPTIONS, None, "requests thrown out of the batch"),
)
RATES: Final[Mapping[str, Rate]] = {row.name: row for row in _ROWS}

COUNTERS: Final = tuple(dict.fromkeys(name for row in _ROWS for name in (row.part, row.whole) if name is not None))


class Counters(NamedTuple):
    """The counters of one page, in the order of `COUNTERS`, None where it had none; `at`: when it was asked for."""

    at: float
    values: tuple[float | None, ...]

    def value(self, signal: str) -> float | None:
        """The counter of this name."""
        return self.values[COUNTERS.index(signal)]


class Window:
    """The pages of one endpoint that its rates look back on, the oldest first."""

    __slots__ = ("_next_at", "_pages")

    def __init__(self) -> None:
        self._pages: deque[Counters] = deque()
        self._next_at = float("-inf")

    def forget(self) -> None:
        """Forget all: another server answers now."""
        self._pages.clear()
        self._next_at = float("-inf")

    def observe(self, values: Mapping[str, Value], at: float) -> None:
        """Take in a page's values; `at` never goes back."""
        if at < self._next_at:
            return
        told = map(values.get, COUNTERS)
        page = Counters(at, tuple(value if isinstance(value, float) else None for value in told))
        pages = self._pages
        if pages and _went_back(pages[-1], page):
            pages.clear()
        pages.append(page)
        while len(pages) > 1 and pages[1].at <= at - WINDOW_SECONDS:
            pages.popleft()
        self._next_at = at + SPACING_SECONDS

    @property
    def oldest(self) -> Counters | None:
        """The page that rates look back on, `WINDOW_SECONDS` ago where there is one so old."""
        return self._pages[0] if self._pages else None


def _went_back(before: Counters, after: Counters) -> bool:
    return any(
        new is not None and old is not None and new < old for old, new in zip(before.values, after.values, strict=True)
    )
