"""How fast an endpoint prefills, learnt from what its server reports.

Two figures can be had from a page, and both are too low, each for a reason of its own:
* uncached prompt tokens over the prefill time of the requests: requests that are prefilled together count the same
  second several times;
* uncached prompt tokens over wall time: an idle second counts as a slow one.
So the larger of the two is the better bound, and it is what we use: the first as a ratio of decayed sums, the second
as the best of the last windows. Until `ENOUGH_PREFILLS` were seen, and where a server reports neither, nothing is
learnt. The result is kept within bounds that the configuration gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.signals import PREFILL_SECONDS, PREFILLS, PREFIX_HITS, PROMPT_TOKENS, Value

# Tokens/s of uncached prefill: the published peak of Qwen3-32B on an H100 pair as the field's recipe has it
# (llm-d, 2026-08-17). A guess for whatever runs here, replaced as soon as the server has shown its own.
DEFAULT_RATE: Final = 15_928.0
ENOUGH_PREFILLS: Final = 20
WINDOW_SECONDS: Final = 5.0
WINDOWS: Final = 24  # two minutes of the best window
HALF_LIFE_PREFILLS: Final = 200.0  # how many prefills ago a prefill counts half


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What the configuration says of the prefill rate, in tokens of uncached prompt per second.

    `fixed` switches learning off; otherwise a learnt rate is kept within `low` and `high`, and `default` stands until
    then.
    """

    fixed: float | None = None
    default: float = DEFAULT_RATE
    low: float = 100.0
    high: float = 1_000_000.0

    def bounded(self, rate: float) -> float:
        """`rate`, moved into the bounds."""
        return min(self.high, max(self.low, rate))


class PrefillRate:
    """The learner of one endpoint; feed it each page's counters in order of time, ask `rate`."""

    __slots__ = ("_at", "_last", "_prefills", "_seconds", "_tokens", "_window_at", "_window_tokens", "_windows")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all: another server answers now."""
        self._last: tuple[float, float, float] | None = None
        self._at = 0.0
        self._tokens = self._seconds = self._prefills = 0.0
        self._window_at = 0.0
        self._window_tokens = 0.0
        self._windows: deque[float] = deque(maxlen=WINDOWS)

    def observe(self, values: Mapping[str, Value], at: float) -> None:
        """Take in one page's counters, asked for at `at`. A page that lacks one of them teaches nothing."""
        prompt, seconds, prefills = values.get(PROMPT_TOKENS), values.get(PREFILL_SECONDS), values.get(PREFILLS)
        if not (isinstance(prompt, float) and isinstance(seconds, float) and isinstance(prefills, float)):
            return
        hits = values.get(PREFIX_HITS)
        uncached = prompt - hits if isinstance(hits, float) else prompt
        last, self._last = self._last, (uncached, seconds, prefills)
        if last is None:
            self._at = self._window_at = at
            return
        tokens, spent, count = uncached - last[0], seconds - last[1], prefills - last[2]
        if spent < 0 or count < 0:  # a counter went back: another server, whose past we do not know
            self.forget()
            self._last, self._at, self._window_at = (uncached, seconds, prefills), at, at
            return
        # `tokens` may be negative for a page: hits are counted when a request is scheduled, prompt tokens when it is
        # prefilled.
        fade = 0.5 ** (count / HALF_LIFE_PREFILLS)
        self._tokens = self._tokens * fade + tokens
        self._seconds = self._seconds * fade + spent
        self._prefills += count
        self._window_tokens += tokens
        if at - self._window_at >= WINDOW_SECONDS:
            self._windows.append(self._window_tokens / (at - self._window_at))
            self._window_at, self._window_tokens = at, 0.0
        self._at = at

    @property
    def rate(self) -> float | None:
        """Tokens/s of uncached prefill that this server has shown, or None while too little was seen."""
        if self._prefills < ENOUGH_PREFILLS:
            return None
        by_request = self._tokens / self._seconds if self._seconds > 0 else 0.0
        by_window = max(self._windows, default=0.0)
        best = max(by_request, by_window)
        return best if best > 0 else None
