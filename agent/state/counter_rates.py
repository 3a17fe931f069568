"""Rates over counters: what a server did in the last half minute.

For each endpoint the counters of one page every few seconds are kept, back to `WINDOW_SECONDS`. A rate is the
difference between the last page and the oldest one that is kept, over the time between their requests. When a counter
goes back, another server responds: the window is cleared, and there is no rate until enough pages of the new server
were read. A rate is computed only when it is read (`agent.scaling.rates`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.signals import FINISHED, GENERATION_TOKENS, PREEMPTIONS, PREFIX_HITS, PREFIX_QUERIES, PROMPT_TOKENS, Value

WINDOW_SECONDS: Final = 30.0
# Pages closer together than this only add memory.
SPACING_SECONDS: Final = 3.0
# The shortest time that a rate may cover: over less, a single request dominates it.
MIN_SECONDS: Final = 5.0


class Rate(NamedTuple):
    """The definition of a rate: the increase of `part` over that of `whole`, or over seconds where `whole` is None."""

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
        "share of the prompt tokens that were found in the prefix cache",
    ),
    Rate("prompt_tokens_per_second", "tokens per second", PROMPT_TOKENS, None, "prompt tokens, cached ones included"),
    Rate("generation_tokens_per_second", "tokens per second", GENERATION_TOKENS, None, "tokens generated"),
    Rate("finished_requests_per_second", "requests per second", FINISHED, None, "requests ended, for any reason"),
    Rate("preemptions_per_second", "preemptions per second", PREEMPTIONS, None, "requests preempted (KV cache full)"),
)
RATES: Final[Mapping[str, Rate]] = {row.name: row for row in _ROWS}

COUNTERS: Final = tuple(dict.fromkeys(name for row in _ROWS for name in (row.part, row.whole) if name is not None))


class Counters(NamedTuple):
    """The counters of one page, in the order of `COUNTERS`, None where it had none; requested at `at`."""

    at: float
    values: tuple[float | None, ...]

    def value(self, signal: str) -> float | None:
        """The counter of this name."""
        return self.values[COUNTERS.index(signal)]


class Window:
    """The pages of one endpoint from which its rates are computed, the oldest first."""

    __slots__ = ("_next_at", "_pages")

    def __init__(self) -> None:
        self._pages: deque[Counters] = deque()
        self._next_at = float("-inf")

    def reset(self) -> None:
        """Start over: another server responds now."""
        self._pages.clear()
        self._next_at = float("-inf")

    def observe(self, values: Mapping[str, Value], at: float) -> None:
        """Record a page's values; `at` never goes back."""
        if at < self._next_at:
            return
        counters = map(values.get, COUNTERS)
        page = Counters(at, tuple(value if isinstance(value, float) else None for value in counters))
        pages = self._pages
        if pages and _went_back(pages[-1], page):
            pages.clear()
        pages.append(page)
        while len(pages) > 1 and pages[1].at <= at - WINDOW_SECONDS:
            pages.popleft()
        self._next_at = at + SPACING_SECONDS

    @property
    def oldest(self) -> Counters | None:
        """The page against which rates are computed: `WINDOW_SECONDS` old, or the oldest one of a younger window."""
        return self._pages[0] if self._pages else None


def _went_back(before: Counters, after: Counters) -> bool:
    return any(
        new is not None and old is not None and new < old for old, new in zip(before.values, after.values, strict=True)
    )
