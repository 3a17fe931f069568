"""The mean of a level over the last minute, as the arrivals have theirs.

Slots and KV cache are levels that a page shows at one instant. The HPA takes the highest demand at once and keeps it
for its stabilisation window, so that each peak of a noisy level would cost replicas for five minutes.
"""

from __future__ import annotations

from collections import deque
from math import fsum
from typing import Final

from agent.scaling.arrivals import SHORT_SECONDS

# Samples of a minute at one a second, and as many again for a caller that is faster.
_MAX_SAMPLES: Final = 120


class RecentMean:
    """The mean of the samples of the last `SHORT_SECONDS`. An unknown sample leaves the mean as it is, and one that is
    unknown for that time leaves no mean."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_MAX_SAMPLES)

    def observe(self, value: float | None, now: float) -> float | None:
        """Record a sample at `now` (monotonic seconds); the mean, None of no sample."""
        samples = self._samples
        if value is not None:
            samples.append((now, value))
        while samples and samples[0][0] <= now - SHORT_SECONDS:
            samples.popleft()
        return fsum(value for _, value in samples) / len(samples) if samples else None
