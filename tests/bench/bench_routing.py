"""Replays a recorded workload through the picker: seconds to first token and prefix hits of each profile.

    make bench-routing [ARGS='--profiles least-cost --repeats 1']

The workload is the Mooncake conversation trace (kvcache-ai/Mooncake, FAST25-release/traces, Apache-2.0), which is not
part of this repository: `--trace` or MOONCAKE_TRACE says where it lies. Eight servers of 6,000 blocks of 512 tokens
prefill 20,480 uncached tokens a second, first come first served, while requests arrive three times as fast as recorded.
First without decoding, as in the published comparison, then with requests that write what was recorded, in batches.

`hits` are blocks of prompts that a server found in its cache over all blocks, `of ideal` the same over what one
endless cache for all would have held. A profile's figures are means over runs that differ in how ties are broken.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from agent.emulator.settings import Settings
from agent.pick.profile import build
from agent.prefix.index import PrefixIndex
from agent.profiles import PRESETS
from agent.state.prefill_rate import RateLimits
from agent.state.store import RoutingStore
from tests.bench.replay import (
    Arrival,
    ByProfile,
    Chooser,
    Fleet,
    Outcome,
    ideal_hit_ratio,
    least_requests,
    mooncake,
    replay,
    round_robin,
)
from tests.bench.table import Column, Table, bar

TRACE = Path(__file__).resolve().parents[3] / "shared" / "traces" / "mooncake_conversation_trace.jsonl"
RATE = 20_480.0
BLOCK_TOKENS = 512  # of the trace, and so of the servers' caches and of the index here
STALE_AFTER_SECONDS = 5.0
BASELINES: dict[str, Chooser] = {"round robin": round_robin, "least requests": least_requests}
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


def settings(blocks: int, *, decoding: bool) -> Settings:
    """A server that only prefills, or one that batches as the emulator's defaults do, with the same cache."""
    if not decoding:
        return Settings.prefill_only(blocks=blocks, block_size=BLOCK_TOKENS, prefill_tokens_per_second=RATE)
    return Settings(
        max_num_seqs=256,
        num_blocks=blocks + 1,
        block_size=BLOCK_TOKENS,
        max_model_len=blocks * BLOCK_TOKENS,
        prefill_tokens_per_second=RATE,
    )


class Runs:
    """The runs of one policy, and the means of what they gave."""

    def __init__(self, name: str, outcomes: Sequence[Outcome], pick_seconds: float | None) -> None:
        self.name = name
        self.outcomes = outcomes
        self.pick_us = None if pick_seconds is None else pick_seconds * 1e6
        self.mean = fmean(one.mean for one in outcomes)
        self.p50, self.p90, self.p99 = (fmean(one.percentile(rank) for one in outcomes) for rank in (0.5, 0.9, 0.99))
        self.hits = fmean(one.hit_ratio for one in outcomes)

    def row(self, round_robin: Runs | None, ideal: float) -> tuple[str | float | None, ...]:
        """The row of the table."""
        counts = [count for one in self.outcomes for count in one.requests.values()]
        rates = [rate for one in self.outcomes for rate in one.rates]
        predicted = sum(one.predicted_hit_tokens for one in self.outcomes)
        served = sum(one.served_hit_tokens for one in self.outcomes)
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


def run(name: str, arrivals: Sequence[Arrival], fleet: Fleet, limits: RateLimits, repeats: int) -> Runs:
    """Replay the workload by this policy, a profile as often as asked, a baseline once: it breaks no ties by chance."""
    outcomes: list[Outcome] = []
    pick_seconds: float | None = None
    for repeat in range(1 if name in BASELINES else repeats):
        index = PrefixIndex()
        store = RoutingStore(
            "bench", stale_after=STALE_AFTER_SECONDS, rate=limits, prefix=index, index_block_tokens=BLOCK_TOKENS
        )
        if name in BASELINES:
            outcomes.append(replay(arrivals, BASELINES[name], fleet, store))
            continue
        profile = ByProfile(build(PRESETS[name]), index, BLOCK_TOKENS, f"run {repeat} request")
        outcomes.append(replay(arrivals, profile, fleet, store))
        pick_seconds = (pick_seconds or 0.0) + profile.cpu_seconds / len(arrivals) / repeats
    return Runs(name, outcomes, pick_seconds)


def compare(
    arrivals: Sequence[Arrival], profiles: Sequence[str], fleet: Fleet, limits: RateLimits, repeats: int
) -> dict[str, Runs]:
    """Run all policies and print a row for each; the result is keyed by policy."""
    ideal = ideal_hit_ratio(arrivals)
    table = Table(COLUMNS)
    found: dict[str, Runs] = {}
    for name in (*BASELINES, *profiles):
        found[name] = run(name, arrivals, fleet, limits, repeats)
        table.row(*found[name].row(found["round robin"], ideal))
    return found


def print_bars(found: dict[str, Runs], ideal: float) -> None:
    """What `least-cost` promises, beside what came out, with the spread over the runs."""
    ours = found["least-cost"]
    base = found["round robin"].p90
    print(bar("least-cost p90 over round robin's", ours.p90 / base, BAR_P90))
    print(bar("least-cost hits over the ideal", ours.hits / ideal, BAR_HITS, most=False))
    if "affinity" in found:
        print(bar("least-cost p90 over affinity's", ours.p90 / found["affinity"].p90, 1.0))
    ratios = [one.percentile(0.9) / base for one in ours.outcomes]
    shares = [one.hit_ratio / ideal for one in ours.outcomes]
    print(
        f"least-cost, single runs: p90 {min(ratios):.3f} to {max(ratios):.3f} of round robin's, "
        f"hits {min(shares):.3f} to {max(shares):.3f} of the ideal"
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; 0 whether or not the bars were met, for a bench is read and not passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--trace", type=Path, default=Path(os.environ.get("MOONCAKE_TRACE", TRACE)), help="the trace, JSON lines"
    )
    parser.add_argument("--profiles", default="blend,affinity,least-cost", help="which profiles, with commas between")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each profile")
    parser.add_argument("--requests", type=int, default=None, help="only the first so many requests")
    parser.add_argument("--servers", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=6_000, help="blocks of a server's cache")
    parser.add_argument("--speed", type=float, default=3.0, help="how many times as fast as recorded")
    parser.add_argument("--scrape-interval", type=float, default=1.0, help="seconds from page to page")
    parser.add_argument("--rate", type=float, default=None, help="a fixed prefill rate; without it, it is learnt")
    args = parser.parse_args(arguments)
    profiles = [name for name in args.profiles.split(",") if name]
    unknown = [name for name in profiles if name not in PRESETS]
    if unknown:
        parser.error(f"--profiles: there is no {', '.join(unknown)}; there is {', '.join(PRESETS)}")
    if not args.trace.is_file():
        print(f"The trace is not at {args.trace}: nothing to replay. Say where it lies with --trace or MOONCAKE_TRACE.")
        return 0
    began = time.monotonic()
    with args.trace.open(encoding="utf-8") as lines:
        arrivals = mooncake(lines, args.speed)[: args.requests]
    ideal = ideal_hit_ratio(arrivals)
    limits = RateLimits(fixed=args.rate)
    print(
        f"{len(arrivals):,} requests in {arrivals[-1].at:,.0f} s to {args.servers} servers x {args.blocks:,} blocks of "
        f"{BLOCK_TOKENS} tokens that prefill {RATE:,.0f} tokens/s; the ideal is {ideal:.3f} hits; "
        f"runs of a profile: {args.repeats}"
    )
    for decoding in (False, True):
        print(f"\n{'With decoding: 8 ms a step and 0.2 ms per request in it' if decoding else 'Prefill only'}")
        fleet = Fleet(settings(args.blocks, decoding=decoding), args.servers, decoding, args.scrape_interval)
        found = compare(arrivals, profiles, fleet, limits, args.repeats)
        if not decoding and "least-cost" in found:
            print_bars(found, ideal)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
