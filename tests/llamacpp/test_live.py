"""A real llama.cpp server: what the agent reads is what the server did. Run by `make test-llamacpp`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.llamacpp.environment import install, model
from tests.processes import Process, Processes
from tests.waiting import until

pytestmark = pytest.mark.llamacpp
SLOTS = 4
AT_ONCE = 16
OUT_WITHIN_SECONDS = 2.0


class Live:
    """One server with four slots, and an agent that is told nothing but its address."""

    def __init__(self, processes: Processes, ports: list[int]) -> None:
        self._processes = processes
        self.server_address, self.picker, self.admin = (f"127.0.0.1:{port}" for port in ports)
        self.server = self.start_server()
        self.run_agent("auto", self.picker, self.admin)

    def start_server(self) -> Process:
        host, port = self.server_address.split(":")
        flags = ["--alias", "tiny", "--host", host, "--port", port, "--metrics", "--parallel", str(SLOTS)]
        # One thread, for others work here too.
        flags += ["--ctx-size", str(2048 * SLOTS), "--threads", "1", "--no-warmup"]
        # A request holds one of these to its end, waiting or not, and the page needs one too.
        flags += ["--threads-http", str(2 * AT_ONCE)]
        return self._processes.start([install(), "--model", model(), *flags])

    def run_agent(self, engine: str, picker: str, admin: str) -> Process:
        command: list[str | Path] = [Path(sys.executable).with_name("igw"), "run", "--endpoints", self.server_address]
        command += ["--engine", engine, "--scrape-interval", "50ms", "--ext-proc-address", picker]
        agent = self._processes.start([*command, "--admin-address", admin])
        agent.wait_for("admin: ")
        return agent

    def endpoint(self, admin: str = "") -> Any:
        """What the agent shares of the server."""
        (pool,) = requests.get(f"http://{admin or self.admin}/v1/state", timeout=10).json()["pools"]
        (endpoint,) = pool["endpoints"]
        return endpoint

    def reads(self, signal: str) -> Any:
        """The signal's value as the agent has it, None where it is unknown."""
        return self.endpoint()["signals"].get(signal, {}).get("value")

    def is_well(self) -> bool:
        return bool(self.endpoint()["health"] == "healthy")

    def ask(self, text: str, tokens: int) -> Any:
        """One request, straight to the server; what it counted for it."""
        body = {"model": "tiny", "prompt": text, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        answer = requests.post(f"http://{self.server_address}/v1/completions", json=body, timeout=120)
        assert answer.ok, answer.text
        return answer.json()["usage"]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]) -> Iterator[Live]:
    processes = Processes(tmp_path_factory.mktemp("llamacpp"))
    try:
        made = Live(processes, free_ports(3))
        until(made.is_well, 60, "a healthy endpoint")
        yield made
    finally:
        processes.stop_all()


def test_the_server_is_recognised_by_its_page_and_its_models_are_known(live: Live) -> None:
    assert live.endpoint()["engine"] == "llamacpp"
    until(lambda: live.reads("served_models") == ["tiny"], 30, "the name of the model")


def test_requests_beyond_its_slots_are_seen_waiting(live: Live) -> None:
    seen: list[tuple[float, float]] = []

    def crowded() -> bool:
        running, waiting = live.reads("running_requests"), live.reads("waiting_requests")
        seen.append((running, waiting))
        return running == SLOTS and 0 < waiting <= AT_ONCE - SLOTS

    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [pool.submit(live.ask, f"{number} of many", 1200) for number in range(AT_ONCE)]
        until(crowded, 60, f"{SLOTS} running and {AT_ONCE - SLOTS} waiting")
        assert [one.result()["completion_tokens"] for one in asked] == [1200] * AT_ONCE
    assert all(running <= SLOTS and running + waiting <= AT_ONCE for running, waiting in seen)
    until(lambda: (live.reads("running_requests"), live.reads("waiting_requests")) == (0, 0), 30, "an idle server")


def test_tokens_and_prefix_hits_are_those_that_the_answers_tell(live: Live) -> None:
    names = ("prompt_tokens", "generation_tokens", "prefix_hit_tokens")
    before = {name: live.reads(name) for name in names}
    text = "the same prompt, twice: " * 20
    told = [live.ask(text, 5), live.ask(text, 5)]
    expected = {
        "prompt_tokens": sum(usage["prompt_tokens"] for usage in told),
        "generation_tokens": sum(usage["completion_tokens"] for usage in told),
        "prefix_hit_tokens": sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in told),
    }
    assert expected["prefix_hit_tokens"] > 100
    until(lambda: {name: live.reads(name) - before[name] for name in names} == expected, 30, f"growth by {expected}")


def test_an_agent_that_was_told_another_engine_names_the_right_one(
    live: Live, free_ports: Callable[[int], list[int]]
) -> None:
    picker, admin = (f"127.0.0.1:{port}" for port in free_ports(2))
    agent = live.run_agent("vllm", picker, admin)
    until(lambda: live.endpoint(admin)["failures"] > 0, 30, "a failed scrape")
    endpoint = live.endpoint(admin)
    assert endpoint["health"] != "healthy"
    assert {signal["value"] for signal in endpoint["signals"].values()} == {None}
    assert "wrong_engine" in str(endpoint)
    assert "this is a page of llamacpp, not of vllm: write `engine: llamacpp`" in agent.output()


def test_a_killed_server_is_out_within_seconds_and_comes_back_without_its_old_counts(live: Live) -> None:
    assert live.reads("generation_tokens") > 0
    live.server.kill()
    until(lambda: not live.is_well(), OUT_WITHIN_SECONDS, "an endpoint that is out")
    live.server = live.start_server()
    until(live.is_well, 60, "a healthy endpoint")
    assert live.reads("generation_tokens") == 0
