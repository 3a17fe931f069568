"""Statistics of the ages of readings. Pure.

A sample has the ages of one reading of each endpoint at one time. Samples are taken at random times, so that they are
uniform over the phases of a scrape interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from random import Random
from typing import NamedTuple


class AgeSample(NamedTuple):
    """Seconds since the beginning, and the ages in seconds of the endpoints' readings."""

    at: float
    ages: Sequence[float]


class AgeSpread(NamedTuple):
    """Median, 99th percentile and maximum of ages in seconds."""

    p50: float
    p99: float
    maximum: float


def percentile(values: Iterable[float], part: float) -> float:
    """The percentile of rank `part` (0 to 1) by the nearest-rank method. ValueError without values."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values, no percentile")
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def spread(samples: Iterable[AgeSample]) -> AgeSpread | None:
    """The statistics over all samples; None without an age."""
    ages = sorted(age for sample in samples for age in sample.ages)
    return AgeSpread(percentile(ages, 0.5), percentile(ages, 0.99), ages[-1]) if ages else None


def by_second(samples: Iterable[AgeSample]) -> list[tuple[float, AgeSpread]]:
    """The statistics of each second that has an age, with the middle of that second."""
    seconds: dict[int, list[AgeSample]] = {}
    for sample in samples:
        seconds.setdefault(math.floor(sample.at), []).append(sample)
    found = ((second + 0.5, spread(seconds[second])) for second in sorted(seconds))
    return [(at, ages) for at, ages in found if ages is not None]


def sample_times(seconds: float, mean_gap: float, rng: Random) -> list[float]:
    """Random times within `seconds`; the gaps are uniform between 0.5 and 1.5 of `mean_gap`."""
    found, at = [], 0.0
    while (at := at + mean_gap * (0.5 + rng.random())) < seconds:
        found.append(at)
    return found
