"""The whole system with real vLLM servers: the agent's readings and picks are compared with the servers' counters.

Run by `make test-vllm`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic

import pytest
import requests

from tests.processes import Processes
from tests.vllm.fleet import ADAPTERS, BLOCK_TOKENS, BLOCKS, MODEL, VllmFleet, fleet, prompt, send_at_once
from tests.waiting import until

pytestmark = pytest.mark.vllm
DOWN_WITHIN_SECONDS = 2.0
Report = Callable[[str], None]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]) -> Iterator[VllmFleet]:
    logs = tmp_path_factory.mktemp("fleet")
    processes = Processes(logs)
    try:
        with fleet(processes, free_ports(4), logs) as started:
            yield started
    finally:
        processes.stop_all()


@pytest.fixture
def ready(running: VllmFleet) -> VllmFleet:
    """The idle fleet, so that no test sees the requests of another."""
    running.idle()
    return running


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Prints measurements to the terminal."""

    def write(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}", end=" ")

    return write


def test_the_agent_reads_models_and_cache_sizes(ready: VllmFleet, report: Report) -> None:
    assert ready.reading(ready.plain, "served_models") == [MODEL]
    assert ready.reading(ready.lora, "served_models") == sorted([MODEL, *ADAPTERS])
    for server in (ready.plain, ready.lora):
        assert ready.reading(server, "block_size_tokens") == BLOCK_TOKENS
        assert ready.reading(server, "kv_blocks") == BLOCKS
    report(
        f"plain serves {MODEL}, lora serves {', '.join((MODEL, *ADAPTERS))};"
        f" each has {BLOCKS} blocks of {BLOCK_TOKENS} tokens"
    )


def test_adapter_requests_go_to_the_server_with_the_adapter(ready: VllmFleet, report: Report) -> None:
    before = ready.served()
    with send_at_once(lambda number: ready.complete(prompt(number, 400), model=ADAPTERS[number % 2]), 20) as futures:
        answers = [future.result() for future in futures]
    assert [answer.status_code for answer in answers] == [200] * 20
    assert [answer.json()["model"] for answer in answers] == [ADAPTERS[number % 2] for number in range(20)]
    plain, lora = (after - earlier for after, earlier in zip(ready.served(), before, strict=True))
    report(f"20 adapter requests: plain served {plain:.0f}, lora {lora:.0f}")
    assert (plain, lora) == (0, 20)


def test_new_prompts_are_spread_and_all_counters_agree(ready: VllmFleet, report: Report) -> None:
    before = ready.served()
    tokens = [sum(server.total("prompt_tokens_total") for server in (ready.plain, ready.lora))]
    with send_at_once(lambda number: ready.complete(prompt(100 + number)), 24) as futures:
        answers = [future.result() for future in futures]
    assert {answer.status_code for answer in answers} == {200}
    plain, lora = (after - earlier for after, earlier in zip(ready.served(), before, strict=True))
    report(f"24 new prompts at once: plain served {plain:.0f}, lora {lora:.0f}")
    assert plain + lora == 24
    assert min(plain, lora) >= 6
    tokens.append(sum(server.total("prompt_tokens_total") for server in (ready.plain, ready.lora)))
    assert tokens[1] - tokens[0] == sum(answer.json()["usage"]["prompt_tokens"] for answer in answers)
    until(
        lambda: sum(ready.reading(server, "prompt_tokens") or 0 for server in (ready.plain, ready.lora)) == tokens[1],
        what="the agent to read all prompt tokens",
    )


def test_a_prompt_goes_to_the_server_with_its_prefix(ready: VllmFleet, report: Report) -> None:
    before = ready.served()
    hits = 0
    for number in (200, 201, 202):
        home = ready.served()
        answers = [ready.complete(prompt(number, 4_000) + f" Question {turn}.") for turn in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 5
        served = sorted(after - earlier for after, earlier in zip(ready.served(), home, strict=True))
        assert served == [0, 5], f"prompt {number} was served by both"
        cached = [answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
        length = answers[0].json()["usage"]["prompt_tokens"]
        assert cached[0] == 0
        assert min(cached[1:]) >= length - 2 * BLOCK_TOKENS
        hits += sum(cached)
    plain, lora = (after - earlier for after, earlier in zip(ready.served(), before, strict=True))
    report(
        f"3 prompts, 5 turns each: plain served {plain:.0f}, lora {lora:.0f};"
        f" {hits} prompt tokens from the servers' caches"
    )

    def counted() -> float:
        found = [endpoint["prefix"]["measured_hit_tokens"] for endpoint in ready.endpoints().values()]
        return sum(tokens for tokens in found if tokens is not None)

    until(lambda: counted() >= hits, what="the agent to read the hits")
    predicted = sum(endpoint["prefix"]["predicted_hit_tokens"] for endpoint in ready.endpoints().values())
    report(f"prefix hits in tokens: the index predicted {predicted:.0f}, the servers counted {counted():.0f}")


def test_a_server_with_a_queue_gets_neither_new_nor_warm_prompts(ready: VllmFleet, report: Report) -> None:
    warm = prompt(300)
    before = ready.served()
    assert ready.complete(warm).ok
    home, other = (ready.plain, ready.lora) if ready.served()[0] > before[0] else (ready.lora, ready.plain)
    # Sent directly: the agent did not pick these and can only know them from the server's page. Long prompts with short
    # answers queue for prefill.
    with send_at_once(lambda number: home.complete(prompt(500 + number, 7_000), 1), 100):
        until(lambda: (ready.reading(home, "waiting_requests") or 0) >= 40, what="the agent to read the queue")
        queue, kv = ready.reading(home, "waiting_requests"), ready.reading(home, "kv_usage_ratio")
        backlog = ready.endpoints()[home.address]["work"]["prefill_seconds"]
        there = other.total("request_success_total")
        answers = [ready.complete(warm), *(ready.complete(prompt(340 + number)) for number in range(4))]
        assert [answer.status_code for answer in answers] == [200] * 5
        elsewhere = other.total("request_success_total") - there
    report(
        f"{queue:.0f} waiting, {backlog:.1f} s of prefill backlog and KV {kv:.0%} at one server:"
        f" the other served {elsewhere:.0f} of 5, one of them with a prefix at the queue"
    )
    assert elsewhere == 5


def test_a_server_killed_under_load_is_down_within_two_seconds_and_recovers(ready: VllmFleet, report: Report) -> None:
    stop = threading.Event()
    sent: list[tuple[float, int]] = []

    def client(number: int) -> requests.Response:
        turn = 0
        while True:
            at = monotonic()
            answer = ready.complete(prompt(1_000 * number + turn, 800), tokens=24)
            sent.append((at, answer.status_code))
            turn += 1
            if stop.is_set():
                return answer

    with send_at_once(client, 8):
        try:
            until(
                lambda: min(ready.reading(server, "running_requests") or 0 for server in (ready.plain, ready.lora)) > 0
            )
            killed = monotonic()
            ready.plain.kill()
            until(lambda: ready.health(ready.plain) == "down", DOWN_WITHIN_SECONDS, "the killed server to be down")
            down = monotonic()
            after = len(sent) + 100
            until(lambda: len(sent) >= after, 60, "100 more answers")
        finally:
            stop.set()
    failed = [status for at, status in sent if status != 200]
    late = [status for at, status in sent if at > down and status != 200]
    report(
        f"killed with -9 under 8 clients: down after {down - killed:.2f} s; {len(sent)} answers,"
        f" {len(failed)} of them errors, none for a request sent after that"
    )
    assert late == []
    until(lambda: ready.requests_in_flight() == 0, what="nothing in flight")

    ready.plain.restart()
    ready.plain.wait_until_healthy()
    until(lambda: ready.health(ready.plain) == "healthy", what="the new server to be healthy")
    with send_at_once(lambda number: ready.complete(prompt(400 + number)), 16) as futures:
        assert {future.result().status_code for future in futures} == {200}
    served = ready.plain.total("request_success_total")
    report(f"restarted: it served {served:.0f} of the next 16")
    assert served > 0
