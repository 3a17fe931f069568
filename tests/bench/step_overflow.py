"""What the age of a metric costs at a step of the load: the HPA's formula, with the ages that were measured.

Replicas of capacity 1 serve a rate that steps so that two more replicas are needed. The HPA reads the rate over the
target at each sync, as old as a drawn age; new replicas serve when they have started. The overflow is the part of the
rate over `AFTER_SECONDS` from the step that exceeds the capacity of those that are ready.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Final, NamedTuple

from agent.scaling.hpa import Hpa, HpaSettings, average_value

BEFORE, AFTER = 3.2, 4.8  # requests per second: 4 and 6 replicas at the target
TARGET: Final = 0.8
SYNC_SECONDS: Final = 15.0
STARTUP_SECONDS: Final = 240.0
AFTER_SECONDS: Final = 600
DRAWS: Final = 1000


class StepOutcome(NamedTuple):
    """Mean share of the requests that overflow, and the delay in seconds from the step to the HPA's first change: the
    median and the 99th percentile over all phases of the sync and all ages."""

    overflow: float
    delay: float
    delay_p99: float


def step_outcome(ages: Sequence[float], seed: int = 1) -> StepOutcome:
    """`ages` are those of values when they were read, in seconds; with the same seed, the same outcome."""
    generator = Random(seed)
    delays, shares = [], []
    for _ in range(DRAWS):
        delay, over = _once(generator.random() * SYNC_SECONDS, ages, generator)
        delays.append(delay)
        shares.append(over / (AFTER * AFTER_SECONDS))
    delays.sort()
    return StepOutcome(sum(shares) / DRAWS, delays[DRAWS // 2], delays[int(0.99 * DRAWS)])


def _once(first_sync: float, ages: Sequence[float], generator: Random) -> tuple[float, float]:
    """Seconds from the step at 0 to the first change, and the requests that overflow."""
    hpa = Hpa(HpaSettings())
    replicas = ready = math.ceil(BEFORE / TARGET)
    starts: list[tuple[float, int]] = []
    delay, sync = math.inf, first_sync
    while sync < AFTER_SECONDS:
        seen = BEFORE if sync - generator.choice(ages) < 0 else AFTER
        after = hpa.sync(sync, replicas, average_value(seen, TARGET, replicas, hpa.settings))
        if after > replicas:
            delay = min(delay, sync)
            starts.append((sync + STARTUP_SECONDS, after - replicas))
            replicas = after
        sync += SYNC_SECONDS
    over, at = 0.0, 0.0
    for ready_at, count in [*starts, (math.inf, 0)]:
        until = min(ready_at, float(AFTER_SECONDS))
        over += max(0.0, AFTER - ready) * max(0.0, until - at)
        ready, at = ready + count, until
    return delay, over
