"""What a pick costs: CPU microseconds for each part and for the whole, among 4, 100 and 1,000 endpoints.

    .venv/bin/python -m tests.bench.bench_pick [--rounds 5] [--prompt-bytes 2048]

Every prompt is a new one whose first half is one of 50 shared beginnings. The whole is what a picker port does for one
request apart from the wire: hash the prompt, take the snapshot, look up, pick, count the request as started, note its
blocks in the index; and later count it as ended, which makes the next snapshot a new one. Each figure is the median
over rounds of the mean of a round.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from agent.engines.mapping import Extraction
from agent.pick.decision import Pick
from agent.pick.picker import pick
from agent.pick.profile import Profile, build
from agent.pick.request import PickRequest
from agent.prefix.blocks import chain, seed
from agent.prefix.index import PrefixIndex
from agent.profiles import DEFAULT_PROFILE, PRESETS
from agent.signals import KV_USAGE, PREFIX_HITS, RUNNING, WAITING, Value
from agent.state.store import RoutingStore
from tests.bench.pace import Pace
from tests.bench.table import Column, Table, bar

BLOCK_TOKENS, BYTES_PER_TOKEN = 64, 4
BLOCK_BYTES = BLOCK_TOKENS * BYTES_PER_TOKEN
BEGINNINGS = 50
WARM_UP = 400
ENDPOINTS = (4, 100, 1_000)
BAR_ENDPOINTS, BAR_US = 100, 100.0
MODEL = "a-model"
NOW = 1_000.0

COLUMNS = (
    Column("endpoints", 9, ",d"),
    Column("profile", 12),
    Column("chain", 7, ".1f"),
    Column("match", 7, ".1f"),
    Column("record", 7, ".1f"),
    Column("snapshot", 8, ".1f"),
    Column("pick", 7, ".1f"),
    Column("whole", 7, ".1f"),
)


class Pool:
    """A pool of healthy endpoints with all signals, and a stream of prompts for it."""

    def __init__(self, endpoints: int, profile: Profile, prompt_bytes: int) -> None:
        self.index = PrefixIndex()
        self.profile = profile
        self.store = RoutingStore("bench", stale_after=60.0, prefix=self.index, index_block_tokens=BLOCK_TOKENS)
        self.addresses = [f"10.{place >> 16}.{place >> 8 & 255}.{place & 255}:8000" for place in range(endpoints)]
        self.store.set_endpoints(dict.fromkeys(self.addresses, "vllm"), NOW)
        rng = random.Random(endpoints)
        for address in self.addresses:
            readings: dict[str, Value] = {
                RUNNING: float(rng.randrange(20)),
                WAITING: 0.0,
                KV_USAGE: rng.random(),
                PREFIX_HITS: 0.0,
            }
            self.store.observed(address, Extraction(readings, (), ()), NOW, 0.001, 73_000)
            self.store.served_models(address, frozenset({MODEL}), NOW)
        self.prompts = _prompts(rng, prompt_bytes)
        self.numbers = itertools.count()
        self.running: list[int] = []
        self.whole(WARM_UP)

    def whole(self, times: int) -> float:
        """CPU seconds for so many whole picks; up to 100 requests are in flight."""
        prompts = list(itertools.islice(self.prompts, times))
        store, index, profile, running = self.store, self.index, self.profile, self.running
        began = time.process_time()
        for text in prompts:
            request = self.request(text)
            answer = pick(store.snapshot(NOW), request, profile, index, NOW)
            assert isinstance(answer, Pick), answer
            running.append(store.started(answer.endpoint, answer.uncached_tokens, answer.hit_tokens, NOW))
            index.record(answer.endpoint, request.chain)
            if len(running) > 100:
                store.ended(running.pop(0), NOW)
        return time.process_time() - began

    def request(self, text: bytes) -> PickRequest:
        """The picker's view of a prompt."""
        hashes = chain(text, BLOCK_BYTES, seed(MODEL, b""), 2_048)
        number = next(self.numbers)
        return PickRequest(f"request-{number}", MODEL, -(-len(text) // BYTES_PER_TOKEN), hashes, BLOCK_TOKENS)

    def parts(self, times: int) -> dict[str, float]:
        """CPU seconds for so many calls of each part alone."""
        prompts = list(itertools.islice(self.prompts, times))
        requests = [self.request(text) for text in prompts]
        snapshot = self.store.snapshot(NOW)
        some = itertools.cycle(self.addresses)

        def dirty_snapshot(_: object) -> None:
            self.store.ended(self.store.started(next(some), 100.0, 0.0, NOW), NOW)
            self.store.snapshot(NOW)

        return {
            "chain": _timed(lambda text: chain(text, BLOCK_BYTES, b"seed", 2_048), prompts),
            "match": _timed(lambda request: self.index.match(request.chain, self.addresses), requests),
            "snapshot": _timed(dirty_snapshot, requests),
            "pick": _timed(lambda request: pick(snapshot, request, self.profile, self.index, NOW), requests),
            # Last, so that no pick finds its whole prompt in the index.
            "record": _timed(lambda request: self.index.record(next(some), request.chain), requests),
        }


def _prompts(rng: random.Random, size: int) -> Iterator[bytes]:
    beginnings = [rng.randbytes(size // 2) for _ in range(BEGINNINGS)]
    while True:
        yield rng.choice(beginnings) + rng.randbytes(size - size // 2)


def _timed(call: Callable[[Any], object], items: list[Any]) -> float:
    began = time.process_time()
    for item in items:
        call(item)
    return time.process_time() - began


def measure(endpoints: int, profile: str, prompt_bytes: int, rounds: int, times: int) -> dict[str, float]:
    """CPU microseconds by part, and of the whole."""
    pool = Pool(endpoints, build(PRESETS[profile]), prompt_bytes)
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for part, seconds in {"whole": pool.whole(times), **pool.parts(times)}.items():
            found.setdefault(part, []).append(seconds / times * 1e6)
    return {part: median(figures) for part, figures in found.items()}


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0 whether or not the bar was met, for a bench is read and not passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=300, help="picks in a round")
    parser.add_argument("--prompt-bytes", type=int, default=2_048)
    args = parser.parse_args(arguments)
    print(f"CPU microseconds, prompts of {args.prompt_bytes:,} bytes, blocks of {BLOCK_TOKENS} tokens")
    table = Table(COLUMNS)
    barred, pace = 0.0, Pace()
    for endpoints in ENDPOINTS:
        for profile in PRESETS:
            us = measure(endpoints, profile, args.prompt_bytes, args.rounds, args.times)
            table.row(
                endpoints, profile, *(us[part] for part in ("chain", "match", "record", "snapshot", "pick", "whole"))
            )
            if (endpoints, profile) == (BAR_ENDPOINTS, DEFAULT_PROFILE):
                barred = us["whole"]
            pace.look()
    print(bar(f"whole pick, {BAR_ENDPOINTS} endpoints, {DEFAULT_PROFILE}, us", barred, BAR_US, form=".1f"))
    print(pace.said())
    return 0


if __name__ == "__main__":
    sys.exit(main())
