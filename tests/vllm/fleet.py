"""Two real vLLM servers with the tiny model, the agent and Envoy in front of them, and access to each."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from pydoc_data import topics
from typing import Any

import requests

from agent.envoy import process as envoy
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from tests.processes import Process, Processes
from tests.vllm.environment import CACHE
from tests.waiting import until

MODEL = "tiny"
ADAPTERS = ("lora-a", "lora-b")
BATCH = 4  # requests that a server runs at once: few, so that a queue forms
BLOCK_TOKENS = 128  # vLLM's default on a CPU
BLOCKS = 160  # space for ten of the longest prompts
START_SECONDS = 240.0  # 40 s on two idle cores
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_PROSE = " ".join(" ".join(text.split()) for _, text in sorted(topics.topics.items()))


def prompt(number: int, size_bytes: int = 4_000) -> str:
    """An English prompt: equal for equal numbers, without a common prefix for others."""
    start = number * 7_919 % (len(_PROSE) - size_bytes)
    return f"{number}: {_PROSE[start : start + size_bytes]}"


class VllmServer:
    """One vLLM. The tests compare the agent with the server's own /metrics."""

    def __init__(self, processes: Processes, port: int, flags: tuple[str, ...]) -> None:
        self.address = f"127.0.0.1:{port}"
        self._processes = processes
        self._flags = flags
        self.process = self._launch()

    def _launch(self) -> Process:
        host, port = self.address.split(":")
        command: list[str | Path] = [CACHE / "venv" / "bin" / "python", "-m", "vllm.entrypoints.openai.api_server"]
        flags = ["--model", "models/tiny", "--served-model-name", MODEL, "--host", host, "--port", port]
        # float32: some virtual machines have no bfloat16 instructions. Eager: a small model needs no compiler.
        flags += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--max-num-seqs", str(BATCH)]
        # The ratio of memory that must be free at the start; the size of the cache is set by the number of blocks.
        flags += ["--gpu-memory-utilization", "0.1", "--num-gpu-blocks-override", str(BLOCKS)]
        flags += ["--enable-prompt-tokens-details", *self._flags]
        return self._processes.start([*command, *flags], env=ENVIRONMENT, cwd=CACHE)

    def wait_until_healthy(self) -> None:
        """Wait until it is healthy; the test fails with its output if it does not start."""

        def healthy() -> bool:
            assert self.process.running(), f"it did not start: {self.process}"
            try:
                return requests.get(f"http://{self.address}/health", timeout=5).ok
            except requests.ConnectionError:
                return False

        until(healthy, START_SECONDS, f"vLLM at {self.address}")

    def kill(self) -> None:
        """Send SIGKILL to the API server, its engine and its workers."""
        self.process.kill()

    def restart(self) -> None:
        self.process = self._launch()

    def total(self, name: str, **labels: str) -> float:
        """The sum of a family's samples with these labels on its current page."""
        page = requests.get(f"http://{self.address}/metrics", timeout=10).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(value)
            for family, found, value in _SAMPLE.findall(page)
            if family == f"vllm:{name}" and all(pair in found for pair in wanted)
        )

    def complete(self, text: str, tokens: int) -> requests.Response:
        """Send one request directly to this server."""
        return _complete(self.address, MODEL, text, tokens)


def _complete(address: str, model: str, text: str, tokens: int) -> requests.Response:
    body = {"model": model, "prompt": text, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    return requests.post(f"http://{address}/v1/completions", json=body, timeout=120)


class VllmFleet:
    """The server `plain` with the model only, `lora` with the adapters too, and Envoy in front of them."""

    def __init__(self, plain: VllmServer, lora: VllmServer, envoy_address: str, admin_address: str) -> None:
        self.plain = plain
        self.lora = lora
        self._envoy = envoy_address
        self._admin = admin_address

    def complete(self, text: str, *, model: str = MODEL, tokens: int = 8) -> requests.Response:
        """Send one request through Envoy to the server that the agent picks."""
        return _complete(self._envoy, model, text, tokens)

    def endpoints(self) -> Mapping[str, Any]:
        """Address -> endpoint of `/v1/state`."""
        (pool,) = requests.get(f"http://{self._admin}/v1/state", timeout=10).json()["pools"]
        return {endpoint["address"]: endpoint for endpoint in pool["endpoints"]}

    def reading(self, server: VllmServer, signal: str) -> Any:
        """The agent's value of a signal, None if it is withheld."""
        return self.endpoints()[server.address]["signals"][signal]["value"]

    def health(self, server: VllmServer) -> str:
        return str(self.endpoints()[server.address]["health"])

    def requests_in_flight(self) -> int:
        """Requests in flight at both servers, as counted by the agent."""
        return sum(endpoint["work"]["requests"] for endpoint in self.endpoints().values())

    def served(self) -> tuple[float, float]:
        """Requests finished by `plain` and by `lora`, as counted by the servers."""
        return self.plain.total("request_success_total"), self.lora.total("request_success_total")

    def idle(self) -> None:
        """Wait until both servers are idle and the agent has read it."""

        def is_idle() -> bool:
            seen = [self.reading(server, name) for server in (self.plain, self.lora) for name in _BUSY]
            return self.requests_in_flight() == 0 and not any(seen)

        until(is_idle, 120, "an idle fleet")


_BUSY = ("running_requests", "waiting_requests")


@contextmanager
def send_at_once(send: Callable[[int], requests.Response], count: int) -> Iterator[list[Future[requests.Response]]]:
    """Send `count` requests at once; all are answered at the end of the block."""
    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(send, number) for number in range(count)]


@contextmanager
def fleet(processes: Processes, ports: list[int], logs: Path) -> Iterator[VllmFleet]:
    """The running fleet, which is stopped at the end of the block."""
    plain_port, lora_port, picker_port, admin_port = ports
    modules = [f"{name}=models/{name}" for name in ADAPTERS]
    plain = VllmServer(processes, plain_port, ())
    lora = VllmServer(processes, lora_port, ("--enable-lora", "--max-loras", "2", "--lora-modules", *modules))
    plain.wait_until_healthy()
    lora.wait_until_healthy()
    addresses = (plain.address, lora.address)
    picker, admin = f"127.0.0.1:{picker_port}", f"127.0.0.1:{admin_port}"
    command: list[str | Path] = [Path(sys.executable).with_name("igw"), "run", "--endpoints", ",".join(addresses)]
    agent = processes.start([*command, "--ext-proc-address", picker, "--admin-address", admin])
    agent.wait_for("admin: ")
    config = EnvoyConfig(
        (EnvoyPool("default", addresses, picker),), (EnvoyListener("in", "127.0.0.1:0", "default", PickMode.BUFFERED),)
    )
    proxy = asyncio.run(envoy.start(bootstrap(config), logs / "envoy"))
    try:
        started = VllmFleet(plain, lora, f"127.0.0.1:{proxy.ports['in']}", admin)
        until(lambda: started.health(plain) == started.health(lora) == "healthy", 30, "two healthy endpoints")
        until(lambda: started.reading(lora, "served_models"), 30, "the names of the models")
        yield started
    finally:
        asyncio.run(proxy.stop())
