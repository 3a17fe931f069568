"""What the room of an endpoint depends on and a snapshot lacks: learnt slots, and what was sent since the last page."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from agent.signals import KV_USAGE, RUNNING, SLOTS_USAGE, WAITING
from agent.state.batch_size import SATURATED_KV_USAGE, SATURATED_WAITING, UNKNOWN, BatchSize
from agent.state.inflight import TRANSIT_SECONDS
from agent.state.snapshot import EndpointView

# Requests sent since a page that are kept, because the next page may come late; more than this count as on the page.
_KEPT: Final = 1024

# The generated constructor of a named tuple costs more than what fills it, and this runs for each request.
_new: Final = tuple.__new__


class Evidence(NamedTuple):
    """Of one endpoint: `slots` learnt from its pages (infinite: nothing shows them); requests and prompt tokens that
    this agent has sent since its last page; requests of this agent that were on the page and have ended since; the
    `share` of the free slots that this agent claims, 1/n of n replicas that do not know of each other."""

    slots: float = UNKNOWN
    sent_requests: int = 0
    sent_tokens: int = 0
    ended_requests: int = 0
    share: float = 1.0


class EndpointEvidence:
    """Collects the evidence of one endpoint. `now` never goes back between calls."""

    __slots__ = ("_batch", "_ended", "_gone", "_on_page", "_page_at", "_sent", "_sent_tokens", "_slots")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over: another server responds now."""
        self._batch = BatchSize()
        self._slots = UNKNOWN
        self._page_at = float("-inf")
        self._sent: deque[tuple[float, int]] = deque()  # when, prompt tokens
        self._sent_tokens = 0
        self._ended: deque[tuple[float, float]] = deque(maxlen=_KEPT)  # when it was sent, when it ended
        self._on_page = 0  # of the ended ones, those that were on the page
        self._gone = 0  # those that were sent since

    def observe(self, view: EndpointView) -> None:
        """Record the endpoint's last page. The same page may be recorded again."""
        at = view.page_at
        if at is None or at <= self._page_at:
            return
        self._page_at = at
        sent, ended, since = self._sent, self._ended, at - TRANSIT_SECONDS
        while sent and sent[0][0] <= since:
            self._sent_tokens -= sent.popleft()[1]
        while ended and ended[0][1] <= at:
            ended.popleft()
        self._on_page = sum(1 for sent_at, _ in ended if sent_at <= since)
        self._gone = len(ended) - self._on_page
        running, waiting = _number(view, RUNNING), _number(view, WAITING)
        if waiting is not None:
            usage, slots = _number(view, KV_USAGE), _number(view, SLOTS_USAGE)
            free = self._batch.observe(running, waiting, usage, slots)
            if running is None:  # then they are those in flight that do not wait
                running = max(0.0, view.work.load - waiting)
            elif waiting < SATURATED_WAITING and (usage is None or usage < SATURATED_KV_USAGE):
                # A few may wait for the end of a step: only what earlier pages have confirmed is the size of the batch.
                free = self._batch.observe(running, 0.0, usage, slots)
            self._slots = free + running

    def sent(self, prompt_tokens: int, now: float) -> None:
        """The agent has sent a request."""
        sent = self._sent
        sent.append((now, prompt_tokens))
        self._sent_tokens += prompt_tokens
        if len(sent) > _KEPT:
            self._sent_tokens -= sent.popleft()[1]

    def ended(self, sent_at: float, now: float) -> None:
        """A request of the agent, sent at `sent_at`, has ended."""
        self._ended.append((sent_at, now))
        if sent_at <= self._page_at - TRANSIT_SECONDS:
            self._on_page += 1
        else:
            self._gone += 1

    def evidence(self, share: float = 1.0) -> Evidence:
        """The evidence now, with this share of the free slots."""
        sent = len(self._sent) - self._gone
        return _new(Evidence, (self._slots, max(0, sent), self._sent_tokens, self._on_page, share))


def _number(view: EndpointView, signal: str) -> float | None:
    value = view.values.get(signal)
    return value if isinstance(value, float) else None
