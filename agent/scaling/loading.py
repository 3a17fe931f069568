"""The replicas that load, and since when: what they would have served is no backlog to start more replicas for.

A pod that was created a minute ago serves nothing yet, and the queue grows until it does. Without this credit the queue
would ask for more replicas with every second of the start-up, and all of them would arrive after the first ones have
drained it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class Loading(NamedTuple):
    """The number of replicas that load, and the seconds for which they have, summed."""

    replicas: float
    seconds: float


NOT_LOADING = Loading(0.0, 0.0)


class LoadingReplicas:
    """The replicas of one pool that load; the one that began first is ready first."""

    def __init__(self) -> None:
        self._since: deque[float] = deque()

    def observe(self, count: int, now: float) -> None:
        """So many replicas load at `now` (monotonic seconds)."""
        while len(self._since) > max(0, count):
            self._since.popleft()
        while len(self._since) < count:
            self._since.append(now)

    def loading(self, now: float, startup_seconds: float) -> Loading:
        """What loads now. A replica that loads for longer than `startup_seconds` is credited with that time."""
        seconds = sum(min(max(0.0, now - since), startup_seconds) for since in self._since)
        return Loading(float(len(self._since)), seconds)

    @property
    def since(self) -> Sequence[float]:
        """When each of them was first seen (monotonic seconds), the oldest first."""
        return tuple(self._since)

    def adopt(self, since: Sequence[float]) -> None:
        """Another observer has seen the replicas since these times; the later ones of more are those that are here."""
        known = list(since)[-len(self._since) :] if self._since else []
        for place, at in enumerate(reversed(known), 1):
            self._since[-place] = min(self._since[-place], at)
