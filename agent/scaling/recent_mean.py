"""The mean of a level over the last minute, as the arrivals have theirs.

Slots and KV cache are levels that a page shows at one instant. The HPA takes the highest demand at once and keeps it
for its stabilisation window, so that each peak of a noisy level would cost replicas for five minutes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import fsum
from typing import Final

from agent.scaling.arrivals import SHORT_SECONDS
from agent.scaling.demand_history import LevelSample

# Samples of a minute at two a second, and as many again for a caller that is faster.
_MAX_SAMPLES: Final = 240


class RecentMean:
    """The mean of the samples of the last `SHORT_SECONDS`. An unknown sample leaves the mean as it is, and one that is
    unknown for that time leaves no mean."""

    def __init__(self) -> None:
        self._samples: deque[LevelSample] = deque(maxlen=_MAX_SAMPLES)

    def observe(self, value: float | None, now: float) -> float | None:
        """Record a sample at `now` (monotonic seconds); the mean, None of no sample."""
        samples = self._samples
        if value is not None:
            samples.append(LevelSample(now, value))
        while samples and samples[0].at <= now - SHORT_SECONDS:
            samples.popleft()
        return fsum(value for _, value in samples) / len(samples) if samples else None

    @property
    def samples(self) -> Sequence[LevelSample]:
        """The samples, the oldest first."""
        return tuple(self._samples)

    def adopt(self, samples: Sequence[LevelSample]) -> None:
        """Continue with the samples of an observer that has them for longer: the own ones are of less."""
        if samples and (not self._samples or samples[0].at < self._samples[0].at):
            self._samples = deque(samples, maxlen=_MAX_SAMPLES)


class SeenLevel:
    """The mean of a level of a pool of which a part is not seen at times.

    What is seen of each moment is multiplied before the mean is taken: a mean over a minute in which the seen part has
    changed would be too low after it has grown, and an autoscaler would shrink the pool. Where too little is seen for
    that, the mean is of what is seen.
    """

    def __init__(self) -> None:
        self._of_all, self._of_seen = RecentMean(), RecentMean()

    def observe(self, seen: float | None, factor: float | None, now: float) -> float | None:
        """Record what is seen of the level at `now` (monotonic seconds), and the `factor` that makes it that of all
        (None: too little is seen). The mean of what would be seen of it with this factor; None of no sample."""
        of_seen = self._of_seen.observe(seen, now)
        of_all = self._of_all.observe(None if seen is None or factor is None else seen * factor, now)
        if factor is None:
            return of_seen
        return of_seen if of_all is None else of_all / factor

    @property
    def samples(self) -> Sequence[LevelSample]:
        """The samples of the whole pool, the oldest first."""
        return self._of_all.samples

    def adopt(self, samples: Sequence[LevelSample]) -> None:
        """Continue with the samples of an observer that has them for longer."""
        self._of_all.adopt(samples)
