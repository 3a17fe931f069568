"""Room: how much more may be sent to an endpoint now, so that the rest waits where priorities count.

A model server serves its queue first come, first served, so that queue is kept short. A detector computes the room of
one endpoint from a snapshot and from what a snapshot lacks (`agent.flow.evidence`). Three detectors:

    headroom      the default. Room for so many requests as the batch has free slots, and a few to wait for the next
                  one; for a prompt that fits into the free KV cache; and only while a request would wait less than
                  `max_wait_seconds` there. What is unknown limits nothing: slots and cache are unknown of many engines,
                  the wait is known of all.
    utilization   the reference's: waiting requests over 5, or KV usage over 0.8, is saturated
    concurrency   the reference's: a number of requests, or of prompt tokens, in flight

All count the agent's own requests since the last page. An endpoint whose queue no fresh page shows (a blind one) has
room by the number of the agent's own requests there, so that a pool which is all blind still serves. An endpoint
without requests has room for one, whatever a detector finds: a prompt that is larger than the free cache of an idle
server does not wait for anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from agent.flow.evidence import Evidence
from agent.signals import BLOCK_SIZE, BLOCKS, KV_TOKENS, KV_USAGE, RUNNING, SLOTS_USAGE, WAITING
from agent.state.freshness import is_fresh
from agent.state.health import Health
from agent.state.snapshot import EndpointView

_UNLIMITED: Final = float("inf")
_LONG_AGO: Final = float("-inf")
_HEALTH_BLIND: Final = Health.BLIND
_new: Final = tuple.__new__

SLOTS: Final = "slots"
WAIT: Final = "wait"
KV_CACHE: Final = "kv_cache"
QUEUE: Final = "queue"
REQUESTS: Final = "requests"
TOKENS: Final = "tokens"
BLIND: Final = "blind"
LIMITED_BY: Final = (SLOTS, WAIT, KV_CACHE, QUEUE, REQUESTS, TOKENS, BLIND)


class RoomLimits(NamedTuple):
    """The limits of the detectors.

    `slots` are the requests that an endpoint runs at once, None where it is read from pages; `queued` how many may wait
    behind them at the server, so that a slot that becomes free does not stay empty for the way of a request to it;
    `max_wait_seconds` bounds the wait at the server, so the time for which a request of the highest priority waits
    behind others; a longer one only serves estimates that are too long. (In `make bench-overload` at 1.6 times what the
    servers can do, the highest band's p90 is 1.69 s with 0.15 s and 1.84 s with 0.25 s, at .976 and .981 of the
    throughput without control.) The pool counts as saturated, and requests begin to be held, when the wait at every
    endpoint is `hold_from_seconds`: a shorter one is a burst, which is over before an order could matter.
    `blind_requests` bound the requests at an endpoint whose queue is not seen, if `slots` are not given; 0: one at a
    time, also where they are.
    """

    slots: float | None = None
    queued: float = 1.0
    max_wait_seconds: float = 0.15
    hold_from_seconds: float = 1.0
    blind_requests: float = 16.0
    queue_threshold: float = 5.0
    kv_threshold: float = 0.8
    max_requests: float = 100.0
    max_tokens: float = _UNLIMITED


class Room(NamedTuple):
    """What one endpoint may be sent. A dispatch uses it up (`after`), and the next page or end of a request replaces
    it.

    `requests` more may be sent, from the time on at which the requests before them take less than the allowed wait
    (`opens_at`, monotonic seconds); `wait_seconds` is that allowed wait. A prompt has to fit into `kv_tokens`, unless
    it is larger than the whole cache of `kv_capacity` tokens and so fits never. `saturation` is the used part of the
    scarcest of these, 1 where there is no room, and `limited_by` its name.
    """

    requests: float
    opens_at: float = _LONG_AGO
    wait_seconds: float = _UNLIMITED
    kv_tokens: float = _UNLIMITED
    kv_capacity: float = _UNLIMITED
    saturation: float = 0.0
    limited_by: str = ""

    def fits(self, prompt_tokens: int) -> bool:
        """Whether the prompt fits into the KV cache."""
        return prompt_tokens <= self.kv_tokens or prompt_tokens > self.kv_capacity

    def after(self, prompt_tokens: int, seconds: float, now: float) -> Room:
        """The room after a dispatch at `now` of a request that adds this work."""
        requests, opens_at, wait_seconds, kv_tokens, kv_capacity, saturation, limited_by = self
        if wait_seconds < _UNLIMITED:
            opens_at = max(opens_at, now - wait_seconds) + seconds
        return Room(
            requests - 1.0, opens_at, wait_seconds, kv_tokens - prompt_tokens, kv_capacity, saturation, limited_by
        )


NO_ROOM: Final = Room(0.0, saturation=1.0)
Detector = Callable[[EndpointView, Evidence, RoomLimits, float], Room]


def headroom(view: EndpointView, evidence: Evidence, limits: RoomLimits, now: float) -> Room:
    """The room by slots, by the wait and by the KV cache."""
    # Tuples are unpacked, because this runs for each request, also where nothing waits.
    requests, busy_until, _, _, corrected, foreign, queue_seconds, _ = view.work
    learnt, sent, sent_tokens, ended, share = evidence
    load = requests + foreign
    max_wait = limits.max_wait_seconds
    fresh = _page_is_fresh(view, now)
    if not corrected:
        blind = limits.blind_requests
        slots = (limits.slots if limits.slots is not None and blind > 0 else min(learnt, blind)) * share
        free, by, used = slots - requests, BLIND, _part(requests, slots)
    else:
        slots = limits.slots if limits.slots is not None else _slots(view, learnt, fresh, now)
        free = _claim(slots + limits.queued - load, sent, ended, share)
        by, used = SLOTS, _part(load, slots)
    opens_at = busy_until - max_wait
    if queue_seconds > max_wait:  # a queue that prefill does not explain; it shrinks by events only
        free, by, used = 0.0, QUEUE, 1.0
    if busy_until > now and (part := _part(busy_until - now, max_wait)) > used:
        by, used = WAIT, part
    kv_tokens = kv_capacity = _UNLIMITED
    usage = _number(view, KV_USAGE, fresh, now)
    if usage is not None:
        capacity = _kv_capacity(view, fresh, now)
        if capacity is not None:
            kv_capacity = capacity
            kv_tokens = (1.0 - usage) * capacity * share - sent_tokens
            if usage > used:
                by, used = KV_CACHE, usage
    if load <= 0 and busy_until <= now:
        free, kv_tokens = max(1.0, free), _UNLIMITED
    return _new(Room, (free, opens_at, max_wait, kv_tokens, kv_capacity, used, by))


def utilization(view: EndpointView, evidence: Evidence, limits: RoomLimits, now: float) -> Room:
    """Room while the queue and the KV cache are below their thresholds on the last page, whatever was sent since."""
    waiting, usage = view.number(WAITING, now), view.number(KV_USAGE, now)
    if waiting is None and usage is None:
        return _by_own_requests(view, evidence, limits)
    queue, cache = _part(waiting or 0.0, limits.queue_threshold), _part(usage or 0.0, limits.kv_threshold)
    saturation, by = max((queue, QUEUE), (cache, KV_CACHE))
    return Room(_UNLIMITED if saturation < 1 else 0.0, saturation=saturation, limited_by=by)


def concurrency(view: EndpointView, evidence: Evidence, limits: RoomLimits, now: float) -> Room:
    """Room while fewer requests and fewer prompt tokens are in flight than the limits."""
    work = view.work
    if not work.corrected:
        return _by_own_requests(view, evidence, limits)
    free = _claim(limits.max_requests - work.load, evidence.sent_requests, evidence.ended_requests, evidence.share)
    tokens = work.prefill_tokens(now)
    saturation, by = max((_part(work.load, limits.max_requests), REQUESTS), (_part(tokens, limits.max_tokens), TOKENS))
    if work.load <= 0:
        free = max(1.0, free)
    if tokens >= limits.max_tokens:
        free = 0.0
    wait = limits.max_tokens / work.rate
    return Room(free, work.busy_until - wait, wait, saturation=saturation, limited_by=by)


HEADROOM: Final = "headroom"
# Their names in the configuration.
DETECTORS: Final[Mapping[str, Detector]] = {
    HEADROOM: headroom,
    "utilization": utilization,
    "concurrency": concurrency,
}


def _slots(view: EndpointView, learnt: float, fresh: bool, now: float) -> float:  # noqa: FBT001
    """The requests that the endpoint runs at once, by its page, else as learnt; infinite where nothing shows it."""
    used = _number(view, SLOTS_USAGE, fresh, now)
    if used is not None and used > 0:
        running = _number(view, RUNNING, fresh, now)
        if running is not None and running > 0:
            return running / used
    return learnt


def _claim(free: float, sent: int, ended: int, share: float) -> float:
    """The part of the free slots that this replica may use.

    Of those that were free on the page it claims its share, because the other replicas see the same page. What it has
    sent since is taken from its claim, and what has ended since was its own.
    """
    return (free + sent - ended) * share - sent + ended if free < _UNLIMITED else free


def _by_own_requests(view: EndpointView, evidence: Evidence, limits: RoomLimits) -> Room:
    own, limit = view.work.requests, limits.blind_requests * evidence.share
    free = limit - own
    return Room(free if own else max(1.0, free), saturation=_part(own, limit), limited_by=BLIND)


def cache_tokens(view: EndpointView, now: float) -> float | None:
    """The tokens that fit into the KV cache; None: unknown."""
    return _kv_capacity(view, _page_is_fresh(view, now), now)


def _kv_capacity(view: EndpointView, fresh: bool, now: float) -> float | None:  # noqa: FBT001
    """The tokens that fit into the KV cache; None: unknown."""
    tokens = _number(view, KV_TOKENS, fresh, now)
    if tokens is not None:
        return tokens
    blocks = _number(view, BLOCKS, fresh, now)
    size = None if blocks is None else _number(view, BLOCK_SIZE, fresh, now)
    return None if blocks is None or size is None else blocks * size


def _page_is_fresh(view: EndpointView, now: float) -> bool:
    page_at = view.page_at
    return page_at is not None and is_fresh(page_at, view.stale_after, now) and view.health is not _HEALTH_BLIND


def _number(view: EndpointView, signal: str, fresh: bool, now: float) -> float | None:  # noqa: FBT001
    """As `EndpointView.number`, with one check for all signals of the page whether it is fresh."""
    value = view.values.get(signal) if fresh else None
    if value is None:
        return view.number(signal, now) if view.others else None
    return None if isinstance(value, frozenset) else value


def _part(used: float, limit: float) -> float:
    """The used part of a limit; 1 of a limit of 0."""
    if limit == _UNLIMITED:
        return 0.0
    return used / limit if limit > 0 else 1.0
