"""More requests than a fleet can serve: what each priority gets without control, by the reference's rule, and by ours.

    make bench-overload [ARGS='--loads 2 --tables one-agent --requests 3000']

The workload is the Mooncake conversation trace (see bench-routing), in simulated time, on eight servers that prefill
and decode. It arrives at 1.6 and at 2 times what the fleet can do; each session has the priority -1, 0 or 10. There
is a table for each situation:

    one-agent      the three rules with one agent, and priority 10 alone on the fleet
    two-agents     the same with two agents that report to each other; requests reach them in turn
    callers        two callers of one band that send more than they get, and a small caller beside a large one
    unsaturated    six tenths of what the fleet can do, with and without flow control

`reference` is the flow control of the reference picker with its defaults, before the same picks. TTFT is that of the
requests that were served; `tokens/s` are input and output tokens while requests arrive.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from agent.flow.control import FlowLimits
from agent.requests.held_requests import HoldingSettings
from tests.bench.bench_routing import TRACE
from tests.bench.overload import (
    DEFAULT_RULES,
    NO_CONTROL,
    OURS,
    PRIORITIES,
    REFERENCE,
    Figures,
    OverloadRule,
    Run,
    Share,
    calls,
    fairness,
    figures,
    run,
)
from tests.bench.replay import Arrival, mooncake
from tests.bench.table import Column, Table, bar

# How many times the rate of the recording the fleet can do: without control the queues stay short up to here, and grow
# without bound at 5.5 times.
CAPACITY = 5.0
LOADS = (1.6, 2.0)
UNSATURATED_LOAD = 0.6
TABLES = ("one-agent", "two-agents", "callers", "unsaturated")
HIGHEST = PRIORITIES[0]
BAR_P90, BAR_TOKENS, BAR_HITS, BAR_JAIN, BAR_LAG, BAR_SMALL = 1.5, 0.97, 0.95, 0.99, 2.0, 1.2
TWO_AGENTS = 1.1  # the part by which the bars are wider with two agents
SMALL, LARGE = "small", "large"
EQUALS = ("one", "other")

COLUMNS = (
    Column("rule", 12),
    Column("priority", 8),
    Column("requests", 8, ",d"),
    Column("TTFT p50", 8, ".2f"),
    Column("p90", 7, ".2f"),
    Column("tokens/s", 9, ",.0f"),
    Column("hits", 5, ".3f"),
    Column("shed", 6, ",d"),
    Column("expired", 7, ",d"),
    Column("other refusals", 14, ",d"),
)


def add(table: Table, rule: str, of: str, found: Figures) -> None:
    """One row of the table."""
    refused = dict(found.refused)
    shed, expired = refused.pop("shed", 0), refused.pop("expired", 0)
    tokens = found.tokens_per_second
    table.row(rule, of, found.requests, found.p50, found.p90, tokens, found.hits, shed, expired, sum(refused.values()))


def add_all(table: Table, rule: str, result: Run) -> dict[int | None, Figures]:
    """The rows of a run: all requests, and each priority."""
    found: dict[int | None, Figures] = {None: figures(result)}
    add(table, rule, "all", found[None])
    for priority in PRIORITIES:
        found[priority] = figures(result, lambda call, priority=priority: call.priority == priority)  # type: ignore[misc]
        add(table, rule, str(priority), found[priority])
    return found


def compare(arrivals: Sequence[Arrival], agents: int, send: Callable[..., Run]) -> None:
    """The three rules, and the bars of ours."""
    sent = calls(arrivals)
    table = Table(COLUMNS)
    alone = figures(send([call for call in sent if call.priority == HIGHEST], DEFAULT_RULES[0], agents=agents))
    add(table, "alone", str(HIGHEST), alone)
    found = {rule.name: add_all(table, rule.name, send(sent, rule, agents=agents)) for rule in DEFAULT_RULES}
    none, reference, ours = found[NO_CONTROL], found[REFERENCE], found[OURS]
    wider = 1.0 if agents == 1 else TWO_AGENTS
    first, all_requests = ours[HIGHEST], ours[None]
    print(bar("p90 of priority 10 over its own alone", first.p90 / alone.p90, BAR_P90 * wider, format=".3f"))
    kept = all_requests.tokens_per_second / none[None].tokens_per_second
    print(bar("tokens/s over those without control", kept, BAR_TOKENS / wider, maximum=False, format=".3f"))
    hits = all_requests.hits / none[None].hits
    print(bar("prefix hits over those without control", hits, BAR_HITS / wider, maximum=False, format=".3f"))
    refused = sum(
        count
        for priority in PRIORITIES
        if priority >= 0
        for reason, count in ours[priority].refused.items()
        if reason != "expired"
    )
    print(bar("requests of priority >= 0 refused, expiries apart", refused, 0, format=".0f"))
    print(bar("p90 of priority 10 over the reference's", first.p90 / reference[HIGHEST].p90, 1.0, format=".3f"))
    kept = all_requests.tokens_per_second / reference[None].tokens_per_second
    print(bar("tokens/s over the reference's", kept, 1.0, maximum=False, format=".3f"))


def compare_callers(arrivals: Sequence[Arrival], send: Callable[..., Run]) -> None:
    """Two callers of one band, equal and not."""
    ours = DEFAULT_RULES[-1]
    table = Table(COLUMNS)
    equals = send(calls(arrivals, [Share(0, caller) for caller in EQUALS]), ours)
    for caller in EQUALS:
        add(table, caller, "0", figures(equals, lambda call, caller=caller: call.caller == caller))  # type: ignore[misc]
    found = fairness(equals, EQUALS)
    sent = calls(arrivals, [Share(0, SMALL), Share(0, LARGE, 10.0)])
    both = send(sent, ours)
    small = figures(both, lambda call: call.caller == SMALL)
    add(table, SMALL, "0", small)
    add(table, LARGE, "0", figures(both, lambda call: call.caller == LARGE))
    alone = figures(send([call for call in sent if call.caller == SMALL], ours))
    add(table, "small, alone", "0", alone)
    print(f"two equal callers wait both for {found.seconds:.0f} s")
    print(bar("Jain's index of their tokens", found.jain, BAR_JAIN, maximum=False))
    print(bar("service lag in quanta", found.lag / FlowLimits().quantum, BAR_LAG, format=".2f"))
    print(bar("p90 of a small caller over its own alone", small.p90 / alone.p90, BAR_SMALL, format=".3f"))


def compare_unsaturated(arrivals: Sequence[Arrival], send: Callable[..., Run]) -> None:
    """With and without flow control, where the fleet can do all that is sent."""
    sent = calls(arrivals)
    table = Table(COLUMNS)
    off = add_all(table, "off", send(sent, DEFAULT_RULES[0]))
    result = send(sent, OverloadRule(OURS, HoldingSettings()))
    on = add_all(table, "on", result)
    held = sum(row.dispatched_at > row.call.at for row in result.served)
    print(f"{held:,} of {len(sent):,} requests were held")
    for of in (None, HIGHEST):
        name = "all" if of is None else f"priority {of}"
        print(f"p90 of {name}, on over off: {on[of].p90 / off[of].p90:.3f}")


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; always 0, also for a missed bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--trace", type=Path, default=Path(os.environ.get("MOONCAKE_TRACE", TRACE)), help="the trace, JSON lines"
    )
    parser.add_argument("--tables", default=",".join(TABLES), help="tables, separated by commas")
    parser.add_argument("--loads", default=",".join(map(str, LOADS)), help="loads, relative to what the fleet can do")
    parser.add_argument("--capacity", type=float, default=CAPACITY, help="what it can do, relative to the recording")
    parser.add_argument("--requests", type=int, default=None, help="replay only the first N requests")
    parser.add_argument("--scrape-interval", type=float, default=1.0, help="seconds between two scrapes")
    parser.add_argument(
        "--rate", type=float, default=None, help="a fixed prefill rate (default: the agent estimates it)"
    )
    args = parser.parse_args(arguments)
    send = partial(run, rate=args.rate, scrape_seconds=args.scrape_interval)
    tables = [name for name in args.tables.split(",") if name]
    unknown = [name for name in tables if name not in TABLES]
    if unknown:
        parser.error(f"--tables: unknown: {', '.join(unknown)}; choose from {', '.join(TABLES)}")
    loads = [float(load) for load in args.loads.split(",") if load]
    if not args.trace.is_file():
        print(f"The trace is not at {args.trace}: nothing to replay. Set its path by --trace or MOONCAKE_TRACE.")
        return 0
    start = time.monotonic()
    with args.trace.open(encoding="utf-8") as lines:
        recorded = mooncake(lines, args.capacity)[: args.requests]

    def at(load: float) -> list[Arrival]:
        arrivals = [each._replace(at=each.at / load) for each in recorded]
        print(f"{len(arrivals):,} requests in {arrivals[-1].at:,.0f} s, {load:g} times what the fleet can do")
        return arrivals

    for name in tables:
        if name == "unsaturated":
            print("\nA fleet that can do all that is sent")
            compare_unsaturated(at(UNSATURATED_LOAD), send)
            continue
        for load in loads:
            if name == "callers":
                print("\nTwo callers of one band")
                compare_callers(at(load), send)
            else:
                print("\nOne agent" if name == "one-agent" else "\nTwo agents that report to each other")
                compare(at(load), 1 if name == "one-agent" else 2, send)
    print(f"\n{time.monotonic() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
