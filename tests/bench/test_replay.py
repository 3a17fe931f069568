"""The replay of a workload: what it measures is right where it can be worked out by hand, and the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.emulator.settings import Settings
from agent.pick.profile import build
from agent.prefix.index import PrefixIndex
from agent.profiles import PRESETS
from agent.state.prefill_rate import RateLimits
from agent.state.store import RoutingStore
from tests.bench import bench_routing
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
from tests.bench.table import bar

BLOCK = 512
RATE = 20_480.0
PREFILL_ONLY = Settings.prefill_only(blocks=400, block_size=BLOCK, prefill_tokens_per_second=RATE)


def store(index: PrefixIndex | None = None) -> RoutingStore:
    return RoutingStore("test", stale_after=5.0, rate=RateLimits(fixed=RATE), prefix=index, index_block_tokens=BLOCK)


def play(arrivals: list[Arrival], choose: Chooser, servers: int, settings: Settings = PREFILL_ONLY) -> Outcome:
    return replay(arrivals, choose, Fleet(settings, servers, decoding=settings is not PREFILL_ONLY), store())


def play_profile(name: str, arrivals: list[Arrival], servers: int) -> Outcome:
    index = PrefixIndex()
    chooser = ByProfile(build(PRESETS[name]), index, BLOCK)
    return replay(arrivals, chooser, Fleet(PREFILL_ONLY, servers), store(index))


def conversations(count: int, turns: int) -> list[Arrival]:
    """`count` conversations of `turns` turns; each turn repeats what was said and adds two blocks."""
    return [
        Arrival(
            turn * 3.0 + who * 0.1, (turn + 1) * 2 * BLOCK, 20, [who * 1000 + block for block in range((turn + 1) * 2)]
        )
        for turn in range(turns)
        for who in range(count)
    ]


def lines(arrivals: list[Arrival]) -> str:
    return "".join(
        json.dumps(
            {
                "timestamp": round(one.at * 1000),
                "input_length": one.prompt_tokens,
                "output_length": one.output_tokens,
                "hash_ids": one.blocks,
            }
        )
        + "\n"
        for one in arrivals
    )


def test_a_request_waits_for_those_before_it_and_for_its_own_uncached_tokens() -> None:
    first = Arrival(0.0, 1024, 1, [1, 2])
    second = Arrival(0.0, 1536, 1, [1, 2, 3])
    other = Arrival(0.5, 600, 1, [9, 8])
    outcome = play([first, second, other], round_robin, servers=1)
    assert outcome.first_token_seconds == pytest.approx([1024 / RATE, 1536 / RATE, 600 / RATE])
    assert (outcome.blocks, outcome.hit_blocks) == (7, 2)
    assert outcome.served_hit_tokens == 2 * BLOCK


def test_round_robin_takes_turns_and_least_requests_the_emptiest() -> None:
    long, short = Arrival(0.0, 40_960, 1, range(80)), Arrival(0.1, 512, 1, [900])
    later = [short._replace(at=0.1 + 0.2 * place, blocks=[900 + place]) for place in range(4)]
    assert list(play([long, *later], round_robin, 2).requests.values()) == [3, 2]
    assert list(play([long, *later], least_requests, 2).requests.values()) == [1, 4]


def test_the_default_profile_sends_a_conversation_back_to_where_it_is_warm() -> None:
    arrivals = conversations(count=5, turns=6)
    outcome = play_profile("least-cost", arrivals, servers=3)
    assert outcome.hit_ratio == pytest.approx(ideal_hit_ratio(arrivals))
    assert outcome.predicted_hit_tokens == outcome.served_hit_tokens > 0
    assert play(arrivals, round_robin, servers=3).hit_ratio < 0.5 * outcome.hit_ratio


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_two_replays_are_equal(name: str) -> None:
    arrivals = conversations(count=7, turns=4)
    one, other = play_profile(name, arrivals, servers=4), play_profile(name, arrivals, servers=4)
    assert one == other
    assert sum(one.requests.values()) == len(arrivals)
    assert all(seconds > 0 for seconds in one.first_token_seconds)


def test_with_decoding_first_tokens_come_before_the_answers_end_and_every_request_ends() -> None:
    settings = Settings(num_blocks=401, block_size=BLOCK, max_model_len=8192, prefill_tokens_per_second=RATE)
    arrivals = [Arrival(place * 0.01, 1024, 500, [place * 2, place * 2 + 1]) for place in range(10)]
    outcome = play(arrivals, round_robin, servers=2, settings=settings)
    # 500 steps of 8 ms and more are 4 s; the first token waits for no answer.
    assert 0 < max(outcome.first_token_seconds) < 1.0


def test_the_ideal_is_one_endless_cache_for_all() -> None:
    arrivals = [
        Arrival(0.0, 1024, 1, [1, 2]),
        Arrival(1.0, 1536, 1, [1, 2, 3]),
        Arrival(2.0, 1536, 1, [4, 2, 3]),
    ]
    assert ideal_hit_ratio(arrivals) == 2 / 8
    assert ideal_hit_ratio([]) == 0.0


def test_a_trace_is_read_and_played_faster() -> None:
    arrivals = conversations(count=2, turns=2)
    read = mooncake(lines(arrivals).splitlines(), speed=2.0)
    assert [one.at for one in read] == pytest.approx([one.at / 2 for one in arrivals])
    assert [(one.prompt_tokens, one.output_tokens, one.blocks) for one in read] == [
        (one.prompt_tokens, one.output_tokens, list(one.blocks)) for one in arrivals
    ]


def test_percentiles_are_values_that_occurred() -> None:
    outcome = Outcome([5.0, 1.0, 3.0, 2.0, 4.0])
    assert [outcome.percentile(rank) for rank in (0.0, 0.5, 0.9, 1.0)] == [1.0, 3.0, 5.0, 5.0]
    assert outcome.mean == 3.0


def test_the_bench_prints_a_row_for_each_policy_and_the_bars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "a trace.jsonl"
    trace.write_text(lines(conversations(count=4, turns=4)))
    assert bench_routing.main(["--trace", str(trace), "--repeats", "2", "--servers", "2"]) == 0
    printed = capsys.readouterr().out
    for policy in (*bench_routing.BASELINES, *PRESETS):
        assert printed.count(f"\n{policy:<16}") == 2, policy
    assert printed.count("least-cost p90 over round robin's") == 1
    assert "With decoding" in printed


def test_without_the_trace_the_bench_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_routing.main(["--trace", str(tmp_path / "none.jsonl")]) == 0
    assert "none.jsonl: nothing to replay" in capsys.readouterr().out


def test_an_unknown_profile_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_routing.main(["--profiles", "least-cost,cheapest"])
    assert "there is no cheapest; there is affinity, blend, least-cost" in capsys.readouterr().err


def test_a_bar_is_met_at_its_limit_and_missed_beyond() -> None:
    assert bar("a", 0.29, 0.29).endswith("met")
    assert bar("a", 0.2901, 0.29).endswith("MISSED")
    assert bar("a", 0.9, 0.9, most=False).endswith("met")
    assert bar("a", 0.8999, 0.9, most=False).endswith("MISSED")
