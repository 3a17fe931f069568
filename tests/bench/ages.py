"""How old readings are for who reads them, as statistics. Pure.

A look is what one reader saw at one moment: the age of one reading of each endpoint. Looks are taken at random times,
so that they see every phase of a scraper's grid alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from random import Random
from typing import NamedTuple


class Look(NamedTuple):
    """Seconds since looking began, and the age in seconds of each endpoint's reading; one without is left out."""

    at: float
    ages: Sequence[float]


class Spread(NamedTuple):
    """Half of the ages are below `p50`, 99 % below `p99`, none above `most`; all in seconds."""

    p50: float
    p99: float
    most: float


def percentile(values: Iterable[float], part: float) -> float:
    """The smallest value that at least this part (0 to 1) of all do not exceed. ValueError when there is none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values, no percentile")
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def spread(looks: Iterable[Look]) -> Spread | None:
    """Over all looks together; None when nothing was seen."""
    ages = sorted(age for look in looks for age in look.ages)
    return Spread(percentile(ages, 0.5), percentile(ages, 0.99), ages[-1]) if ages else None


def by_second(looks: Iterable[Look]) -> list[tuple[float, Spread]]:
    """The spread in each second in which something was seen, with the middle of that second."""
    seconds: dict[int, list[Look]] = {}
    for look in looks:
        seconds.setdefault(math.floor(look.at), []).append(look)
    found = ((second + 0.5, spread(seconds[second])) for second in sorted(seconds))
    return [(at, one) for at, one in found if one is not None]


def moments(seconds: float, mean_gap: float, chance: Random) -> list[float]:
    """When to look during so many seconds: the gaps are random, from half the mean to one and a half."""
    found, at = [], 0.0
    while (at := at + mean_gap * (0.5 + chance.random())) < seconds:
        found.append(at)
    return found
