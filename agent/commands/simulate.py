"""`igw simulate`: replays a trace of arrivals through the agent's demand and the HPA's formula."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.scaling.arrivals import STEP_SECONDS
from agent.scaling.demand import DemandSettings
from agent.scaling.hpa import HpaSettings
from agent.scaling.picture import Curve, Diagram, draw
from agent.scaling.simulated_pool import PoolModel
from agent.scaling.simulated_signals import Forecast, choices
from agent.scaling.simulation import (
    Outcome,
    SloRow,
    arrivals_of,
    by_target,
    cheapest,
    simulate,
    static_peak,
)
from agent.scaling.trace import MAX_BYTES, BadTrace, RateTrace, read_trace

HELP = """Replay a trace of arrivals through the agent's demand in replicas, the formula of the HPA and a start-up time
of replicas, and compare signals: pod-hours against those of a static peak, overflow, flaps. The trace is CSV or JSON
lines, plain or gzip: a time in seconds with a rate, or the time of each request.
docs/concepts/demand.md explains the columns.
Exit status: 0 printed, 1 the trace cannot be read, 2 usage error."""

_HEADER: Final = (
    f"{'replicas':>10}{'pod-hours':>11}{'of static':>11}{'overflow %':>12}"
    f"{'changes':>9}{'flaps':>7}{'longest wait s':>16}"
)
_NOISE: Final = {"none": 0.0, "poisson": 1.0}


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _target(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a part of a replica; write a number above 0, at most 1")
    return value


def _noise(text: str) -> float:
    return _NOISE[text] if text in _NOISE else _not_negative(text)


for _type, _name in ((_above_zero, "number"), (_not_negative, "number"), (_target, "target"), (_noise, "noise")):
    _type.__name__ = _name  # argparse writes it into its message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `igw simulate`."""
    settings, model = DemandSettings(), PoolModel(1.0)
    parser.add_argument(
        "trace", metavar="TRACE", help="the trace: CSV or JSON lines, plain or gzip; - is standard input"
    )
    parser.add_argument("--column", metavar="NAME", default="", help="the rate, where the trace has several")
    parser.add_argument(
        "--capacity", metavar="RATE", type=_above_zero, required=True, help="requests per second of one replica"
    )
    parser.add_argument(
        "--startup",
        metavar="SECONDS",
        type=_not_negative,
        default=model.startup_seconds,
        help=f"from the request of a replica until it serves (default: {model.startup_seconds:g})",
    )
    parser.add_argument(
        "--target",
        metavar="PART",
        type=_target,
        default=settings.target,
        help=f"used part of a replica that demand aims at (default: {settings.target:g})",
    )
    parser.add_argument(
        "--tolerance",
        metavar="UP,DOWN",
        default="0.02,0.05",
        help="tolerances of the HPA for demand; the other signals have its default of 0.1 (default: 0.02,0.05)",
    )
    parser.add_argument(
        "--noise",
        metavar="NOISE",
        type=_noise,
        default=0.0,
        help="noise of the arrivals: none, poisson, or their variance over their mean (default: none)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="seed of the noise (default: 1)")
    parser.add_argument("--min-replicas", metavar="N", type=int, default=1, help="of the HPA (default: 1)")
    parser.add_argument("--max-replicas", metavar="N", type=int, help="of the HPA (default: twice the static peak)")
    parser.add_argument(
        "--slots",
        metavar="N",
        type=_above_zero,
        default=model.slots,
        help=f"requests that a replica runs at its capacity (default: {model.slots:g})",
    )
    parser.add_argument(
        "--slo",
        metavar="PERCENT",
        type=_not_negative,
        help="print how many replicas, at which target, keep the overflow at or below this, instead of the comparison",
    )
    parser.add_argument("--svg", metavar="FILE", help="also draw rate and replicas over time into this file")


def main(args: argparse.Namespace) -> int:
    """Print the comparison, or the table of an SLO; the exit status."""
    try:
        up, down = (_not_negative(part) for part in args.tolerance.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        return _refuse(f"--tolerance {args.tolerance}: write two numbers, such as 0.02,0.05", 2)
    try:
        trace = read_trace(_read(args.trace), args.column)
    except (BadTrace, OSError) as error:
        return _refuse(f"{args.trace}: {error.strerror if isinstance(error, OSError) else error}", 1)
    model = PoolModel(args.capacity, args.startup, args.slots)
    peak = static_peak(trace, model)
    maximum = 2 * peak if args.max_replicas is None else args.max_replicas
    if not 0 <= args.min_replicas <= maximum or maximum < 1:
        return _refuse(f"--min-replicas {args.min_replicas} is not between 0 and --max-replicas ({maximum})", 2)
    hpa = HpaSettings(args.min_replicas, maximum)
    settings = DemandSettings(args.target, startup_seconds=args.startup, drain_seconds=args.startup or 1.0)
    arrivals = arrivals_of(trace, args.noise, args.seed)
    print("\n".join(_headline(trace, model, peak)))
    if args.slo is not None:
        rows = by_target(trace, arrivals, model, settings, hpa, (up, down), args.slo / 100)
        print("\n".join(_slo_lines(rows, args.slo, peak)))
        outcomes = [row.outcome for row in rows]
    else:
        forecast = Forecast(arrivals, settings.lead_seconds)
        compared = choices(settings, (up, down), forecast)
        outcomes = [simulate(trace, arrivals, model, choice, hpa) for choice in compared]
        print("\n".join(_comparison(outcomes)))
    if args.svg:
        try:
            Path(args.svg).write_text(_picture(trace, model, outcomes), encoding="utf-8")
        except OSError as error:
            return _refuse(f"--svg {args.svg}: {error.strerror}", 1)
    return 0


def _refuse(message: str, status: int) -> int:
    print(f"igw simulate: {message}", file=sys.stderr)
    return status


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with Path(name).open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _headline(trace: RateTrace, model: PoolModel, peak: int) -> Iterable[str]:
    mean = sum(trace.rates) / len(trace.rates)
    what = f" of {trace.name}" if trace.name else ""
    yield (
        f"{trace.seconds / 3600:.1f} h{what}: mean {mean:.1f}, peak {max(trace.rates):.1f} requests/s; "
        f"{model.capacity:g} requests/s a replica, which starts in {model.startup_seconds:g} s"
    )
    yield f"static peak: {peak} replicas, {peak * trace.seconds / 3600:.1f} pod-hours, no overflow"
    yield ""


def _comparison(outcomes: Iterable[Outcome]) -> Iterable[str]:
    yield f"{'signal':<15}{_HEADER}"
    for each in outcomes:
        yield f"{each.name:<15}{_columns(each)}"


def _columns(each: Outcome) -> str:
    span = f"{each.least}-{each.largest}"
    wait = f"{each.longest_wait:.1f}"
    return (
        f"{span:>10}{each.pod_hours:>11.1f}{each.static_ratio:>11.3f}{100 * each.overflow:>12.3f}"
        f"{each.changes:>9}{each.flaps:>7}{wait:>16}"
    )


def _slo_lines(rows: list[SloRow], slo: float, peak: int) -> Iterable[str]:
    best = cheapest(rows)
    yield f"look-ahead demand, overflow of at most {slo:g} %"
    yield f"{'target':<15}{_HEADER}  holds"
    for row in rows:
        holds = "cheapest" if row is best else "yes" if row.holds else "no"
        yield f"{row.target:<15.2f}{_columns(row.outcome)}  {holds}"
    yield ""
    if best is None:
        yield f"no target holds it: keep {peak} replicas, or start replicas faster"
    else:
        used = best.outcome
        yield (
            f"target {best.target:g} holds it with {used.least} to {used.largest} replicas and "
            f"{100 * (1 - used.static_ratio):.0f} % fewer pod-hours than the static peak"
        )


def _picture(trace: RateTrace, model: PoolModel, outcomes: Iterable[Outcome]) -> str:
    needed = [rate / model.capacity for rate in trace.rates]
    replicas = [Curve(each.name, [float(count) for count in each.replicas]) for each in outcomes]
    panels = (
        Diagram("requests per second", [Curve(trace.name or "arrivals", trace.rates)]),
        *(Diagram(f"replicas: {curve.name}", [Curve("needed", needed), curve]) for curve in replicas),
    )
    hours = len(trace.rates) * STEP_SECONDS / 3600
    return draw("Simulated replicas", "0 h", f"{hours:.1f} h", panels)
