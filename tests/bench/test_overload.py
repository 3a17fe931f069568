"""Two small fleets that get more than they can serve: what flow control keeps for whom. In simulated time."""

from __future__ import annotations

from functools import cache
from itertools import count
from random import Random

import pytest

from agent.requests.held_requests import HoldingSettings
from tests.bench import bench_overload
from tests.bench.fleet_agents import SERVED
from tests.bench.overload import (
    DEFAULT_RULES,
    NO_CONTROL,
    OURS,
    REFERENCE,
    THREE_BANDS,
    OverloadRule,
    Run,
    Share,
    calls,
    fairness,
    figures,
    jain,
    run,
    sessions,
)
from tests.bench.replay import Arrival

SERVERS = 2
BLOCK = 512
# What two servers can do of the conversations below: 2 x 20,480 tokens/s of prefill, less the time of decoding.
CAPACITY_PER_SECOND = 5.0
OURS_RULE = OverloadRule(OURS, HoldingSettings())


@cache
def conversations(requests: int, load: float) -> list[Arrival]:
    """Conversations of one to four turns. A turn adds two to twelve blocks to the prompt, and comes 10 s after the one
    before."""
    rng, blocks = Random(1), count(1)
    arrivals: list[Arrival] = []
    at = 0.0
    while len(arrivals) < requests:
        at += rng.expovariate(CAPACITY_PER_SECOND * load / 2.5)
        prompt = [0]
        for turn in range(rng.randint(1, 4)):
            prompt = [*prompt, *(next(blocks) for _ in range(rng.randint(2, 24)))]
            tokens = len(prompt) * BLOCK - rng.randrange(BLOCK)
            arrivals.append(Arrival(at + 10.0 * turn, tokens, rng.randint(20, 400), prompt))
    return sorted(arrivals)[:requests]


@cache
def overloaded(rule: str) -> Run:
    [found] = [each for each in DEFAULT_RULES if each.name == rule]
    return run(calls(conversations(600, 2.0)), found, servers=SERVERS)


def p90(result: Run, priority: int) -> float:
    return figures(result, lambda call: call.priority == priority).p90


def refusals(result: Run, priority: int) -> set[str]:
    return set(figures(result, lambda call: call.priority == priority).refused)


def test_the_requests_of_a_session_have_one_priority() -> None:
    arrivals = conversations(600, 2.0)
    owners: dict[int, int] = {}
    for session, call in zip(sessions(arrivals), calls(arrivals), strict=True):
        assert owners.setdefault(session, call.priority) == call.priority
    assert set(owners.values()) == {share.priority for share in THREE_BANDS}


def test_without_control_every_priority_waits_equally_and_for_long() -> None:
    result = overloaded(NO_CONTROL)
    assert all(row.outcome == SERVED for row in result.served)
    assert 0.8 < p90(result, 10) / p90(result, -1) < 1.25
    assert p90(result, 10) > 10.0


def test_the_highest_priority_waits_for_a_fraction_of_what_it_waits_without_control() -> None:
    assert p90(overloaded(OURS), 10) < 0.2 * p90(overloaded(NO_CONTROL), 10)


def test_the_highest_priority_waits_less_than_by_the_rule_of_the_reference() -> None:
    assert p90(overloaded(OURS), 10) < 0.8 * p90(overloaded(REFERENCE), 10)


def test_most_of_the_throughput_and_of_the_prefix_hits_is_kept() -> None:
    ours, none = figures(overloaded(OURS)), figures(overloaded(NO_CONTROL))
    assert ours.tokens_per_second > 0.85 * none.tokens_per_second
    assert ours.hits > 0.8 * none.hits


def test_only_a_negative_priority_is_shed() -> None:
    result = overloaded(OURS)
    assert "shed" in refusals(result, -1)
    assert refusals(result, 0) <= {"expired"}
    assert not refusals(result, 10)


def test_a_run_is_repeated_exactly() -> None:
    sent = calls(conversations(300, 2.0))
    first, second = run(sent, OURS_RULE, servers=SERVERS), run(sent, OURS_RULE, servers=SERVERS)
    assert first == second


def test_two_callers_that_both_wait_get_equal_shares() -> None:
    sent = calls(conversations(600, 2.0), [Share(0, "one"), Share(0, "other")])
    found = fairness(run(sent, OURS_RULE, servers=SERVERS), ("one", "other"))
    assert found.seconds > 10.0
    assert found.jain > 0.98
    assert found.lag < 4 * 65_536


def test_a_fleet_that_can_do_all_that_is_sent_serves_it_as_without_control() -> None:
    sent = calls(conversations(250, 0.3))
    on, off = (figures(run(sent, rule, servers=SERVERS)) for rule in (OURS_RULE, DEFAULT_RULES[0]))
    assert not on.refused
    assert on.p90 < 1.1 * off.p90


def test_two_agents_that_report_to_each_other_keep_the_order_of_priorities() -> None:
    result = run(calls(conversations(600, 2.0)), OURS_RULE, agents=2, servers=SERVERS)
    assert p90(result, 10) < 0.5 * p90(overloaded(NO_CONTROL), 10)
    assert not refusals(result, 10)


def test_jains_index_is_1_for_equal_shares_and_one_over_their_number_for_one_alone() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([3.0, 0.0, 0.0]) == pytest.approx(1 / 3)


def test_the_bench_names_the_missing_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_overload.main(["--trace", "missing.jsonl"]) == 0
    assert "missing.jsonl" in capsys.readouterr().out
