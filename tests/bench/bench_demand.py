"""Replays production rates through the demand and the HPA's formula: pod-hours and overflow, beside a reactive HPA.

    make bench-demand [ARGS='--series m-large --variance 1']

The rates are those of ServeGen (alibaba/ServeGen, Apache-2.0), summed over its clients, in windows of 10 minutes over
14 days. They are not part of this repository: set their path by `--trace` or SERVEGEN_RATES. Replicas start in 300 s.
`reactive` is the mean of the last minute over the capacity at a target of 0.8, with the HPA's tolerance of 0.1. `of
static` is the part of the pod-hours of a static peak. The last lines have a step of two replicas and a cold start.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from agent.scaling.demand import DemandSettings
from agent.scaling.hpa import HpaSettings
from agent.scaling.simulated_pool import PoolModel
from agent.scaling.simulated_signals import DemandSignal, Forecast, SignalChoice, choices
from agent.scaling.simulation import arrivals_of, simulate, static_peak
from agent.scaling.trace import RateTrace, read_trace


class Series(NamedTuple):
    """A column of the trace, and the requests per second of one replica."""

    column: str
    capacity: float


SERIES: Final = {
    "m-large": Series("language_m-large_rps", 10.0),
    "m-mid": Series("language_m-mid_rps", 25.0),
    "m-small": Series("language_m-small_rps", 50.0),
    "deepseek-r1": Series("reason_deepseek-r1_rps", 1.0),
}
TOLERANCES: Final = (0.02, 0.05)
REACTIVE: Final = "reactive 0.8"


def compared(forecast: Forecast, *, all_signals: bool) -> list[SignalChoice]:
    """The rows of one series."""
    reactive = DemandSettings(target=0.8, look_ahead=False)
    rows = [SignalChoice(REACTIVE, partial(DemandSignal, reactive, forecast))]
    for target in (0.85, 0.90):
        signal = partial(DemandSignal, DemandSettings(target=target), forecast)
        rows.append(SignalChoice(f"look-ahead {target:.2f}", signal, TOLERANCES))
    if all_signals:
        rows.extend(choices(DemandSettings(), TOLERANCES, forecast)[:-1])
    return rows


def table(name: str, trace: RateTrace, capacity: float, variance: float, seed: int) -> None:
    """Print one series."""
    model = PoolModel(capacity)
    arrivals = arrivals_of(trace, variance, seed)
    hpa = HpaSettings(maximum=2 * static_peak(trace, model))
    forecast = Forecast(arrivals, DemandSettings().lead_seconds)
    for choice in compared(forecast, all_signals=variance == 1.0):
        found = simulate(trace, arrivals, model, choice, hpa)
        print(
            f"{name:<12}{variance:>9g}  {choice.name:<16}{found.static_ratio:>10.4f}{100 * found.overflow:>12.4f}"
            f"{found.changes:>9}{found.flaps:>7}{found.longest_wait:>10.0f}",
            flush=True,
        )


def step_and_backlog() -> None:
    """Print a step of two replicas with a cold start of 240 s, and a backlog of ten minutes after a cold start."""
    model = PoolModel(10.0, 240.0)
    settings = DemandSettings(target=0.9, startup_seconds=240.0, drain_seconds=240.0)
    for after in (31.0, 35.0):
        trace = RateTrace("", (after - 20.0,) * 80 + (after,) * 240)
        ideal = math.ceil(after / model.capacity / settings.target)
        over, late = 0, 0
        for seed in range(20):
            arrivals = arrivals_of(trace, 1.0, seed)
            signal = partial(DemandSignal, settings, Forecast(arrivals, settings.lead_seconds))
            found = simulate(trace, arrivals, model, SignalChoice("step", signal, TOLERANCES), HpaSettings(maximum=100))
            over = max(over, max(found.replicas) - ideal)
            late = max(late, next(at for at, count in enumerate(found.replicas) if at >= 80 and count >= ideal) - 80)
        print(f"step of 2 replicas to {ideal}, 20 seeds: at most {over} above, requested within {15 * late} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", default=os.environ.get("SERVEGEN_RATES", ""), help="the rates (CSV)")
    parser.add_argument("--series", default=",".join(SERIES), help="which of them")
    parser.add_argument("--variance", default="1,4", help="variances over the mean of the arrivals; 1: Poisson")
    parser.add_argument("--seed", type=int, default=1, help="of the noise")
    args = parser.parse_args(arguments)
    if not args.trace:
        print("no trace: set --trace or SERVEGEN_RATES to the rates of ServeGen", file=sys.stderr)
    else:
        data = Path(args.trace).read_bytes()
        print(f"{'series':<12}{'variance':>9}  {'signal':<16}{'of static':>10}{'overflow %':>12}{'changes':>9}", end="")
        print(f"{'flaps':>7}{'wait s':>10}")
        for name in args.series.split(","):
            for variance in map(float, args.variance.split(",")):
                column, capacity = SERIES[name]
                table(name, read_trace(data, column), capacity, variance, args.seed)
    step_and_backlog()
    return 0


if __name__ == "__main__":
    sys.exit(main())
