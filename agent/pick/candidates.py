"""The endpoints that may serve one request, in columns: filters remove some, scorers score the rest.

Every list here is aligned with `views`. A signal's column holds None where the signal is unknown or stale. Scorers
never see None, because `agent.pick.scoring` passes them only candidates that have every signal they need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from agent.accelerators.table import COMBINED
from agent.pick.request import PickRequest
from agent.state.freshness import is_fresh
from agent.state.health import Health
from agent.state.snapshot import EndpointView, Work

_BLIND: Final = Health.BLIND


class Waits(NamedTuple):
    """The prefill before a request at each candidate and its wait there, in seconds, and the work of which they are."""

    prefill: Sequence[float]
    backlog: Sequence[float]
    works: Sequence[Work]


class Candidates:
    """Candidates for `request` at `now`.

    `hits` are the prompt tokens that the index predicts in each one's cache; `prefill_seconds` the seconds of uncached
    prefill before a request that arrives now; `backlog_seconds` the seconds until it is scheduled, for whatever reason
    it waits; `adapters` as in the snapshot. `shared`: the longest of these prefixes is one with which other prompts
    begin too. `only_prefill` as in the snapshot: then the seconds of prefill and those until it is scheduled are equal.

    An endpoint is unseen while no fresh page reports its queue: it is blind, or its page lacks the queue. It has the
    load of the busiest of the others beside the agent's requests.
    """

    __slots__ = (
        "_page_fresh",
        "adapters",
        "backlog_seconds",
        "hits",
        "now",
        "prefill_seconds",
        "request",
        "shared",
        "views",
        "works",
    )

    def __init__(
        self,
        request: PickRequest,
        now: float,
        views: Sequence[EndpointView],
        hits: Sequence[int],
        waits: Waits | None = None,
        adapters: frozenset[str] | None = None,
        *,
        shared: bool = False,
        only_prefill: bool = False,
    ) -> None:
        self.request = request
        self.shared = shared
        self.now = now
        self.views = views
        self.hits = hits
        self.adapters = adapters
        if waits is None:
            waits = waits_of([view.work for view in views], now, only_prefill=only_prefill)
        self.prefill_seconds, self.backlog_seconds, self.works = waits
        self._page_fresh: list[bool] | None = None

    def __len__(self) -> int:
        return len(self.views)

    @property
    def unseen(self) -> list[bool]:
        """Whether each candidate is unseen."""
        return [not work.corrected for work in self.works]

    def column(self, signal: str) -> list[float | None]:
        """The signal's fresh value at each candidate, None where it is unknown or stale."""
        now = self.now
        if signal in COMBINED:
            return [_of_accelerators(view, signal, now) for view in self.views]
        # As `EndpointView.fresh`, with one check of freshness for each page instead of one for each signal.
        page_fresh = self._page_fresh
        if page_fresh is None:
            page_fresh = self._page_fresh = [
                view.page_at is not None and is_fresh(view.page_at, view.stale_after, now) and view.health is not _BLIND
                for view in self.views
            ]
        column: list[float | None] = []
        for view, fresh in zip(self.views, page_fresh, strict=True):
            value = view.values.get(signal) if fresh else None
            if value is None:
                value = view.fresh(signal, now)
            column.append(None if isinstance(value, frozenset) else value)
        return column

    def keep(self, places: Sequence[int]) -> Candidates:
        """The candidates at these places, in this order."""
        if len(places) == len(self.views):
            return self
        return Candidates(
            self.request,
            self.now,
            [self.views[i] for i in places],
            [self.hits[i] for i in places],
            Waits(
                [self.prefill_seconds[i] for i in places],
                [self.backlog_seconds[i] for i in places],
                [self.works[i] for i in places],
            ),
            self.adapters,
            shared=self.shared,
        )


def _of_accelerators(view: EndpointView, signal: str, now: float) -> float | None:
    """The endpoint's accelerator reading from the first source that may be picked on and has a fresh one."""
    for accelerators in view.accelerators:
        found = accelerators.readings.get(signal)
        if (
            accelerators.picked_on
            and found is not None
            and is_fresh(found.at, accelerators.stale_after, now)
            and not isinstance(found.value, frozenset)
        ):
            return found.value
    return None


def waits_of(works: Sequence[Work], now: float, *, only_prefill: bool) -> Waits:
    """The waits at endpoints with this work; `only_prefill` as in the snapshot."""
    # Fields by index, because this runs for each endpoint at each pick: `busy_until` is 1, `corrected` is 4,
    # `queue_seconds` is 6.
    prefill = [work[1] - now if work[1] > now else 0.0 for work in works]
    if only_prefill:
        return Waits(prefill, prefill, works)
    queues = [work[6] for work in works]
    backlog = [max(pair) for pair in zip(prefill, queues, strict=True)] if any(queues) else prefill
    seen = [work[4] for work in works]
    if all(seen) or not any(seen):
        return Waits(prefill, backlog, works)
    # Of equally busy ones the one with the smallest load, so that the order of the candidates does not matter.
    busiest = max(
        (place for place, known in enumerate(seen) if known), key=lambda place: (backlog[place], -works[place].load)
    )
    of_unseen = _load_of_unseen(works[busiest])
    return Waits(
        [
            each if known else of_unseen(prefill[busiest], each, w)
            for each, known, w in zip(prefill, seen, works, strict=True)
        ],
        [
            each if known else of_unseen(backlog[busiest], each, w)
            for each, known, w in zip(backlog, seen, works, strict=True)
        ],
        [work if known else _as_busy(work, works[busiest]) for work, known in zip(works, seen, strict=True)],
    )


def _load_of_unseen(busiest: Work) -> Callable[[float, float, Work], float]:
    """How an endpoint whose queue no fresh page shows is estimated by the busiest of the others: it is taken to have as
    many requests of others, and each request to cost as much. So equal numbers of the agent's own cost the same."""

    def seconds(of_busiest: float, own: float, work: Work) -> float:
        if not busiest.load:
            return of_busiest + own
        return max(own, of_busiest * (busiest.foreign + work.requests) / busiest.load)

    return seconds


def _as_busy(work: Work, busiest: Work) -> Work:
    """The work with at least as many requests of others as the busiest endpoint has."""
    return work._replace(foreign=max(work.foreign, busiest.foreign))


def load_of_unseen(busiest: float, busiest_requests: int, requests: int, own: float) -> float:
    """The load of an unseen endpoint, by that of the busiest seen one, in whatever unit `busiest` and `own` have.

    The two have so many of the agent's requests in flight. Each of them is taken to cost as much at the unseen endpoint
    as at the busiest one, so that equal numbers cost the same. Where the busiest one has none of them, others load it,
    and the unseen one is taken to have that load beside the agent's `own`.

    A sum of both in every case would starve the unseen: it is never below the busiest, so the least busy one wins every
    pick. The own load alone would starve the seen: pages show delays and requests of others, and add to theirs only.
    """
    if not busiest_requests:
        return busiest + own
    return busiest * requests / busiest_requests
