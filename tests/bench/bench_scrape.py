"""What scraping costs and how old readings are when they are read, beside Prometheus on the same fleet.

    .venv/bin/python -m tests.bench.bench_scrape [--only second,growth] [--seconds 4] [--rounds 5] [--json]

The page is the recorded one of a busy vLLM (73 kB, 680 samples). nginx serves it on loopback addresses; each page
differs from the one before in what is read from it, and in 290 samples altogether. The agent is `igw run`, whole, with
one pool; that it asks for health and models too is in every figure. Where Prometheus stands beside it, the two take
turns on the same addresses: one is held still while the other is measured, and each turn begins with a warm-up.

CPU time is what the kernel says that a process used, so nginx is in none of it. Ages are what a reader is told at
random times, by `/v1/state` and by Prometheus's query API; CPU time is not measured while they are asked. Needs nginx
and prometheus.
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
from tests.bench.children import ROOT, machine_seconds, missing, own_seconds, tidy
from tests.bench.fleet import PAGE, Fleet, Setting
from tests.bench.pace import Pace
from tests.bench.pages import sequence
from tests.bench.picture import Panel, svg
from tests.bench.scrape_loop import measured
from tests.bench.table import Column, Table
from tests.bench.turns import Cost, Plan, measure, say

PICTURE = ROOT / "out" / "age-over-time.svg"
BAR_SCAN_US, BAR_LOOP_US, BAR_OVER_PROMETHEUS = 40.0, 125.0, 0.1
BAR_AGE = 1.1  # p99 of the age at read, over the interval
SECOND = Setting("second", 1000, 1.0)
FAST = Setting("fast", 100, 0.05)
BAR_CORES = {SECOND: 0.2, FAST: 0.3}
BAR_MIB = {SECOND: 200.0}
# As many scrapes a second in all three: what differs is how many endpoints there are to keep in mind.
# Each is asked for health once a scrape and for its models every tenth, so that a scrape is the same work in all.
GROWTH = (
    Setting("100", 100, 0.1, health_interval=0.1, models_interval=1.0),
    Setting("1000", 1000, 1.0),
    Setting("10000", 10_000, 10.0, health_interval=10.0, models_interval=100.0),
)
BAR_GROWTH = 1.1  # linear, and a tenth for the noise of a machine
ROWS = ("scan", "loop", "second", "fast", "growth")


def scan_us(rounds: int) -> float:
    """CPU microseconds of one page, from its bytes to readings, as an endpoint's extractor meets them in turn."""
    pages = list(sequence(PAGE.read_bytes(), 64))
    extractor = Extractor(engine("vllm"))
    found = []
    for _ in range(rounds + 1):
        began = time.process_time()
        for _ in range(10):
            for page in pages:
                extractor.extract(page, whole=True)
        found.append((time.process_time() - began) / (10 * len(pages)))
    return median(found[1:]) * 1e6


def loop_us(folder: Path, fleet: Fleet, plan: Plan) -> float:
    """CPU microseconds per scrape of the scrape loop and the store, without the rest of the agent."""
    found = []
    for number in range(plan.rounds):
        say(f"the scrape loop alone, run {number + 1} of {plan.rounds}")
        plan.pace.look()
        found.append(measured(folder, fleet.port, plan.seconds).cpu_us)
    return median(found)


class Sheet:
    """The table of figures: ours, theirs, the ratio, the bar, and whether it was met; `figures` holds all of it."""

    def __init__(self, *, quiet: bool) -> None:
        self.figures: list[dict[str, str | float | None]] = []
        self._quiet = quiet
        self._table: Table | None = None

    def row(self, what: str, ours: float, theirs: float | None = None, *, most: float | None = None) -> None:
        """A row whose bar is the most that `ours` may be."""
        self._add(what, ours, theirs, most, ours)

    def ratio(self, what: str, ours: float, theirs: float, *, most: float) -> None:
        """A row whose bar is the most that the ratio may be."""
        self._add(what, ours, theirs, most, ours / theirs)

    def _add(self, what: str, ours: float, theirs: float | None, most: float | None, held: float) -> None:
        over = None if theirs is None else ours / theirs
        verdict = "" if most is None else "met" if held <= most else "MISSED"
        self.figures.append(
            {"what": what, "agent": ours, "beside": theirs, "ratio": over, "bar": most, "verdict": verdict}
        )
        if self._quiet:
            return
        if self._table is None:
            self._table = Table(
                [Column("", 52), Column("agent", 9, ".4g"), Column("beside it", 10, ".4g"), Column("ratio", 7, ".3f"),
                 Column("bar", 6, "g"), Column("", 6)]
            )  # fmt: skip
        self._table.row(what, ours, theirs, over, most, verdict)


def show_fleet(sheet: Sheet, setting: Setting, costs: Mapping[str, Cost]) -> None:
    """The rows of a fleet that both scrape; what stands beside the agent is Prometheus."""
    ours, theirs = costs["agent"], costs["Prometheus"]
    if setting is SECOND:
        what = "CPU per scrape, us (the bar is on the ratio)"
        sheet.ratio(what, ours.used.cpu_us, theirs.used.cpu_us, most=BAR_OVER_PROMETHEUS)
    sheet.row(f"{setting.title}: cores", ours.used.cores, theirs.used.cores, most=BAR_CORES[setting])
    due = setting.endpoints / setting.interval
    sheet.row(f"{setting.title}: scrapes/s of {due:g} due", ours.used.rate, theirs.used.rate)
    sheet.row(f"{setting.title}: MiB at most", ours.mib, theirs.mib, most=BAR_MIB.get(setting))
    for what, part in (("p50", 0), ("p99", 1), ("largest", 2)):
        if ours.age is not None:
            shown = None if theirs.age is None else theirs.age[part] / setting.interval
            most = BAR_AGE if what == "p99" else None
            sheet.row(f"{setting.title}: {what} age / interval", ours.age[part] / setting.interval, shown, most=most)


def show_growth(sheet: Sheet, costs: Sequence[tuple[Setting, Cost]]) -> None:
    """The rows of fleets that grow; what stands beside one is the fleet of a tenth of its size."""
    smaller: Cost | None = None
    for setting, cost in costs:
        each = cost.mib / setting.endpoints * 1024
        if smaller is None:
            sheet.row(f"{setting.title}: CPU per scrape, us", cost.used.cpu_us)
            sheet.row(f"{setting.title}: KiB an endpoint", each)
        else:
            beside = smaller.mib / setting.endpoints * 10 * 1024
            sheet.ratio(f"{setting.title}: CPU per scrape, us", cost.used.cpu_us, smaller.used.cpu_us, most=BAR_GROWTH)
            sheet.ratio(f"{setting.title}: KiB an endpoint", each, beside, most=BAR_GROWTH)
        if cost.age is not None:
            sheet.row(f"{setting.title}: p99 age / interval", cost.age.p99 / setting.interval, most=BAR_AGE)
        smaller = cost


def draw(compared: Mapping[Setting, Mapping[str, Cost]]) -> None:
    """Write the picture of the fleets that were compared."""
    panels = [
        Panel(setting.title, setting.interval, BAR_AGE * setting.interval, {n: c.seconds for n, c in costs.items()})
        for setting, costs in compared.items()
    ]
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(svg(panels), encoding="utf-8")
    print(f"age over time: {PICTURE.relative_to(ROOT)}", file=sys.stderr)


def bench(rows: Sequence[str], plan: Plan, sheet: Sheet) -> dict[Setting, dict[str, Cost]]:
    """Fill the sheet; what came out of the fleets that Prometheus scraped too."""
    compared = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="igw-bench-")))
        folder.chmod(0o755)
        fleet = Fleet(folder / "fleet", stack)
        failed = 0.0
        if "scan" in rows:
            sheet.row("scan and extract a page, us", scan_us(plan.rounds), most=BAR_SCAN_US)
        if "loop" in rows:
            sheet.row("scrape loop and store alone, us per scrape", loop_us(folder, fleet, plan), most=BAR_LOOP_US)
        for setting in (SECOND, FAST):
            if setting.key in rows:
                compared[setting] = measure(folder, fleet, setting, plan, beside=True)
                failed += compared[setting]["agent"].used.failed
                show_fleet(sheet, setting, compared[setting])
        if "growth" in rows:
            once = plan._replace(rounds=1)
            costs = [(setting, measure(folder, fleet, setting, once)["agent"]) for setting in GROWTH]
            failed += sum(cost.used.failed for _, cost in costs)
            show_growth(sheet, costs)
        if failed:
            print(f"{failed:.0f} scrapes of the agent failed while they were counted")
    return compared


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0 whether or not the bars were met, for a bench is read and not passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows to measure: {','.join(ROWS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind; the figure is their median")
    parser.add_argument("--age-seconds", type=float, default=10.0, help="how long ages are looked at")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(arguments)
    rows = args.only.split(",")
    for row in rows:
        if row not in ROWS:
            parser.error(f"there is no row {row!r}; there are {', '.join(ROWS)}")
    gone = missing("nginx", "prometheus")
    if gone:
        print(f"{' and '.join(gone)} not installed: `make packages` installs what is missing")
        return 0
    tidy()
    began, machine, own = time.monotonic(), machine_seconds(), own_seconds()
    sheet, pace = Sheet(quiet=args.json), Pace()
    compared = bench(rows, Plan(args.seconds, args.rounds, args.age_seconds, pace), sheet)
    if compared:
        draw(compared)
    if args.json:
        print(json.dumps(sheet.figures, indent=1))
    else:
        took = time.monotonic() - began
        others = (machine_seconds() - machine - own_seconds() + own) / took
        print(f"medians of {args.rounds} runs of {args.seconds:g} s each; {took:.0f} s in all")
        print(f"other programs took {others:.2f} cores meanwhile; above a tenth, measure again on a quiet machine")
        print(pace.said())
    return 0


if __name__ == "__main__":
    sys.exit(main())
