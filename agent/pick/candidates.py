"""The endpoints that are left for one request, in columns: what filters take from and scorers score.

Every list here is aligned with `views`. A column of a signal holds None where the signal is unknown or stale; scorers
never meet one, because `agent.pick.scoring` hands them only candidates that have all they need.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.accelerators.table import COMBINED
from agent.pick.request import PickRequest
from agent.state.snapshot import EndpointView, Work


class Candidates:
    """Candidates for `request` at `now`; `hits` are the prompt tokens that the index expects in each one's cache."""

    __slots__ = ("adapters", "backlog_seconds", "hits", "now", "request", "views", "works")

    def __init__(
        self,
        request: PickRequest,
        now: float,
        views: Sequence[EndpointView],
        hits: Sequence[int],
        backlog_seconds: Sequence[float] | None = None,
        adapters: frozenset[str] | None = None,
    ) -> None:
        self.request = request
        self.now = now
        self.views = views
        self.hits = hits
        self.adapters = adapters  # as in the snapshot: None where nobody gathered them
        self.works = [view.work for view in views]
        # Seconds of uncached prefill that stand before a request that comes now, at each candidate.
        self.backlog_seconds = _backlog_seconds(self.works, now) if backlog_seconds is None else backlog_seconds

    def __len__(self) -> int:
        return len(self.views)

    def column(self, signal: str) -> list[float | None]:
        """The signal's fresh value at each candidate, None where it is unknown or stale."""
        now = self.now
        if signal in COMBINED:
            return [_of_accelerators(view, signal, now) for view in self.views]
        column: list[float | None] = []
        for view in self.views:
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
            [self.backlog_seconds[i] for i in places],
            self.adapters,
        )


def _of_accelerators(view: EndpointView, signal: str, now: float) -> float | None:
    """What runs under the endpoint, by the first source that may be picked on and has a fresh reading."""
    for accelerators in view.accelerators:
        found = accelerators.readings.get(signal)
        if (
            accelerators.picked_on
            and found is not None
            and now - found.at < accelerators.stale_after
            and not isinstance(found.value, frozenset)
        ):
            return found.value
    return None


def _backlog_seconds(works: Sequence[Work], now: float) -> list[float]:
    """The work ahead at each candidate. Where no fresh page corrects the estimate, it is at least the longest of the
    others."""
    # By their places, because this runs for each endpoint at each pick: `busy_until`, `corrected`.
    ahead = [ends[1] - now if ends[1] > now else 0.0 for ends in works]
    known = [work[4] for work in works]
    if all(known) or not any(known):
        return ahead
    longest = max(seconds for seconds, sure in zip(ahead, known, strict=True) if sure)
    return [seconds if sure else max(seconds, longest) for seconds, sure in zip(ahead, known, strict=True)]
