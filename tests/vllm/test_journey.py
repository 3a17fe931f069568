"""The main job against real model servers: what Envoy is told follows what vLLM truly does.

Each test reads the servers' own counters beside the agent's; nothing here is emulated. Run by `make test-vllm`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic

import pytest
import requests

from tests.processes import Processes
from tests.vllm.fleet import ADAPTERS, BLOCK_TOKENS, BLOCKS, MODEL, Fleet, fleet, flood, prompt
from tests.waiting import until

pytestmark = pytest.mark.vllm
OUT_WITHIN_SECONDS = 2.0
Say = Callable[[str], None]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]) -> Iterator[Fleet]:
    logs = tmp_path_factory.mktemp("fleet")
    processes = Processes(logs)
    try:
        with fleet(processes, free_ports(4), logs) as made:
            yield made
    finally:
        processes.stop_all()


@pytest.fixture
def ready(running: Fleet) -> Fleet:
    """The fleet with nothing to do, so that no test meets the work of another."""
    running.idle()
    return running


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Tells the person at the terminal what was seen."""

    def speak(words: str) -> None:
        with capsys.disabled():
            print(f"\n  {words}", end=" ")

    return speak


def test_the_agent_knows_what_the_servers_are(ready: Fleet, say: Say) -> None:
    assert ready.sees(ready.plain, "served_models") == [MODEL]
    assert ready.sees(ready.lora, "served_models") == sorted([MODEL, *ADAPTERS])
    for server in (ready.plain, ready.lora):
        assert ready.sees(server, "block_size_tokens") == BLOCK_TOKENS
        assert ready.sees(server, "kv_blocks") == BLOCKS
    say(
        f"plain serves {MODEL}, lora serves {', '.join((MODEL, *ADAPTERS))};"
        f" each has {BLOCKS} blocks of {BLOCK_TOKENS} tokens"
    )


def test_adapter_requests_go_to_the_server_that_has_the_adapter(ready: Fleet, say: Say) -> None:
    before = ready.served()
    with flood(lambda number: ready.ask(prompt(number, 400), model=ADAPTERS[number % 2]), 20) as asked:
        answers = [one.result() for one in asked]
    assert [answer.status_code for answer in answers] == [200] * 20
    assert [answer.json()["model"] for answer in answers] == [ADAPTERS[number % 2] for number in range(20)]
    plain, lora = (after - earlier for after, earlier in zip(ready.served(), before, strict=True))
    say(f"20 adapter requests: plain served {plain:.0f}, lora {lora:.0f}")
    assert (plain, lora) == (0, 20)


def test_new_prompts_are_spread_and_every_counter_agrees(ready: Fleet, say: Say) -> None:
    before = ready.served()
    tokens = [sum(server.total("prompt_tokens_total") for server in (ready.plain, ready.lora))]
    with flood(lambda number: ready.ask(prompt(100 + number)), 24) as asked:
        answers = [one.result() for one in asked]
    assert {answer.status_code for answer in answers} == {200}
    plain, lora = (after - earlier for after, earlier in zip(ready.served(), before, strict=True))
    say(f"24 new prompts at once: plain served {plain:.0f}, lora {lora:.0f}")
    assert plain + lora == 24
    assert min(plain, lora) >= 6
    tokens.append(sum(server.total("prompt_tokens_total") for server in (ready.plain, ready.lora)))
    assert tokens[1] - tokens[0] == sum(answer.json()["usage"]["prompt_tokens"] for answer in answers)
    until(
        lambda: sum(ready.sees(server, "prompt_tokens") or 0 for server in (ready.plain, ready.lora)) == tokens[1],
        what="the agent to have seen every prompt token",
    )


def test_a_prompt_goes_where_its_prefix_lies(ready: Fleet, say: Say) -> None:
    before = ready.served()
    hits = 0
    for number in (200, 201, 202):
        home = ready.served()
        answers = [ready.ask(prompt(number, 4_000) + f" Question {turn}.") for turn in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 5
        served = sorted(after - earlier for after, earlier in zip(ready.served(), home, strict=True))
        assert served == [0, 5], f"prompt {number} was served by both"
        cached = [answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
        length = answers[0].json()["usage"]["prompt_tokens"]
        assert cached[0] == 0
        assert min(cached[1:]) >= length - 2 * BLOCK_TOKENS
        hits += sum(cached)
    plain, lora = (after - earlier for after, earlier in zip(ready.served(), before, strict=True))
    say(
        f"3 prompts, 5 turns each: plain served {plain:.0f}, lora {lora:.0f};"
        f" {hits} prompt tokens from the servers' caches"
    )

    def counted() -> float:
        found = [endpoint["prefix"]["measured_hit_tokens"] for endpoint in ready.endpoints().values()]
        return sum(one for one in found if one is not None)

    until(lambda: counted() >= hits, what="the agent to have seen the hits")
    predicted = sum(endpoint["prefix"]["predicted_hit_tokens"] for endpoint in ready.endpoints().values())
    say(f"prefix hits in tokens: the index predicted {predicted:.0f}, the servers counted {counted():.0f}")


def test_a_server_with_a_real_queue_gets_neither_a_new_prompt_nor_a_warm_one(ready: Fleet, say: Say) -> None:
    warm = prompt(300)
    before = ready.served()
    assert ready.ask(warm).ok
    home, other = (ready.plain, ready.lora) if ready.served()[0] > before[0] else (ready.lora, ready.plain)
    # Past the agent: it did not pick these, so it can only know of them from the server's page. Long prompts and short
    # answers: what waits is prefill.
    with flood(lambda number: home.complete(prompt(500 + number, 7_000), 1), 100):
        until(lambda: (ready.sees(home, "waiting_requests") or 0) >= 40, what="the queue to be seen")
        queue, kv = ready.sees(home, "waiting_requests"), ready.sees(home, "kv_usage_ratio")
        ahead = ready.endpoints()[home.address]["work"]["prefill_seconds"]
        there = other.total("request_success_total")
        answers = [ready.ask(warm), *(ready.ask(prompt(340 + number)) for number in range(4))]
        assert [answer.status_code for answer in answers] == [200] * 5
        elsewhere = other.total("request_success_total") - there
    say(
        f"{queue:.0f} waiting, {ahead:.1f} s of prefill ahead and KV {kv:.0%} at one server:"
        f" the other served {elsewhere:.0f} of 5, one of them warm where the queue was"
    )
    assert elsewhere == 5


def test_a_server_killed_under_load_is_out_within_two_seconds_and_comes_back(ready: Fleet, say: Say) -> None:
    stop = threading.Event()
    sent: list[tuple[float, int]] = []

    def client(number: int) -> requests.Response:
        turn = 0
        while True:
            at = monotonic()
            answer = ready.ask(prompt(1_000 * number + turn, 800), tokens=24)
            sent.append((at, answer.status_code))
            turn += 1
            if stop.is_set():
                return answer

    with flood(client, 8):
        try:
            until(lambda: min(ready.sees(server, "running_requests") or 0 for server in (ready.plain, ready.lora)) > 0)
            died = monotonic()
            ready.plain.kill()
            until(lambda: ready.health(ready.plain) == "down", OUT_WITHIN_SECONDS, "the dead server to be out")
            out = monotonic()
            after = len(sent) + 100
            until(lambda: len(sent) >= after, 60, "100 more answers")
        finally:
            stop.set()
    failed = [status for at, status in sent if status != 200]
    late = [status for at, status in sent if at > out and status != 200]
    say(
        f"killed with -9 under 8 clients: out after {out - died:.2f} s; {len(sent)} answers,"
        f" {len(failed)} of them errors, none of a request sent after that"
    )
    assert late == []
    until(lambda: ready.requests_in_flight() == 0, what="nothing in flight")

    ready.plain.start_again()
    ready.plain.wait_until_it_serves()
    until(lambda: ready.health(ready.plain) == "healthy", what="the new server to be known")
    with flood(lambda number: ready.ask(prompt(400 + number)), 16) as asked:
        assert {one.result().status_code for one in asked} == {200}
    served = ready.plain.total("request_success_total")
    say(f"started again: it served {served:.0f} of the next 16")
    assert served > 0
