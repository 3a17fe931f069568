"""The replay of a workload: its results equal those computed by hand, and are reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.emulator.config import EmulatorConfig
from agent.pick.profile import build
from agent.prefix.index import PrefixIndex
from agent.profiles import PRESETS
from agent.state.prefill_rate import RateLimits
from agent.state.store import RoutingStore
from tests.bench import bench_routing
from tests.bench.replay import (
    Arrival,
    Assignment,
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
from tests.bench.table import bar

BLOCK = 512
RATE = 20_480.0
PREFILL_ONLY = EmulatorConfig.prefill_only(blocks=400, block_size=BLOCK, prefill_tokens_per_second=RATE)


def store(index: PrefixIndex | None = None) -> RoutingStore:
    return RoutingStore("test", stale_after=5.0, rate=RateLimits(fixed=RATE), prefix=index, index_block_tokens=BLOCK)


def play(arrivals: list[Arrival], route: Router, servers: int, config: EmulatorConfig = PREFILL_ONLY) -> ReplayResult:
    fleet = ReplayFleet(config, servers, decoding=config is not PREFILL_ONLY)
    return replay(arrivals, [ReplayAgent(route, store())], fleet)


def play_profile(name: str, arrivals: list[Arrival], servers: int) -> ReplayResult:
    return replay(arrivals, [profile_agent(name)], ReplayFleet(PREFILL_ONLY, servers))


def profile_agent(name: str) -> ReplayAgent:
    index = PrefixIndex()
    return ReplayAgent(ProfileRouter(build(PRESETS[name]), index, BLOCK), store(index))


def conversations(count: int, turns: int) -> list[Arrival]:
    """`count` conversations of `turns` turns; each turn repeats the previous blocks and adds two."""
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
    result = play([first, second, other], round_robin, servers=1)
    assert result.first_token_seconds == pytest.approx([1024 / RATE, 1536 / RATE, 600 / RATE])
    assert (result.blocks, result.hit_blocks) == (7, 2)
    assert result.served_hit_tokens == 2 * BLOCK


def test_round_robin_alternates_and_least_requests_takes_the_emptiest() -> None:
    long, short = Arrival(0.0, 40_960, 1, range(80)), Arrival(0.1, 512, 1, [900])
    later = [short._replace(at=0.1 + 0.2 * place, blocks=[900 + place]) for place in range(4)]
    assert list(play([long, *later], round_robin, 2).requests.values()) == [3, 2]
    assert list(play([long, *later], least_requests, 2).requests.values()) == [1, 4]


def test_the_default_profile_routes_a_conversation_to_its_warm_server() -> None:
    arrivals = conversations(count=5, turns=6)
    result = play_profile("least-cost", arrivals, servers=3)
    assert result.hit_ratio == pytest.approx(ideal_hit_ratio(arrivals))
    assert result.predicted_hit_tokens == result.served_hit_tokens > 0
    assert play(arrivals, round_robin, servers=3).hit_ratio < 0.5 * result.hit_ratio


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_two_replays_are_equal(name: str) -> None:
    arrivals = conversations(count=7, turns=4)
    one, other = play_profile(name, arrivals, servers=4), play_profile(name, arrivals, servers=4)
    assert one == other
    assert sum(one.requests.values()) == len(arrivals)
    assert all(seconds > 0 for seconds in one.first_token_seconds)


def test_with_decoding_first_tokens_do_not_wait_for_other_answers() -> None:
    config = EmulatorConfig(num_blocks=401, block_size=BLOCK, max_model_len=8192, prefill_tokens_per_second=RATE)
    arrivals = [Arrival(place * 0.01, 1024, 500, [place * 2, place * 2 + 1]) for place in range(10)]
    result = play(arrivals, round_robin, servers=2, config=config)
    # 500 steps take at least 4 s; a first token does not wait for them.
    assert 0 < max(result.first_token_seconds) < 1.0


def test_the_ideal_is_one_unlimited_shared_cache() -> None:
    arrivals = [
        Arrival(0.0, 1024, 1, [1, 2]),
        Arrival(1.0, 1536, 1, [1, 2, 3]),
        Arrival(2.0, 1536, 1, [4, 2, 3]),
    ]
    assert ideal_hit_ratio(arrivals) == 2 / 8
    assert ideal_hit_ratio([]) == 0.0


def test_a_trace_is_read_and_replayed_faster() -> None:
    arrivals = conversations(count=2, turns=2)
    read = mooncake(lines(arrivals).splitlines(), speed=2.0)
    assert [one.at for one in read] == pytest.approx([one.at / 2 for one in arrivals])
    assert [(one.prompt_tokens, one.output_tokens, one.blocks) for one in read] == [
        (one.prompt_tokens, one.output_tokens, list(one.blocks)) for one in arrivals
    ]


def test_percentiles_are_measured_values() -> None:
    result = ReplayResult([5.0, 1.0, 3.0, 2.0, 4.0])
    assert [result.percentile(rank) for rank in (0.0, 0.5, 0.9, 1.0)] == [1.0, 3.0, 5.0, 5.0]
    assert result.mean == 3.0


def test_the_bench_prints_a_row_for_each_policy_and_the_bars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "a trace.jsonl"
    trace.write_text(lines(conversations(count=4, turns=4)))
    assert bench_routing.main(["--trace", str(trace), "--repeats", "2", "--servers", "2", "--requests", "16"]) == 0
    printed = capsys.readouterr().out
    for policy in (*bench_routing.BASELINES, *PRESETS):
        assert printed.count(f"\n{policy:<16}") == len(bench_routing.TABLES), policy
    for claim in ("p90 over round robin's", "p90 over blend's", "mean over blend's", "mean over affinity's"):
        assert printed.count(f"least-cost {claim}") == 1
    assert [printed.count(f"\n{table.title}\n") for table in bench_routing.TABLES.values()] == [1] * len(
        bench_routing.TABLES
    )


def test_without_the_trace_the_bench_reports_it_and_prints_what_does_not_need_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_routing.main(["--trace", str(tmp_path / "none.jsonl"), "--requests", "8", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert "none.jsonl: nothing to replay" in printed
    shown = [name for name, table in bench_routing.TABLES.items() if f"\n{table.title}\n" in printed]
    assert shown == ["shared-prefixes"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_two_agents_share_the_servers_and_the_requests_and_two_replays_of_them_are_equal(name: str) -> None:
    arrivals = conversations(count=6, turns=4)
    fleet = ReplayFleet(PREFILL_ONLY, 3)
    one, other = (replay(arrivals, [profile_agent(name), profile_agent(name)], fleet) for _ in range(2))
    assert one == other
    assert sum(one.requests.values()) == len(arrivals)
    assert len(one.rates) == 2 * 3


def test_an_agent_avoids_the_server_that_another_agent_has_filled() -> None:
    # Requests reach the two agents in turn. The first sends all to one server; the second has seen that on a page when
    # its burst arrives.
    before = [Arrival(0.01 * number, 40_960, 1, range(100 * number, 100 * number + 80)) for number in range(8)]
    burst = [Arrival(1.5, 512, 1, [5_000 + number]) for number in range(16)]
    filled = "10.0.0.1:8000"
    second = profile_agent("least-cost")
    picked: list[str] = []

    def fill(store: RoutingStore, number: int, text: bytes, now: float) -> Assignment:
        return Assignment(filled, float(len(text)), 0)

    def observe(store: RoutingStore, number: int, text: bytes, now: float) -> Assignment:
        assignment = second.route(store, number, text, now)
        picked.append(assignment.address)
        return assignment

    agents = [ReplayAgent(fill, store()), ReplayAgent(observe, second.store)]
    replay([*before, *burst], agents, ReplayFleet(PREFILL_ONLY, 2))
    assert picked[-8:].count(filled) == 0


def test_an_unknown_profile_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_routing.main(["--profiles", "least-cost,cheapest"])
    assert "unknown: cheapest; choose from affinity, blend, least-cost" in capsys.readouterr().err


def test_a_bar_is_met_at_its_limit_and_missed_beyond() -> None:
    assert bar("a", 0.29, 0.29).endswith("met")
    assert bar("a", 0.2901, 0.29).endswith("MISSED")
    assert bar("a", 0.9, 0.9, maximum=False).endswith("met")
    assert bar("a", 0.8999, 0.9, maximum=False).endswith("MISSED")


def knowing_agent(name: str) -> ReplayAgent:
    index = PrefixIndex()
    return ReplayAgent(ProfileRouter(build(PRESETS[name]), index, BLOCK), store(index), index)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_two_replicas_that_report_to_each_other_find_the_prefixes_that_one_agent_finds(name: str) -> None:
    arrivals = conversations(count=5, turns=6)  # an odd number: each conversation alternates between the two
    fleet = ReplayFleet(PREFILL_ONLY, 3, exchange_seconds=0.02)
    one = replay(arrivals, [profile_agent(name)], ReplayFleet(PREFILL_ONLY, 3))
    strangers = replay(arrivals, [profile_agent(name), profile_agent(name)], ReplayFleet(PREFILL_ONLY, 3))
    two, again = (replay(arrivals, [knowing_agent(name), knowing_agent(name)], fleet) for _ in range(2))
    assert two == again
    assert two.hit_ratio == pytest.approx(one.hit_ratio, abs=0.02)
    assert two.predicted_hit_tokens == two.served_hit_tokens
    assert strangers.hit_ratio < one.hit_ratio - 0.1


def test_spread_arrivals_keep_every_request_and_its_step() -> None:
    arrivals = [Arrival(3.0 * (number // 10), 512 + number, 1, [number]) for number in range(40)]
    found = spread(arrivals, 3.0)
    assert sorted(each.prompt_tokens for each in found) == [each.prompt_tokens for each in arrivals]
    assert [each.at for each in found] == sorted(each.at for each in found)
    assert all(0 <= each.at - 3.0 * ((each.prompt_tokens - 512) // 10) < 3.0 for each in found)
