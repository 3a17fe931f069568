"""Two real vLLM servers on the tiny model, the agent and Envoy in front of them, and what a test asks of each."""

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
from agent.envoy.render import Listener, Pool, Settings, Way, bootstrap
from tests.processes import Process, Processes
from tests.vllm.environment import CACHE
from tests.waiting import until

MODEL = "tiny"
ADAPTERS = ("lora-a", "lora-b")
BATCH = 4  # requests that a server runs at a time: few, so that a queue is real
BLOCK_TOKENS = 128  # vLLM's default on a CPU
BLOCKS = 160  # ten prompts of the longest kind
START_SECONDS = 240.0  # 40 s on two cores that have nothing else to do
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
    """A prompt of English, the same for the same number and unlike all others from its first words on."""
    start = number * 7_919 % (len(_PROSE) - size_bytes)
    return f"{number}: {_PROSE[start : start + size_bytes]}"


class Server:
    """One vLLM, asked directly: what it says of itself is the truth that the agent is held to."""

    def __init__(self, processes: Processes, port: int, flags: tuple[str, ...]) -> None:
        self.address = f"127.0.0.1:{port}"
        self._processes = processes
        self._flags = flags
        self.process = self._launch()

    def _launch(self) -> Process:
        host, port = self.address.split(":")
        command: list[str | Path] = [CACHE / "venv" / "bin" / "python", "-m", "vllm.entrypoints.openai.api_server"]
        flags = ["--model", "models/tiny", "--served-model-name", MODEL, "--host", host, "--port", port]
        # float32: some virtual machines lack the instructions for bfloat16. Eager: so small a model needs no compiler.
        flags += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--max-num-seqs", str(BATCH)]
        # The part of this machine's memory that must be free at the start; the cache itself is the blocks below.
        flags += ["--gpu-memory-utilization", "0.1", "--num-gpu-blocks-override", str(BLOCKS)]
        flags += ["--enable-prompt-tokens-details", *self._flags]
        return self._processes.start([*command, *flags], env=ENVIRONMENT, cwd=CACHE)

    def wait_until_it_serves(self) -> None:
        """Until it answers; the test fails with its output when it does not start."""

        def healthy() -> bool:
            assert self.process.running(), f"it did not start: {self.process}"
            try:
                return requests.get(f"http://{self.address}/health", timeout=5).ok
            except requests.ConnectionError:
                return False

        until(healthy, START_SECONDS, f"vLLM at {self.address}")

    def kill(self) -> None:
        """SIGKILL to the API server and to its engine and workers, which would outlive it."""
        self.process.kill()

    def start_again(self) -> None:
        self.process = self._launch()

    def total(self, name: str, **labels: str) -> float:
        """The sum of a family's samples with these labels, as its page has them now."""
        page = requests.get(f"http://{self.address}/metrics", timeout=10).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(value)
            for family, found, value in _SAMPLE.findall(page)
            if family == f"vllm:{name}" and all(pair in found for pair in wanted)
        )

    def complete(self, text: str, tokens: int) -> requests.Response:
        """One request past the agent and Envoy."""
        return _complete(self.address, MODEL, text, tokens)


def _complete(address: str, model: str, text: str, tokens: int) -> requests.Response:
    body = {"model": model, "prompt": text, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    return requests.post(f"http://{address}/v1/completions", json=body, timeout=120)


class Fleet:
    """`plain` serves the model alone, `lora` has the adapters too; requests go in at Envoy."""

    def __init__(self, plain: Server, lora: Server, envoy_address: str, admin_address: str) -> None:
        self.plain = plain
        self.lora = lora
        self._envoy = envoy_address
        self._admin = admin_address

    def ask(self, text: str, *, model: str = MODEL, tokens: int = 8) -> requests.Response:
        """One request through Envoy, to whichever server the agent picks."""
        return _complete(self._envoy, model, text, tokens)

    def endpoints(self) -> Mapping[str, Any]:
        """The shared state: address -> endpoint."""
        (pool,) = requests.get(f"http://{self._admin}/v1/state", timeout=10).json()["pools"]
        return {endpoint["address"]: endpoint for endpoint in pool["endpoints"]}

    def sees(self, server: Server, signal: str) -> Any:
        """The value of a signal as the agent has it, None where it is withheld."""
        return self.endpoints()[server.address]["signals"][signal]["value"]

    def health(self, server: Server) -> str:
        return str(self.endpoints()[server.address]["health"])

    def requests_in_flight(self) -> int:
        """What the agent counts as begun and not ended, over both servers."""
        return sum(endpoint["work"]["requests"] for endpoint in self.endpoints().values())

    def served(self) -> tuple[float, float]:
        """Requests finished by `plain` and by `lora`, by their own counters."""
        return self.plain.total("request_success_total"), self.lora.total("request_success_total")

    def idle(self) -> None:
        """Until neither server has work and the agent's pages say so."""

        def rests() -> bool:
            seen = [self.sees(server, name) for server in (self.plain, self.lora) for name in _BUSY]
            return self.requests_in_flight() == 0 and not any(seen)

        until(rests, 120, "an idle fleet")


_BUSY = ("running_requests", "waiting_requests")


@contextmanager
def flood(ask: Callable[[int], requests.Response], count: int) -> Iterator[list[Future[requests.Response]]]:
    """`count` requests at once; all have their answer when the block ends."""
    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(ask, number) for number in range(count)]


@contextmanager
def fleet(processes: Processes, ports: list[int], logs: Path) -> Iterator[Fleet]:
    """All of it, ready; nothing of it is left when the block ends."""
    plain_port, lora_port, picker_port, admin_port = ports
    modules = [f"{name}=models/{name}" for name in ADAPTERS]
    plain = Server(processes, plain_port, ())
    lora = Server(processes, lora_port, ("--enable-lora", "--max-loras", "2", "--lora-modules", *modules))
    plain.wait_until_it_serves()
    lora.wait_until_it_serves()
    addresses = (plain.address, lora.address)
    picker, admin = f"127.0.0.1:{picker_port}", f"127.0.0.1:{admin_port}"
    command: list[str | Path] = [Path(sys.executable).with_name("igw"), "run", "--endpoints", ",".join(addresses)]
    agent = processes.start([*command, "--ext-proc-address", picker, "--admin-address", admin])
    agent.wait_for("admin: ")
    settings = Settings(
        (Pool("default", addresses, picker),), (Listener("in", "127.0.0.1:0", "default", Way.BUFFERED),)
    )
    proxy = asyncio.run(envoy.start(bootstrap(settings), logs / "envoy"))
    try:
        made = Fleet(plain, lora, f"127.0.0.1:{proxy.ports['in']}", admin)
        until(lambda: made.health(plain) == made.health(lora) == "healthy", 30, "two healthy endpoints")
        until(lambda: made.sees(lora, "served_models"), 30, "the names of the models")
        yield made
    finally:
        asyncio.run(proxy.stop())
