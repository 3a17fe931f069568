"""The requests in flight at one endpoint, and their prefill backlog: counted between pages, corrected by pages.

The requests are the agent's own, those that its peers report, and those of others: another gateway, a replica that is
no peer, or the agent itself before a restart. The agent knows its own and those of its peers, and a page has the sum.
So the requests of others are those of the last page that are not known, and the load is the larger of the known
requests and the last page's plus what was sent since; a known request that has ended since is not load any more. A
request of a peer has a negative id.

A server prefills in the order of arrival, so the backlog is a line of tokens. Each request adds its uncached prompt
tokens at the end of the line, and the head of the line moves at the prefill rate. The tokens between head and end are
the backlog (`prefill_tokens`); over the rate, they are the seconds until a new request is scheduled. A request's first
token is due when the head has passed its tokens; from then on it only counts as in flight. This is a model, and a page
corrects it: of the requests that the server had when the page was requested, the newest `waiting` have not begun, and
all but the newest `waiting + running` are prefilled. A page that counts first tokens shows more: so many of the
requests have been prefilled since the page before, the oldest first. While others send requests to the server, this is
unknown, because the count has theirs too.

Where prefill explains little of a queue, something else delays it: a batch full of long responses, a full KV cache.
Then each request that the batch has no room for (`agent.state.batch_size`) adds to the wait what one more in the queue
takes to drain (`agent.state.drain_rate`). That wait does not shrink between pages on its own: requests of others leave
and arrive unseen, and only a page shows their number.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from agent.state.batch_size import UNKNOWN

# A request that was picked less than this before a page was requested may not have reached the server (two proxies and
# a connection lie between): the page is taken not to include it.
TRANSIT_SECONDS: Final = 0.05

# Uncached prompt tokens of a request from elsewhere, until a page or a request of the agent has shown a mean: the mean
# prompt of the Azure 2023 conversation trace, 1,155 tokens (AzurePublicDataset), rounded.
PRIOR_TOKENS: Final = 1_000.0

# The last ends that are kept, because a page may be older than they are. Where more requests end while a page is read,
# the others on it count as requests of others until the next page.
_KEPT_ENDS: Final = 256


class _QueuedPrefill:
    """One request's tokens in the line: they end at `end`. `backlog` is the line when it was sent, itself included;
    0: unknown."""

    __slots__ = ("backlog", "end", "ended_at", "picked_at", "tokens")

    def __init__(self, picked_at: float, tokens: float, end: float) -> None:
        self.picked_at = picked_at
        self.tokens = tokens
        self.end = end
        self.backlog = 0.0
        self.ended_at = _NEVER


class FirstTokens(NamedTuple):
    """What the count of first tokens on a page shows: how many of the known requests that were sent before the page
    have none; and of those that had theirs since the page before, their number and the sum of their backlogs in tokens
    when they were sent, None where that is not known of all."""

    without: int
    counted: int
    backlogs: float | None


class QueueEvidence(NamedTuple):
    """What a page shows of a queue: the seconds of prefill of the requests that wait, and for how long the first of the
    agent's own among them waits, of which the backlog explains `explained_seconds`."""

    prefill_seconds: float
    own_wait_seconds: float
    explained_seconds: float


NO_QUEUE: Final = QueueEvidence(0.0, 0.0, 0.0)
_NEVER: Final = float("inf")


class InFlight:
    """Requests that were sent to one endpoint and have not ended. `now` never goes back between calls."""

    __slots__ = (
        "_awaited",
        "_busy_until",
        "_each_seconds",
        "_end",
        "_ended",
        "_first_tokens",
        "_mean_tokens",
        "_others_seen",
        "_requests",
        "_unqueued",
        "counted_at",
        "foreign",
        "of_peers",
        "rate",
    )

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.foreign = 0.0  # requests of others
        self.of_peers = 0  # of the known requests
        self.counted_at = float("-inf")  # when the page that shows them was requested
        self._requests: dict[int, _QueuedPrefill] = {}
        self._ended: deque[tuple[float, float]] = deque(maxlen=_KEPT_ENDS)  # when it was picked, when it ended
        self._end = 0.0
        self._busy_until = float("-inf")
        self._unqueued = UNKNOWN  # the load up to which a request is scheduled at once
        self._each_seconds = 0.0  # the wait that each request above it adds
        self._mean_tokens = 0.0
        self._awaited: deque[_QueuedPrefill] = deque()  # requests whose first tokens no page has counted
        self._first_tokens = -1.0  # the count on the last page; negative: unknown
        self._others_seen = 0  # the last pages in a row with requests of others

    @property
    def busy_until(self) -> float:
        """When the prefill before a request that arrives now is done (monotonic seconds); minus infinity before the
        first request."""
        return self._busy_until

    @property
    def load(self) -> float:
        """Requests at the endpoint: the agent's own, those of its peers and those of others."""
        return len(self._requests) + self.foreign

    @property
    def queue_seconds(self) -> float:
        """The wait of a request that arrives now in a queue that prefill does not explain; 0 where there is none."""
        if not self._each_seconds:
            return 0.0
        above = self.load + 1 - self._unqueued
        return above * self._each_seconds if above > 0 else 0.0

    @property
    def mean_tokens(self) -> float:
        """Uncached prompt tokens of the agent's mean request here, `PRIOR_TOKENS` before the first."""
        return self._mean_tokens or PRIOR_TOKENS

    def __len__(self) -> int:
        return len(self._requests)

    def prefill_tokens(self, now: float) -> float:
        """The backlog in uncached prompt tokens."""
        backlog = self._busy_until - now
        return backlog * self.rate if backlog > 0 else 0.0

    def start(self, work_id: int, tokens: float, now: float) -> None:
        """Add a request with this many uncached prompt tokens."""
        self._end += tokens
        request = self._requests[work_id] = _QueuedPrefill(now, tokens, self._end)
        busy_until = self._busy_until = max(self._busy_until, now) + tokens / self.rate
        if self._first_tokens >= 0:
            if not self.of_peers:  # what a peer has sent is known only after its report
                request.backlog = (busy_until - now) * self.rate
            self._awaited.append(request)
        self._mean_tokens += (tokens - self._mean_tokens) / 16 if self._mean_tokens else tokens

    def start_of_peer(self, work_id: int, tokens: float, picked_at: float, now: float) -> None:
        """Add a request that a peer has picked at `picked_at` and reports now; `work_id` is negative.

        A page that was requested in between had it, and it counted as one of others then.
        """
        self.of_peers += 1
        if picked_at <= self.counted_at and self.foreign >= 1:
            self.foreign -= 1
        self.start(work_id, tokens, now)
        self._requests[work_id].picked_at = picked_at

    def end(self, work_id: int, now: float) -> None:
        """Remove a request. The rest of its prefill leaves the line, and the requests behind it move up."""
        gone = self._requests.pop(work_id)
        gone.ended_at = now
        if work_id < 0:
            self.of_peers -= 1
        self._ended.append((gone.picked_at, now))
        head = self._end - self.prefill_tokens(now)
        left = min(gone.tokens, gone.end - head)
        if left > 0:
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

    def forget_others(self) -> None:
        """Drop what pages have shown of the requests of others and of the queue: another server responds now."""
        self.foreign = 0.0
        self._first_tokens = -1.0
        self._others_seen = 0
        self._awaited.clear()
        self._unqueued = UNKNOWN
        self._each_seconds = 0.0

    def count(self, running: float, waiting: float, free: float, at: float) -> None:
        """Count the requests of others by a page that was requested at `at` and reports `running` and `waiting`.

        `free` is how many more the server schedules at once (`agent.state.batch_size`). A request that was picked
        before `at` is taken to be on the page, so that it never counts twice.
        """
        own = self._own_at(at)
        on_page = running + waiting
        self.counted_at = at
        self.foreign = on_page - own if on_page > own else 0.0
        self._others_seen = self._others_seen + 1 if on_page > own else 0
        self._unqueued = own + self.foreign - waiting + free

    def count_waiting(self, waiting: float, at: float) -> None:
        """As `count`, for a report of the waiting requests alone, which are only a lower bound of all."""
        own = self._own_at(at)
        self.foreign = max(self.foreign, waiting - own)
        load = own + self.foreign
        self._unqueued = load - waiting if waiting > 0 else max(self._unqueued, load)

    def delay(self, each_seconds: float) -> None:
        """Set the wait that each request adds for which the batch has no room; 0: prefill alone makes requests wait."""
        self._each_seconds = each_seconds

    def _own_at(self, at: float) -> int:
        """The known requests that were in flight at `at`."""
        own = len(self._requests)
        for request in reversed(self._requests.values()):
            if request.picked_at <= at:
                break
            own -= 1
        for picked_at, ended_at in reversed(self._ended):
            if ended_at <= at:
                break
            if picked_at <= at:
                own += 1
        return own

    def count_first_tokens(
        self, count: float, on_page: float, waiting: float, at: float, now: float
    ) -> FirstTokens | None:
        """Count the requests without a first token by a page that was requested at `at`: `count` requests have had
        their first token since the server started, and the page has `on_page` requests, of which `waiting` wait. Pages
        come in order. None where the page does not show it.

        A server prefills in the order of arrival, so the oldest requests have had theirs. One that has ended without it
        was cut off. On two pages in a row with requests of others, they are there to stay, and the count has theirs;
        on one, it may be a request of a peer whose report is on its way.
        """
        before, self._first_tokens = self._first_tokens, count
        awaited = self._awaited
        if before < 0 or count < before or self._others_seen > 1:
            self._await_by_model(now)
            return None
        newer = unsure = 0  # sent after the page was requested; and so shortly before that they may not be on it
        for request in reversed(awaited):
            if request.picked_at <= at - TRANSIT_SECONDS:
                break
            if request.picked_at > at:
                newer += 1
            else:
                unsure += 1
        without = len(awaited) - newer
        new = int(count - before)
        counted = min(new, without)
        backlogs: float | None = 0.0 if counted == new else None
        for _ in range(counted):
            request = awaited.popleft()
            backlogs = backlogs + request.backlog if backlogs is not None and request.backlog > 0 else None
        without -= counted
        cut_off = [request for request in awaited if request.ended_at <= at]
        if cut_off:
            without -= len(cut_off)
            self._awaited = awaited = deque([request for request in awaited if request.ended_at > at])
        while without > on_page + unsure:
            awaited.popleft()
            without -= 1
        if without < waiting and not self._others_seen:
            self._await_by_model(now)
            return None
        return FirstTokens(without, counted, backlogs)

    def _await_by_model(self, now: float) -> None:
        """Take the first tokens of the requests in the line as those that no page has counted."""
        head = self._end - self.prefill_tokens(now)
        self._awaited = deque([request for request in self._requests.values() if request.end > head])
        for request in self._awaited:
            request.backlog = 0.0

    def correct(
        self,
        running: float | None,
        waiting: float,
        at: float,
        now: float,
        mean_tokens: float | None = None,
        first_tokens: FirstTokens | None = None,
    ) -> QueueEvidence:
        """Correct the backlog by a page that was requested at `at` and reports `running` (None: unknown) and `waiting`;
        returns what the page shows of the queue. `first_tokens` is what it shows by its count of them.

        Requests of others are taken to have `mean_tokens` uncached tokens; None: those of the agent's own.
        """
        if not self._requests and not waiting and self._busy_until <= now:
            return NO_QUEUE
        waiting_since = at
        included = at - TRANSIT_SECONDS
        newest = inside = 0.0
        upper = 0.0
        seen = unsure = 0
        bound = None if running is None else running + waiting
        without = _NEVER if first_tokens is None else first_tokens.without
        for request in reversed(self._requests.values()):
            if request.picked_at > included:
                newest += request.tokens
                unsure += 1
                if request.picked_at <= at:
                    without -= 1
                continue
            if bound is not None and without < bound:
                bound = max(without, waiting)
            if seen < waiting:
                inside += request.tokens
                waiting_since = request.picked_at
            elif bound is None or seen >= bound:
                break
            if bound is not None and seen < bound:
                upper += request.tokens
            seen += 1
        lower = inside
        if waiting > seen + unsure:
            foreign = (waiting - seen - unsure) * (mean_tokens or self.mean_tokens)
            lower += foreign
            upper += foreign
        explained = max(0.0, min(at, self._busy_until) - waiting_since)
        passed = (now - at) * self.rate
        backlog = self.prefill_tokens(now)
        low = newest + max(0.0, lower - passed)
        if backlog < low:
            self._busy_until = now + low / self.rate
        elif bound is not None and backlog > newest + upper:
            self._busy_until = now + (newest + upper) / self.rate
        return QueueEvidence(lower / self.rate, at - waiting_since, explained) if waiting else NO_QUEUE
