"""The agent's requests in flight at one endpoint, and their prefill backlog: counted between pages, corrected by pages.

A server prefills in the order of arrival, so the backlog is a line of tokens. Each request adds its uncached prompt
tokens at the end of the line, and the head of the line moves at the prefill rate. The tokens between head and end are
the backlog (`prefill_tokens`); over the rate, they are the seconds until a new request is scheduled. A request's first
token is due when the head has passed its tokens; from then on it only counts as in flight. This is a model, and a page
corrects it: of the requests that the server had when the page was requested, the newest `waiting` have not begun, and
all but the newest `waiting + running` are prefilled.

Where the backlog explains little of the queue on a page, something else than prefill delays the queue (a batch full of
long responses, a full KV cache). Then the wait is the queue's length over its drain rate (`agent.state.drain_rate`).
"""

from __future__ import annotations

from typing import Final

# A request that was picked less than this before a page was requested may not have reached the server (two proxies and
# a connection lie between): the page is taken not to include it.
TRANSIT_SECONDS: Final = 0.05

# Something else than prefill delays a queue whose wait exceeds the backlog by this factor; below it, the difference is
# the noise of two estimates. Short queues are noise too: the reference calls a server with five waiting saturated.
DELAYED_FACTOR: Final = 3.0
DELAYED_WAITING: Final = 5.0


class _QueuedPrefill:
    """One request's tokens in the line: they end at `end`."""

    __slots__ = ("end", "picked_at", "tokens")

    def __init__(self, picked_at: float, tokens: float, end: float) -> None:
        self.picked_at = picked_at
        self.tokens = tokens
        self.end = end


class InFlight:
    """Requests that were sent to one endpoint and have not ended. `now` never goes back between calls."""

    __slots__ = ("_busy_until", "_each_seconds", "_end", "_mean_tokens", "_queue_until", "_requests", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._requests: dict[int, _QueuedPrefill] = {}
        self._end = 0.0
        self._busy_until = float("-inf")
        self._queue_until = float("-inf")
        self._each_seconds = 0.0  # the wait that one more request adds to the queue
        self._mean_tokens = 0.0

    @property
    def busy_until(self) -> float:
        """When a request that arrives now is scheduled (monotonic seconds); minus infinity before the first request."""
        return max(self._busy_until, self._queue_until)

    def __len__(self) -> int:
        return len(self._requests)

    def prefill_tokens(self, now: float) -> float:
        """The backlog in uncached prompt tokens."""
        backlog = self._busy_until - now
        return backlog * self.rate if backlog > 0 else 0.0

    def start(self, work_id: int, tokens: float, now: float) -> None:
        """Add a request with this many uncached prompt tokens."""
        self._end += tokens
        self._requests[work_id] = _QueuedPrefill(now, tokens, self._end)
        self._busy_until = max(self._busy_until, now) + tokens / self.rate
        if self._queue_until > now:
            self._queue_until += self._each_seconds
        self._mean_tokens += (tokens - self._mean_tokens) / 16 if self._mean_tokens else tokens

    def end(self, work_id: int, now: float) -> None:
        """Remove a request. The rest of its prefill leaves the line, and the requests behind it move up."""
        gone = self._requests.pop(work_id)
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
        """Change the prefill rate; the backlog in tokens stays the same."""
        backlog = self.prefill_tokens(now)
        self.rate = rate
        self._busy_until = now + backlog / rate if backlog > 0 else self._busy_until

    def correct(self, running: float | None, waiting: float, at: float, now: float) -> None:
        """Correct the backlog by a page that was requested at `at` and reports `running` (None: unknown) and `waiting`.

        Requests from elsewhere (another gateway) are taken to have the mean length of the agent's own.
        """
        if not self._requests and not waiting and self._busy_until <= now:
            return
        included = at - TRANSIT_SECONDS
        newest = inside = 0.0
        upper = 0.0
        seen = unsure = 0
        bound = None if running is None else running + waiting
        for request in reversed(self._requests.values()):
            if request.picked_at > included:
                newest += request.tokens
                unsure += 1
                continue
            if seen < waiting:
                inside += request.tokens
            elif bound is None or seen >= bound:
                break
            if bound is not None and seen < bound:
                upper += request.tokens
            seen += 1
        lower = inside
        if waiting > seen + unsure:
            foreign = (waiting - seen - unsure) * self._mean_tokens
            lower += foreign
            upper += foreign
        passed = (now - at) * self.rate
        backlog = self.prefill_tokens(now)
        low = newest + max(0.0, lower - passed)
        if backlog < low:
            backlog = low
        elif bound is not None and backlog > newest + upper:
            backlog = newest + upper
        else:
            return
        self._busy_until = now + backlog / self.rate

    def delay_queue(self, wait_seconds: float | None, waiting: float, at: float, now: float) -> None:
        """Apply the wait of a queue that prefill does not explain: `wait_seconds` behind `waiting`, as of `at`."""
        backlog = max(0.0, self._busy_until - now)
        if wait_seconds is not None and waiting >= DELAYED_WAITING and wait_seconds > DELAYED_FACTOR * backlog:
            self._queue_until = at + wait_seconds
            self._each_seconds = wait_seconds / waiting
        else:
            self._queue_until = float("-inf")
            self._each_seconds = 0.0
