"""The picker's own work at one endpoint, between scrapes and corrected by them.

A server prefills in the order of arrival, so the work given to it is a line of tokens: each request holds the stretch
from where the line ended when it came to that end plus its uncached prompt tokens. The head of the line moves at the
prefill rate. What lies between head and end is the work ahead: `prefill_tokens`, and over the rate the seconds until
a request that comes now has its turn. A request's first token is due when the head passes its stretch; from then on it
only counts as a request in flight. All of it is a model, and a page corrects it: of the requests that the server had
when it was asked, the newest `waiting` have certainly not begun, and all but the newest `waiting + running` are done.

Where the line explains little of the queue that a page shows, something else than prefill holds it up (a batch full of
long answers, a full cache). Then the wait is that of the queue at the pace at which it has moved (`agent.state.pace`).
"""

from __future__ import annotations

from typing import Final

# A request picked this short a time before a page was asked for may not have reached the server yet (two proxies and
# a connection between): it is taken as unseen by that page.
TRANSIT_SECONDS: Final = 0.05


# A queue whose wait is so many times what the line explains is held up by something else; less is the noise of two
# estimates. So is a short queue: five waiting requests are what the reference calls saturated.
HELD_UP_FACTOR: Final = 3.0
HELD_UP_WAITING: Final = 5.0


class _Stretch:
    __slots__ = ("end", "picked_at", "tokens")

    def __init__(self, picked_at: float, tokens: float, end: float) -> None:
        self.picked_at = picked_at
        self.tokens = tokens
        self.end = end


class InFlight:
    """Requests given to one endpoint and not ended. One writer; every method takes `now`, which never goes back."""

    __slots__ = ("_busy_until", "_each_seconds", "_end", "_mean_tokens", "_queue_until", "_requests", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._requests: dict[int, _Stretch] = {}
        self._end = 0.0
        self._busy_until = float("-inf")
        self._queue_until = float("-inf")
        self._each_seconds = 0.0  # what one more request adds to the queue's wait
        self._mean_tokens = 0.0

    @property
    def busy_until(self) -> float:
        """When a request that comes now has its turn, in monotonic seconds; minus infinity before the first request."""
        return max(self._busy_until, self._queue_until)

    def __len__(self) -> int:
        return len(self._requests)

    def prefill_tokens(self, now: float) -> float:
        """Uncached prompt tokens whose prefill is still ahead."""
        ahead = self._busy_until - now
        return ahead * self.rate if ahead > 0 else 0.0

    def start(self, ticket: int, tokens: float, now: float) -> None:
        """A request with so many uncached prompt tokens was given to this endpoint."""
        self._end += tokens
        self._requests[ticket] = _Stretch(now, tokens, self._end)
        self._busy_until = max(self._busy_until, now) + tokens / self.rate
        if self._queue_until > now:
            self._queue_until += self._each_seconds
        self._mean_tokens += (tokens - self._mean_tokens) / 16 if self._mean_tokens else tokens

    def end(self, ticket: int, now: float) -> None:
        """A request is over. What was left of its prefill leaves the line, and those behind it move up."""
        gone = self._requests.pop(ticket)
        head = self._end - self.prefill_tokens(now)
        left = min(gone.tokens, gone.end - head)
        if left <= 0:
            return
        for request in reversed(self._requests.values()):
            if request.end < gone.end:
                break
            request.end -= left
        self._end -= left
        self._busy_until -= left / self.rate

    def set_rate(self, rate: float, now: float) -> None:
        """The head moves at another rate from now on; the tokens ahead stay what they are."""
        ahead = self.prefill_tokens(now)
        self.rate = rate
        self._busy_until = now + ahead / rate if ahead > 0 else self._busy_until

    def correct(self, running: float | None, waiting: float, at: float, now: float) -> None:
        """Move the head to where a page allows it: the page was asked for at `at` and said `running` and `waiting`.

        Requests that the server has beside ours (another gateway's) are taken to be as long as ours are on average.
        """
        if not self._requests and not waiting and self._busy_until <= now:
            return
        unseen = at - TRANSIT_SECONDS
        newest = inside = 0.0
        most = 0.0
        seen = unsure = 0
        bound = None if running is None else running + waiting
        for request in reversed(self._requests.values()):
            if request.picked_at > unseen:
                newest += request.tokens
                unsure += 1
                continue
            if seen < waiting:
                inside += request.tokens
            elif bound is None or seen >= bound:
                break
            if bound is not None and seen < bound:
                most += request.tokens
            seen += 1
        least = inside
        if waiting > seen + unsure:
            foreign = (waiting - seen - unsure) * self._mean_tokens
            least += foreign
            most += foreign
        passed = (now - at) * self.rate
        ahead = self.prefill_tokens(now)
        low = newest + max(0.0, least - passed)
        if ahead < low:
            ahead = low
        elif bound is not None and ahead > newest + most:
            ahead = newest + most
        else:
            return
        self._busy_until = now + ahead / self.rate

    def hold(self, wait_seconds: float | None, waiting: float, at: float, now: float) -> None:
        """Take the wait of a queue that prefill does not explain: `wait_seconds` behind `waiting`, as of `at`."""
        line = max(0.0, self._busy_until - now)
        if wait_seconds is not None and waiting >= HELD_UP_WAITING and wait_seconds > HELD_UP_FACTOR * line:
            self._queue_until = at + wait_seconds
            self._each_seconds = wait_seconds / waiting
        else:
            self._queue_until = float("-inf")
            self._each_seconds = 0.0
