"""Replays workloads through the picker: seconds to first token and prefix hits of each profile.

    make bench-routing [ARGS='--tables prefill,two-agents --profiles least-cost --repeats 1']

The recorded workload is the Mooncake conversation trace (kvcache-ai/Mooncake, FAST25-release/traces, Apache-2.0), which
is not part of this repository: set its path by `--trace` or MOONCAKE_TRACE. Eight servers of 6,000 blocks of 512 tokens
prefill 20,480 uncached tokens per second, first come, first served; requests arrive three times as fast as recorded.
There is a table for each situation:

    prefill            without decoding, as in the published comparison
    decoding           with the recorded answers, in batches
    two-agents         as decoding; two agents that do not know each other get the requests in turn
    spread             as decoding, with arrivals spread over the steps of three seconds in which they are recorded
    two-replicas       the same with two replicas, which report their requests to each other
    at-once            two replicas and the recorded arrivals, ten of which come at one instant
    shared-prefixes    a generated workload of long shared prefixes, with decoding and 5 seconds between scrapes

`hits` is the ratio of the prompt blocks that a server found in its cache, `of ideal` its ratio to that of one unlimited
shared cache. The figures of a profile are means over runs that break ties differently.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from agent.emulator.config import EmulatorConfig
from agent.pick.profile import build
from agent.prefix.index import PrefixIndex
from agent.profiles import PRESETS
from agent.replicas.service import TICK_SECONDS
from agent.state.prefill_rate import RateLimits
from agent.state.store import RoutingStore
from tests.bench.replay import (
    Arrival,
    ProfileRouter,
    ReplayAgent,
    ReplayFleet,
    ReplayResult,
    Router,
    ideal_hit_ratio,
    least_requests,
    mooncake,
    replay,
    round_robin,
    spread,
)
from tests.bench.table import Column, Table, bar
from tests.bench.workloads import SharedPrefixes, shared_prefixes

TRACE = Path(__file__).resolve().parents[3] / "shared" / "traces" / "mooncake_conversation_trace.jsonl"
RATE = 20_480.0
BLOCK_TOKENS = 512  # of the trace, the servers' caches and the index
STALE_AFTER_INTERVALS = 5.0
BASELINES: dict[str, Router] = {"round robin": round_robin, "least requests": least_requests}
BAR_P90, BAR_HITS = 0.29, 0.90
RECORDING_STEP_SECONDS = 3.0  # of the trace: its requests are stamped every three seconds
BAR_REPLICAS = 1.05  # p90 of two replicas over that of one agent
# Its caches hold all prefixes at every server; without a bound on how long requests stay with a warm server, some of
# the servers get twice the work of others.
PREFIXES = SharedPrefixes(12, per_second=18.8)
PREFIXES_REQUESTS, PREFIXES_SCRAPE_SECONDS = 4_000, 5.0


class Situation(NamedTuple):
    """One table: its title, and what is replayed how."""

    title: str
    decoding: bool = True
    agents: int = 1
    recorded: bool = True
    exchange: bool = False
    spread: bool = False
    one_agent: str = ""  # the table that it is compared with


TABLES = {
    "prefill": Situation("Prefill only", decoding=False),
    "decoding": Situation("With decoding: 8 ms per step and 0.2 ms per request in it"),
    "two-agents": Situation("Two agents that do not know each other, with decoding", agents=2),
    "spread": Situation("Arrivals spread, with decoding", spread=True),
    "two-replicas": Situation(
        "Two replicas that report to each other, arrivals spread, with decoding",
        agents=2,
        exchange=True,
        spread=True,
        one_agent="spread",
    ),
    "at-once": Situation(
        "Two replicas that report to each other, with decoding", agents=2, exchange=True, one_agent="decoding"
    ),
    "shared-prefixes": Situation("Long shared prefixes, with decoding", recorded=False),
}

COLUMNS = (
    Column("TTFT in seconds", 16),
    Column("mean", 7, ".3f"),
    Column("p50", 7, ".3f"),
    Column("p90", 7, ".3f"),
    Column("p99", 7, ".3f"),
    Column("p90 / rr", 8, ".3f"),
    Column("hits", 6, ".3f"),
    Column("of ideal", 8, ".3f"),
    Column("predicted / served", 18, ".3f"),
    Column("requests a server", 17, ""),
    Column("learnt tokens/s", 17, ""),
    Column("us a pick", 9, ".0f"),
)


def server_config(blocks: int, *, decoding: bool) -> EmulatorConfig:
    """A server that only prefills, or one that also decodes in batches, with the same cache."""
    if not decoding:
        return EmulatorConfig.prefill_only(blocks=blocks, block_size=BLOCK_TOKENS, prefill_tokens_per_second=RATE)
    return EmulatorConfig(
        max_num_seqs=256,
        num_blocks=blocks + 1,
        block_size=BLOCK_TOKENS,
        max_model_len=blocks * BLOCK_TOKENS,
        prefill_tokens_per_second=RATE,
    )


class PolicyRuns:
    """The runs of one policy, and the means of their results."""

    def __init__(self, name: str, results: Sequence[ReplayResult], pick_seconds: float | None) -> None:
        self.name = name
        self.results = results
        self.pick_us = None if pick_seconds is None else pick_seconds * 1e6
        self.mean = fmean(result.mean for result in results)
        self.p50, self.p90, self.p99 = (
            fmean(result.percentile(rank) for result in results) for rank in (0.5, 0.9, 0.99)
        )
        self.hits = fmean(result.hit_ratio for result in results)

    def row(self, round_robin: PolicyRuns | None, ideal: float) -> tuple[str | float | None, ...]:
        """The row of the table."""
        counts = [count for result in self.results for count in result.requests.values()]
        rates = [rate for result in self.results for rate in result.rates]
        predicted = sum(result.predicted_hit_tokens for result in self.results)
        served = sum(result.served_hit_tokens for result in self.results)
        return (
            self.name,
            self.mean,
            self.p50,
            self.p90,
            self.p99,
            self.p90 / round_robin.p90 if round_robin else None,
            self.hits,
            self.hits / ideal if ideal else None,
            predicted / served if predicted and served else None,
            f"{min(counts):,} to {max(counts):,}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            self.pick_us,
        )


class Comparison(NamedTuple):
    """What the policies of one table are compared on: the workload, the servers and agents, and the runs of each."""

    arrivals: Sequence[Arrival]
    fleet: ReplayFleet
    agents: int
    limits: RateLimits
    repeats: int


def run(name: str, on: Comparison) -> PolicyRuns:
    """Replay the workload with this policy: a profile `repeats` times, a baseline once, as its ties are not random."""
    results: list[ReplayResult] = []
    cpu_seconds = 0.0
    repeats = 1 if name in BASELINES else on.repeats
    for repeat in range(repeats):
        routers: list[Router] = []
        agents: list[ReplayAgent] = []
        for number in range(on.agents):
            index = PrefixIndex()
            if name in BASELINES:
                routers.append(BASELINES[name])
            else:
                request_name = f"run {repeat} request" if not number else f"run {repeat} agent {number} request"
                routers.append(ProfileRouter(build(PRESETS[name]), index, BLOCK_TOKENS, request_name))
            stale_after = STALE_AFTER_INTERVALS * on.fleet.scrape_seconds
            store = RoutingStore(
                "bench", stale_after=stale_after, rate=on.limits, prefix=index, index_block_tokens=BLOCK_TOKENS
            )
            agents.append(ReplayAgent(routers[-1], store, index))
        results.append(replay(on.arrivals, agents, on.fleet))
        cpu_seconds += sum(router.cpu_seconds for router in routers if isinstance(router, ProfileRouter))
    return PolicyRuns(name, results, cpu_seconds / len(on.arrivals) / repeats if cpu_seconds else None)


def compare(on: Comparison, profiles: Sequence[str]) -> dict[str, PolicyRuns]:
    """Run all policies and print a row for each; the result is keyed by policy."""
    ideal = ideal_hit_ratio(on.arrivals)
    table = Table(COLUMNS)
    found: dict[str, PolicyRuns] = {}
    for name in (*BASELINES, *profiles):
        found[name] = run(name, on)
        table.row(*found[name].row(found["round robin"], ideal))
    return found


def print_relative_bars(found: dict[str, PolicyRuns], other: str) -> None:
    """The bars of `least-cost`: no worse than the profile `other`, where both were run."""
    if "least-cost" in found and other in found:
        ours, theirs = found["least-cost"], found[other]
        print(bar(f"least-cost mean over {other}'s", ours.mean / theirs.mean, 1.0))
        print(bar(f"least-cost p90 over {other}'s", ours.p90 / theirs.p90, 1.0))


def print_bars(found: dict[str, PolicyRuns], ideal: float) -> None:
    """The bars of `least-cost`, its results, and their range over the runs."""
    ours = found["least-cost"]
    base = found["round robin"].p90
    print(bar("least-cost p90 over round robin's", ours.p90 / base, BAR_P90))
    print(bar("least-cost hits over the ideal", ours.hits / ideal, BAR_HITS, maximum=False))
    if "affinity" in found:
        print(bar("least-cost p90 over affinity's", ours.p90 / found["affinity"].p90, 1.0))
    ratios = [result.percentile(0.9) / base for result in ours.results]
    shares = [result.hit_ratio / ideal for result in ours.results]
    print(
        f"least-cost, single runs: p90 {min(ratios):.3f} to {max(ratios):.3f} of round robin's, "
        f"hits {min(shares):.3f} to {max(shares):.3f} of the ideal"
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; always 0, also for a missed bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--trace", type=Path, default=Path(os.environ.get("MOONCAKE_TRACE", TRACE)), help="the trace, JSON lines"
    )
    parser.add_argument("--tables", default=",".join(TABLES), help="tables, separated by commas")
    parser.add_argument("--profiles", default="blend,affinity,least-cost", help="profiles, separated by commas")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each profile")
    parser.add_argument("--requests", type=int, default=None, help="replay only the first N requests")
    parser.add_argument("--servers", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=6_000, help="cache blocks of a server")
    parser.add_argument("--speed", type=float, default=3.0, help="speed relative to the recording")
    parser.add_argument(
        "--scrape-interval",
        type=float,
        default=None,
        help=f"seconds between two scrapes (default: 1; shared-prefixes {PREFIXES_SCRAPE_SECONDS:g})",
    )
    parser.add_argument(
        "--rate", type=float, default=None, help="a fixed prefill rate (default: the agent estimates it)"
    )
    args = parser.parse_args(arguments)
    tables, profiles = (
        _chosen(parser, "tables", args.tables, TABLES),
        _chosen(parser, "profiles", args.profiles, PRESETS),
    )
    start = time.monotonic()
    recorded: list[Arrival] = []
    if not args.trace.is_file():
        print(f"The trace is not at {args.trace}: nothing to replay. Set its path by --trace or MOONCAKE_TRACE.")
        tables = [name for name in tables if not TABLES[name].recorded]
    else:
        with args.trace.open(encoding="utf-8") as lines:
            recorded = mooncake(lines, args.speed)[: args.requests]
    all_found: dict[str, dict[str, PolicyRuns]] = {}
    for name in tables:
        title, decoding, agents, of_trace, exchange, spread_out, one_agent = TABLES[name]
        if of_trace:
            arrivals, interval = recorded, args.scrape_interval or 1.0
            if spread_out:
                arrivals = spread(recorded, RECORDING_STEP_SECONDS / args.speed)
        else:
            count = min(args.requests or PREFIXES_REQUESTS, PREFIXES_REQUESTS)
            arrivals = shared_prefixes(PREFIXES, count, BLOCK_TOKENS, seed=1)
            interval = args.scrape_interval or PREFIXES_SCRAPE_SECONDS
        ideal = ideal_hit_ratio(arrivals)
        print(f"\n{title}")
        print(
            f"{len(arrivals):,} requests in {arrivals[-1].at:,.0f} s to {args.servers} servers x {args.blocks:,} "
            f"blocks of {BLOCK_TOKENS} tokens with {RATE:,.0f} tokens/s of prefill; ideal hit ratio {ideal:.3f}; "
            f"{interval:g} s between scrapes; runs per profile: {args.repeats}"
        )
        fleet = ReplayFleet(
            server_config(args.blocks, decoding=decoding),
            args.servers,
            decoding,
            interval,
            exchange_seconds=TICK_SECONDS if exchange else None,
        )
        found = compare(Comparison(arrivals, fleet, agents, RateLimits(fixed=args.rate), args.repeats), profiles)
        if name == "prefill" and "least-cost" in found:
            print_bars(found, ideal)
        if name == "two-agents":
            print_relative_bars(found, "blend")
        all_found[name] = found
        if one_agent in all_found:
            for profile in profiles:
                ratio = found[profile].p90 / all_found[one_agent][profile].p90
                print(bar(f"{profile} p90 over one agent's", ratio, BAR_REPLICAS))
        if name == "shared-prefixes":
            print_relative_bars(found, "affinity")
    print(f"\n{time.monotonic() - start:.0f} s in all")
    return 0


def _chosen(parser: argparse.ArgumentParser, option: str, text: str, valid: Mapping[str, object]) -> list[str]:
    """The names in `text`, separated by commas; exits with a message where one is not valid."""
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in valid]
    if unknown:
        parser.error(f"--{option}: unknown: {', '.join(unknown)}; choose from {', '.join(sorted(valid))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
