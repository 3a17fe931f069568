"""Replays a recorded workload through the picker: seconds to first token and prefix hits of each profile.

    make bench-routing [ARGS='--profiles least-cost --repeats 1']

The workload is the Mooncake conversation trace (kvcache-ai/Mooncake, FAST25-release/traces, Apache-2.0), which is not
part of this repository: set its path by `--trace` or MOONCAKE_TRACE. Eight servers of 6,000 blocks of 512 tokens
prefill 20,480 uncached tokens per second, first come, first served; requests arrive three times as fast as recorded.
The first table is without decoding, as in the published comparison; the second with the recorded answers, in batches.

`hits` is the ratio of the prompt blocks that a server found in its cache, `of ideal` its ratio to that of one unlimited
shared cache. The figures of a profile are means over runs that break ties differently.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from agent.emulator.config import EmulatorConfig
from agent.pick.profile import build
from agent.prefix.index import PrefixIndex
from agent.profiles import PRESETS
from agent.state.prefill_rate import RateLimits
from agent.state.store import RoutingStore
from tests.bench.replay import (
    Arrival,
    ProfileRouter,
    ReplayFleet,
    ReplayResult,
    Router,
    ideal_hit_ratio,
    least_requests,
    mooncake,
    replay,
    round_robin,
)
from tests.bench.table import Column, Table, bar

TRACE = Path(__file__).resolve().parents[3] / "shared" / "traces" / "mooncake_conversation_trace.jsonl"
RATE = 20_480.0
BLOCK_TOKENS = 512  # of the trace, the servers' caches and the index
STALE_AFTER_SECONDS = 5.0
BASELINES: dict[str, Router] = {"round robin": round_robin, "least requests": least_requests}
BAR_P90, BAR_HITS = 0.29, 0.90

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


def run(name: str, arrivals: Sequence[Arrival], fleet: ReplayFleet, limits: RateLimits, repeats: int) -> PolicyRuns:
    """Replay the workload with this policy: a profile `repeats` times, a baseline once, as its ties are not random."""
    results: list[ReplayResult] = []
    pick_seconds: float | None = None
    for repeat in range(1 if name in BASELINES else repeats):
        index = PrefixIndex()
        store = RoutingStore(
            "bench", stale_after=STALE_AFTER_SECONDS, rate=limits, prefix=index, index_block_tokens=BLOCK_TOKENS
        )
        if name in BASELINES:
            results.append(replay(arrivals, BASELINES[name], fleet, store))
            continue
        profile = ProfileRouter(build(PRESETS[name]), index, BLOCK_TOKENS, f"run {repeat} request")
        results.append(replay(arrivals, profile, fleet, store))
        pick_seconds = (pick_seconds or 0.0) + profile.cpu_seconds / len(arrivals) / repeats
    return PolicyRuns(name, results, pick_seconds)


def compare(
    arrivals: Sequence[Arrival], profiles: Sequence[str], fleet: ReplayFleet, limits: RateLimits, repeats: int
) -> dict[str, PolicyRuns]:
    """Run all policies and print a row for each; the result is keyed by policy."""
    ideal = ideal_hit_ratio(arrivals)
    table = Table(COLUMNS)
    found: dict[str, PolicyRuns] = {}
    for name in (*BASELINES, *profiles):
        found[name] = run(name, arrivals, fleet, limits, repeats)
        table.row(*found[name].row(found["round robin"], ideal))
    return found


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
    parser.add_argument("--profiles", default="blend,affinity,least-cost", help="profiles, separated by commas")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each profile")
    parser.add_argument("--requests", type=int, default=None, help="replay only the first N requests")
    parser.add_argument("--servers", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=6_000, help="cache blocks of a server")
    parser.add_argument("--speed", type=float, default=3.0, help="speed relative to the recording")
    parser.add_argument("--scrape-interval", type=float, default=1.0, help="seconds between two scrapes")
    parser.add_argument(
        "--rate", type=float, default=None, help="a fixed prefill rate (default: the agent estimates it)"
    )
    args = parser.parse_args(arguments)
    profiles = [name for name in args.profiles.split(",") if name]
    unknown = [name for name in profiles if name not in PRESETS]
    if unknown:
        parser.error(f"--profiles: unknown: {', '.join(unknown)}; choose from {', '.join(sorted(PRESETS))}")
    if not args.trace.is_file():
        print(f"The trace is not at {args.trace}: nothing to replay. Set its path by --trace or MOONCAKE_TRACE.")
        return 0
    start = time.monotonic()
    with args.trace.open(encoding="utf-8") as lines:
        arrivals = mooncake(lines, args.speed)[: args.requests]
    ideal = ideal_hit_ratio(arrivals)
    limits = RateLimits(fixed=args.rate)
    print(
        f"{len(arrivals):,} requests in {arrivals[-1].at:,.0f} s to {args.servers} servers x {args.blocks:,} blocks of "
        f"{BLOCK_TOKENS} tokens with {RATE:,.0f} tokens/s of prefill; ideal hit ratio {ideal:.3f}; "
        f"runs per profile: {args.repeats}"
    )
    for decoding in (False, True):
        print(f"\n{'With decoding: 8 ms per step and 0.2 ms per request in it' if decoding else 'Prefill only'}")
        fleet = ReplayFleet(server_config(args.blocks, decoding=decoding), args.servers, decoding, args.scrape_interval)
        found = compare(arrivals, profiles, fleet, limits, args.repeats)
        if not decoding and "least-cost" in found:
            print_bars(found, ideal)
    print(f"\n{time.monotonic() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
