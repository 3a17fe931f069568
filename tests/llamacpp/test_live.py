"""The agent with a real llama.cpp server, compared with the server's answers. Run by `make test-llamacpp`."""

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
DOWN_WITHIN_SECONDS = 2.0


class LlamaCppFleet:
    """One server with four slots, and an agent that is configured with its address only."""

    def __init__(self, processes: Processes, ports: list[int]) -> None:
        self._processes = processes
        self.server_address, self.picker, self.admin = (f"127.0.0.1:{port}" for port in ports)
        self.server = self.start_server()
        self.run_agent("auto", self.picker, self.admin)

    def start_server(self) -> Process:
        host, port = self.server_address.split(":")
        flags = ["--alias", "tiny", "--host", host, "--port", port, "--metrics", "--parallel", str(SLOTS)]
        # One thread, as other programs run here too.
        flags += ["--ctx-size", str(2048 * SLOTS), "--threads", "1", "--no-warmup"]
        # Each request holds one of these threads to its end, also in the queue, and a scrape needs one too.
        flags += ["--threads-http", str(2 * AT_ONCE)]
        return self._processes.start([install(), "--model", model(), *flags])

    def run_agent(self, engine: str, picker: str, admin: str) -> Process:
        command: list[str | Path] = [Path(sys.executable).with_name("igw"), "run", "--endpoints", self.server_address]
        command += ["--engine", engine, "--scrape-interval", "50ms", "--ext-proc-address", picker]
        agent = self._processes.start([*command, "--admin-address", admin])
        agent.wait_for("admin: ")
        return agent

    def endpoint(self, admin: str = "") -> Any:
        """The endpoint in `/v1/state`."""
        (pool,) = requests.get(f"http://{admin or self.admin}/v1/state", timeout=10).json()["pools"]
        (endpoint,) = pool["endpoints"]
        return endpoint

    def reading(self, signal: str) -> Any:
        """The agent's value of a signal, None if it is unknown."""
        return self.endpoint()["signals"].get(signal, {}).get("value")

    def is_healthy(self) -> bool:
        return bool(self.endpoint()["health"] == "healthy")

    def complete(self, text: str, tokens: int) -> Any:
        """Send one request directly to the server; the usage in its answer."""
        body = {"model": "tiny", "prompt": text, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        answer = requests.post(f"http://{self.server_address}/v1/completions", json=body, timeout=120)
        assert answer.ok, answer.text
        return answer.json()["usage"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]) -> Iterator[LlamaCppFleet]:
    processes = Processes(tmp_path_factory.mktemp("llamacpp"))
    try:
        started = LlamaCppFleet(processes, free_ports(3))
        until(started.is_healthy, 60, "a healthy endpoint")
        yield started
    finally:
        processes.stop_all()


def test_the_engine_is_recognised_by_its_page_and_the_models_are_read(fleet: LlamaCppFleet) -> None:
    assert fleet.endpoint()["engine"] == "llamacpp"
    until(lambda: fleet.reading("served_models") == ["tiny"], 30, "the model's name")


def test_requests_beyond_the_slots_are_read_as_waiting(fleet: LlamaCppFleet) -> None:
    seen: list[tuple[float, float]] = []

    def crowded() -> bool:
        running, waiting = fleet.reading("running_requests"), fleet.reading("waiting_requests")
        seen.append((running, waiting))
        return running == SLOTS and 0 < waiting <= AT_ONCE - SLOTS

    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(fleet.complete, f"{number} of many", 1200) for number in range(AT_ONCE)]
        until(crowded, 60, f"{SLOTS} running and {AT_ONCE - SLOTS} waiting")
        assert [future.result()["completion_tokens"] for future in futures] == [1200] * AT_ONCE
    assert all(running <= SLOTS and running + waiting <= AT_ONCE for running, waiting in seen)
    until(
        lambda: (fleet.reading("running_requests"), fleet.reading("waiting_requests")) == (0, 0), 30, "an idle server"
    )


def test_tokens_and_prefix_hits_equal_those_in_the_answers(fleet: LlamaCppFleet) -> None:
    names = ("prompt_tokens", "generation_tokens", "prefix_hit_tokens")
    before = {name: fleet.reading(name) for name in names}
    text = "the same prompt, twice: " * 20
    usages = [fleet.complete(text, 5), fleet.complete(text, 5)]
    expected = {
        "prompt_tokens": sum(usage["prompt_tokens"] for usage in usages),
        "generation_tokens": sum(usage["completion_tokens"] for usage in usages),
        "prefix_hit_tokens": sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages),
    }
    assert expected["prefix_hit_tokens"] > 100
    until(lambda: {name: fleet.reading(name) - before[name] for name in names} == expected, 30, f"growth by {expected}")


def test_an_agent_with_the_wrong_engine_names_the_right_one(
    fleet: LlamaCppFleet, free_ports: Callable[[int], list[int]]
) -> None:
    picker, admin = (f"127.0.0.1:{port}" for port in free_ports(2))
    agent = fleet.run_agent("vllm", picker, admin)
    until(lambda: fleet.endpoint(admin)["failures"] > 0, 30, "a failed scrape")
    endpoint = fleet.endpoint(admin)
    assert endpoint["health"] != "healthy"
    assert {signal["value"] for signal in endpoint["signals"].values()} == {None}
    assert "wrong_engine" in str(endpoint)
    assert "this is a page of llamacpp, not of vllm: write `engine: llamacpp`" in agent.output()


def test_a_killed_server_is_down_within_seconds_and_returns_without_its_old_counters(fleet: LlamaCppFleet) -> None:
    assert fleet.reading("generation_tokens") > 0
    fleet.server.kill()
    until(lambda: not fleet.is_healthy(), DOWN_WITHIN_SECONDS, "an endpoint that is down")
    fleet.server = fleet.start_server()
    until(fleet.is_healthy, 60, "a healthy endpoint")
    assert fleet.reading("generation_tokens") == 0
