"""Scrapers of one fleet, measured in turns: one works while the others are held still, and each begins warm."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

from tests.bench.ages import Look, Spread, by_second, moments, spread
from tests.bench.contestants import Agent, Contestant, Prometheus
from tests.bench.fleet import Fleet, Setting, addresses
from tests.bench.pace import Pace

WARM_SECONDS = 3.0
_SETTLED_WITHIN = 30.0


class Used(NamedTuple):
    """CPU microseconds per scrape, cores, scrapes a second, and how many failed."""

    cpu_us: float
    cores: float
    rate: float
    failed: float


class Cost(NamedTuple):
    """What a scraper took of this fleet (the median of the runs), the most MiB that it held, and the ages it showed.

    `seconds`: the ages second by second.
    """

    used: Used
    mib: float
    age: Spread | None
    seconds: Sequence[tuple[float, Spread]]


class Plan(NamedTuple):
    """How long to measure: seconds of a run, runs of each kind, seconds of looking at ages; who times the machine."""

    seconds: float
    rounds: int
    age_seconds: float
    pace: Pace


def say(text: str) -> None:
    """Show what goes on."""
    print(f"  .. {text}", file=sys.stderr, flush=True)


def measure(folder: Path, fleet: Fleet, setting: Setting, plan: Plan, *, beside: bool = False) -> dict[str, Cost]:
    """What the agent costs on this fleet, and `beside` it Prometheus, by name."""
    place = folder / setting.key
    place.mkdir()
    endpoints = addresses(fleet.port, setting.endpoints)
    with contextlib.ExitStack() as stack:
        say(f"{setting.title}: the agent starts")
        contestants: list[Contestant] = [Agent(place, endpoints, setting, stack)]
        if beside:
            contestants[0].child.hold_still()
            say(f"{setting.title}: Prometheus starts")
            contestants.append(Prometheus(place, endpoints, setting.interval, stack))
            _settle(fleet, setting.endpoints)
            contestants[1].child.hold_still()
        return _take_turns(fleet, setting, contestants, plan)


def _settle(fleet: Fleet, endpoints: int) -> None:
    """Wait until each was asked six times, or time is up: the first scrapes make the series, and cost more."""
    first, end = fleet.pages(), time.monotonic() + _SETTLED_WITHIN
    while fleet.pages() - first < 6 * endpoints and time.monotonic() < end:
        time.sleep(0.2)


def _take_turns(fleet: Fleet, setting: Setting, contestants: Sequence[Contestant], plan: Plan) -> dict[str, Cost]:
    runs: dict[str, list[Used]] = {one.name: [] for one in contestants}
    if len(contestants) == 1:
        time.sleep(_warm(setting))
    for number in range(plan.rounds):
        for one in contestants:
            say(f"{setting.title}: CPU of {one.name}, run {number + 1} of {plan.rounds}")
            plan.pace.look()
            with _turn(one, setting, contestants):
                runs[one.name].append(_cpu(one, fleet, max(plan.seconds, 1.2 * setting.interval)))
    found = {}
    for one in contestants:
        say(f"{setting.title}: ages at {one.name}")
        # Before anybody reads whole states, as the CPU time.
        mib = one.child.memory_bytes() / 2**20
        with _turn(one, setting, contestants):
            seen = _looks(one, setting.endpoints, max(plan.age_seconds, 1.2 * setting.interval))
        used = Used(*(median(column) for column in zip(*runs[one.name], strict=True)))
        found[one.name] = Cost(used, mib, spread(seen), by_second(seen))
    return found


@contextlib.contextmanager
def _turn(one: Contestant, setting: Setting, contestants: Sequence[Contestant]) -> Iterator[None]:
    """It works, and is warm; where there are others it is held still afterwards."""
    alone = len(contestants) == 1
    if not alone:
        one.child.go_on()
        time.sleep(_warm(setting))
    yield
    if not alone:
        one.child.hold_still()


def _warm(setting: Setting) -> float:
    """Seconds until what the start or the standstill has left behind is over."""
    return max(WARM_SECONDS, 1.5 * setting.interval)


def _cpu(one: Contestant, fleet: Fleet, seconds: float) -> Used:
    failed = one.failed()
    time.sleep(0.5)  # what it did to answer that is over
    used, began = one.child.cpu_seconds(), time.monotonic()
    pages = fleet.pages()
    time.sleep(seconds)
    used, took = one.child.cpu_seconds() - used, time.monotonic() - began
    pages = fleet.pages() - pages
    return Used(used / max(1, pages) * 1e6, used / took, pages / took, one.failed() - failed)


def _looks(one: Contestant, endpoints: int, seconds: float) -> list[Look]:
    """What a reader sees at random times, seldom enough that the scraper is not busy with the reader."""
    found = []
    began = time.monotonic()
    for moment in moments(seconds, max(0.2, endpoints / 1500), Random(11)):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        found.append(Look(time.monotonic() - began, one.ages()))
    return found
