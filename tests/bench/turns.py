"""Measures the scrapers of one fleet in turns: one runs while the others are paused, after a warm-up."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

from tests.bench.ages import AgeSample, AgeSpread, by_second, sample_times, spread
from tests.bench.machine_speed import MachineSpeed
from tests.bench.nginx_fleet import FleetSize, NginxFleet, addresses
from tests.bench.scrapers import AgentScraper, MeasuredScraper, PrometheusScraper

WARM_SECONDS = 3.0
_SETTLED_WITHIN = 30.0


class CpuUse(NamedTuple):
    """CPU microseconds per scrape, cores, scrapes per second, and failed scrapes."""

    cpu_us: float
    cores: float
    rate: float
    failed: float


class ScraperCost(NamedTuple):
    """The cost of a scraper: CPU (median of the runs), peak MiB, and the ages of its readings, also for each second."""

    used: CpuUse
    mib: float
    age: AgeSpread | None
    seconds: Sequence[tuple[float, AgeSpread]]


class MeasurementPlan(NamedTuple):
    """The seconds of a run, the number of runs, the seconds of age samples, and the speed of the machine."""

    seconds: float
    rounds: int
    age_seconds: float
    speed: MachineSpeed


def report(text: str) -> None:
    """Print the progress to standard error."""
    print(f"  .. {text}", file=sys.stderr, flush=True)


def measure(
    folder: Path, fleet: NginxFleet, size: FleetSize, plan: MeasurementPlan, *, beside: bool = False
) -> dict[str, ScraperCost]:
    """The cost of the agent on this fleet, and with `beside` of Prometheus, by name."""
    place = folder / size.key
    place.mkdir()
    endpoints = addresses(fleet.port, size.endpoints)
    with contextlib.ExitStack() as stack:
        report(f"{size.title}: the agent starts")
        scrapers: list[MeasuredScraper] = [AgentScraper(place, endpoints, size, stack)]
        if beside:
            scrapers[0].child.pause()
            report(f"{size.title}: Prometheus starts")
            scrapers.append(PrometheusScraper(place, [{"targets": endpoints}], size.interval, stack))
            _settle(fleet, size.endpoints)
            scrapers[1].child.pause()
        return _take_turns(fleet, size, scrapers, plan)


def _settle(fleet: NginxFleet, endpoints: int) -> None:
    """Wait for six scrapes of each endpoint, within a limit: the first scrapes create the series and cost more."""
    first, end = fleet.pages(), time.monotonic() + _SETTLED_WITHIN
    while fleet.pages() - first < 6 * endpoints and time.monotonic() < end:
        time.sleep(0.2)


def _take_turns(
    fleet: NginxFleet, size: FleetSize, scrapers: Sequence[MeasuredScraper], plan: MeasurementPlan
) -> dict[str, ScraperCost]:
    runs: dict[str, list[CpuUse]] = {scraper.name: [] for scraper in scrapers}
    if len(scrapers) == 1:
        time.sleep(_warm(size))
    for number in range(plan.rounds):
        for scraper in scrapers:
            report(f"{size.title}: CPU of {scraper.name}, run {number + 1} of {plan.rounds}")
            plan.speed.sample()
            with _turn(scraper, size, scrapers):
                runs[scraper.name].append(_cpu(scraper, fleet, max(plan.seconds, 1.2 * size.interval)))
    found = {}
    for scraper in scrapers:
        report(f"{size.title}: ages at {scraper.name}")
        # Before the ages are read, which needs memory too.
        mib = scraper.child.memory_bytes() / 2**20
        with _turn(scraper, size, scrapers):
            samples = _age_samples(scraper, size.endpoints, max(plan.age_seconds, 1.2 * size.interval))
        used = CpuUse(*(median(column) for column in zip(*runs[scraper.name], strict=True)))
        found[scraper.name] = ScraperCost(used, mib, spread(samples), by_second(samples))
    return found


@contextlib.contextmanager
def _turn(scraper: MeasuredScraper, size: FleetSize, scrapers: Sequence[MeasuredScraper]) -> Iterator[None]:
    """Let one scraper run and warm up; pause it afterwards if there are others."""
    alone = len(scrapers) == 1
    if not alone:
        scraper.child.resume()
        time.sleep(_warm(size))
    yield
    if not alone:
        scraper.child.pause()


def _warm(size: FleetSize) -> float:
    """Seconds until the effects of a start or a pause are over."""
    return max(WARM_SECONDS, 1.5 * size.interval)


def _cpu(scraper: MeasuredScraper, fleet: NginxFleet, seconds: float) -> CpuUse:
    failed = scraper.failed()
    time.sleep(0.5)  # until the work for that answer is over
    used, start = scraper.child.cpu_seconds(), time.monotonic()
    pages = fleet.pages()
    time.sleep(seconds)
    used, took = scraper.child.cpu_seconds() - used, time.monotonic() - start
    pages = fleet.pages() - pages
    return CpuUse(used / max(1, pages) * 1e6, used / took, pages / took, scraper.failed() - failed)


def _age_samples(scraper: MeasuredScraper, endpoints: int, seconds: float) -> list[AgeSample]:
    """Read the ages at random times, rarely enough that this does not load the scraper."""
    found = []
    start = time.monotonic()
    for moment in sample_times(seconds, max(0.2, endpoints / 1500), Random(11)):
        time.sleep(max(0.0, start + moment - time.monotonic()))
        found.append(AgeSample(time.monotonic() - start, scraper.ages()))
    return found
