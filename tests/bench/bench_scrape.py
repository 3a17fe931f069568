"""The CPU cost of scraping and the age of readings, compared with Prometheus on the same fleet.

    .venv/bin/python -m tests.bench.bench_scrape [--only second,growth] [--seconds 4] [--rounds 5] [--json]

The page is a recorded one of a busy vLLM (73 kB, 680 samples). nginx serves it on loopback addresses; each page differs
from the previous one in 290 samples, most of the readings among them. The agent is a whole `igw run` with one pool;
every figure includes its health and model probes. Agent and Prometheus take turns on the same addresses: one is paused
while the other is measured, and each turn begins with a warm-up.

CPU time is that of the process as the kernel counts it, without nginx. Ages are read at random times from `/v1/state`
and from Prometheus's query API, not while CPU time is measured. Needs nginx and prometheus.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from agent.engines import engine
from agent.engines.mapping import Extractor
from tests.bench.age_picture import ChartPanel, svg
from tests.bench.machine_speed import MachineSpeed
from tests.bench.nginx_fleet import PAGE, FleetSize, NginxFleet
from tests.bench.pages import sequence
from tests.bench.programs import ROOT, machine_seconds, missing, own_seconds, prepare_process
from tests.bench.scrape_loop import measured
from tests.bench.table import Column, Table
from tests.bench.turns import MeasurementPlan, ScraperCost, measure, report

PICTURE = ROOT / "out" / "age-over-time.svg"
BAR_SCAN_US, BAR_LOOP_US, BAR_OVER_PROMETHEUS = 40.0, 125.0, 0.1
BAR_AGE = 1.1  # p99 of the age over the interval
SECOND = FleetSize("second", 1000, 1.0)
FAST = FleetSize("fast", 100, 0.05)
BAR_CORES = {SECOND: 0.2, FAST: 0.3}
BAR_MIB = {SECOND: 200.0}
# All three have 1,000 scrapes per second and differ in the number of endpoints. Each scrape has one health probe and
# every tenth a model probe, so that the work per scrape is equal.
GROWTH = (
    FleetSize("100", 100, 0.1, health_interval=0.1, models_interval=1.0),
    FleetSize("1000", 1000, 1.0),
    FleetSize("10000", 10_000, 10.0, health_interval=10.0, models_interval=100.0),
)
BAR_GROWTH = 1.1  # linear growth, with a tenth for noise
ROWS = ("scan", "loop", "second", "fast", "growth")


def scan_us(rounds: int) -> float:
    """CPU microseconds to extract the readings of a page, with changing pages as in production."""
    pages = list(sequence(PAGE.read_bytes(), 64))
    extractor = Extractor(engine("vllm"))
    found = []
    for _ in range(rounds + 1):
        start = time.process_time()
        for _ in range(10):
            for page in pages:
                extractor.extract(page, whole=True)
        found.append((time.process_time() - start) / (10 * len(pages)))
    return median(found[1:]) * 1e6


def loop_us(folder: Path, fleet: NginxFleet, plan: MeasurementPlan) -> float:
    """CPU microseconds per scrape of the scrape loop and the store alone."""
    found = []
    for number in range(plan.rounds):
        report(f"the scrape loop alone, run {number + 1} of {plan.rounds}")
        plan.speed.sample()
        found.append(measured(folder, fleet.port, plan.seconds).cpu_us)
    return median(found)


class FigureTable:
    """The table: the agent's figure, the other one, their ratio, the bar, and whether it is met; also as `figures`."""

    def __init__(self, *, quiet: bool) -> None:
        self.figures: list[dict[str, str | float | None]] = []
        self._quiet = quiet
        self._table: Table | None = None

    def row(self, what: str, ours: float, theirs: float | None = None, *, maximum: float | None = None) -> None:
        """A row whose bar is the maximum of `ours`."""
        self._add(what, ours, theirs, maximum, ours)

    def ratio(self, what: str, ours: float, theirs: float, *, maximum: float) -> None:
        """A row whose bar is the maximum of the ratio."""
        self._add(what, ours, theirs, maximum, ours / theirs)

    def _add(self, what: str, ours: float, theirs: float | None, maximum: float | None, value: float) -> None:
        over = None if theirs is None else ours / theirs
        verdict = "" if maximum is None else "met" if value <= maximum else "MISSED"
        self.figures.append(
            {"what": what, "agent": ours, "beside": theirs, "ratio": over, "bar": maximum, "verdict": verdict}
        )
        if self._quiet:
            return
        if self._table is None:
            self._table = Table(
                [Column("", 52), Column("agent", 9, ".4g"), Column("beside it", 10, ".4g"), Column("ratio", 7, ".3f"),
                 Column("bar", 6, "g"), Column("", 6)]
            )  # fmt: skip
        self._table.row(what, ours, theirs, over, maximum, verdict)


def show_fleet(table: FigureTable, size: FleetSize, costs: Mapping[str, ScraperCost]) -> None:
    """The rows of a fleet that the agent and Prometheus scrape."""
    ours, theirs = costs["agent"], costs["Prometheus"]
    if size is SECOND:
        what = "CPU per scrape, us (the bar is on the ratio)"
        table.ratio(what, ours.used.cpu_us, theirs.used.cpu_us, maximum=BAR_OVER_PROMETHEUS)
    table.row(f"{size.title}: cores", ours.used.cores, theirs.used.cores, maximum=BAR_CORES[size])
    due = size.endpoints / size.interval
    table.row(f"{size.title}: scrapes/s of {due:g} due", ours.used.rate, theirs.used.rate)
    table.row(f"{size.title}: MiB at most", ours.mib, theirs.mib, maximum=BAR_MIB.get(size))
    for what, part in (("p50", 0), ("p99", 1), ("largest", 2)):
        if ours.age is not None:
            shown = None if theirs.age is None else theirs.age[part] / size.interval
            maximum = BAR_AGE if what == "p99" else None
            table.row(f"{size.title}: {what} age / interval", ours.age[part] / size.interval, shown, maximum=maximum)


def show_growth(table: FigureTable, costs: Sequence[tuple[FleetSize, ScraperCost]]) -> None:
    """The rows of growing fleets, each compared with the fleet of a tenth of its size."""
    smaller: ScraperCost | None = None
    for size, cost in costs:
        each = cost.mib / size.endpoints * 1024
        if smaller is None:
            table.row(f"{size.title}: CPU per scrape, us", cost.used.cpu_us)
            table.row(f"{size.title}: KiB an endpoint", each)
        else:
            beside = smaller.mib / size.endpoints * 10 * 1024
            table.ratio(f"{size.title}: CPU per scrape, us", cost.used.cpu_us, smaller.used.cpu_us, maximum=BAR_GROWTH)
            table.ratio(f"{size.title}: KiB an endpoint", each, beside, maximum=BAR_GROWTH)
        if cost.age is not None:
            table.row(f"{size.title}: p99 age / interval", cost.age.p99 / size.interval, maximum=BAR_AGE)
        smaller = cost


def draw(compared: Mapping[FleetSize, Mapping[str, ScraperCost]]) -> None:
    """Write the picture of the compared fleets."""
    panels = [
        ChartPanel(size.title, size.interval, BAR_AGE * size.interval, {n: c.seconds for n, c in costs.items()})
        for size, costs in compared.items()
    ]
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(svg(panels), encoding="utf-8")
    print(f"age over time: {PICTURE.relative_to(ROOT)}", file=sys.stderr)


def bench(rows: Sequence[str], plan: MeasurementPlan, table: FigureTable) -> dict[FleetSize, dict[str, ScraperCost]]:
    """Fill the table; the costs on the fleets that Prometheus scraped too."""
    compared = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="igw-bench-")))
        folder.chmod(0o755)
        fleet = NginxFleet(folder / "fleet", stack)
        failed = 0.0
        if "scan" in rows:
            table.row("scan and extract a page, us", scan_us(plan.rounds), maximum=BAR_SCAN_US)
        if "loop" in rows:
            table.row("scrape loop and store alone, us per scrape", loop_us(folder, fleet, plan), maximum=BAR_LOOP_US)
        for size in (SECOND, FAST):
            if size.key in rows:
                compared[size] = measure(folder, fleet, size, plan, beside=True)
                failed += compared[size]["agent"].used.failed
                show_fleet(table, size, compared[size])
        if "growth" in rows:
            once = plan._replace(rounds=1)
            costs = [(size, measure(folder, fleet, size, once)["agent"]) for size in GROWTH]
            failed += sum(cost.used.failed for _, cost in costs)
            show_growth(table, costs)
        if failed:
            print(f"{failed:.0f} scrapes of the agent failed during the measurement")
    return compared


def main(arguments: list[str] | None = None) -> int:
    """Print the table; always 0, also for a missed bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows to measure: {','.join(ROWS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5, help="number of runs; the figure is their median")
    parser.add_argument("--age-seconds", type=float, default=10.0, help="duration of the age samples")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(arguments)
    rows = args.only.split(",")
    for row in rows:
        if row not in ROWS:
            parser.error(f"unknown row {row!r}; choose from {', '.join(ROWS)}")
    absent = missing("nginx", "prometheus")
    if absent:
        print(f"{' and '.join(absent)} not installed: `make packages` installs them")
        return 0
    prepare_process()
    start, machine, own = time.monotonic(), machine_seconds(), own_seconds()
    table, speed = FigureTable(quiet=args.json), MachineSpeed()
    compared = bench(rows, MeasurementPlan(args.seconds, args.rounds, args.age_seconds, speed), table)
    if compared:
        draw(compared)
    if args.json:
        print(json.dumps(table.figures, indent=1))
    else:
        took = time.monotonic() - start
        others = (machine_seconds() - machine - own_seconds() + own) / took
        print(f"medians of {args.rounds} runs of {args.seconds:g} s each; {took:.0f} s in all")
        print(f"other programs used {others:.2f} cores meanwhile; above 0.1, repeat on an idle machine")
        print(speed.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
