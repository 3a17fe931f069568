"""One of three servers fails at once while its page and health path are well: how many requests fail with it?

    .venv/bin/python -m tests.bench.bench_failing [--rate 60] [--seconds 20] [--fault NAME ...]

Three emulated servers, `igw run` with its default profile, and Envoy. Streamed chats arrive at random times at a fixed
mean rate, whatever becomes of them; ten tenants have a system prompt each. At second 0 the server that served most so
far begins to fail. Two runs for each fault: the agent alone, without retries and outlier detection in Envoy, and with
Envoy's configuration as `igw render` writes it. The last run is a fleet of two servers that are well, whose time to
first token the successful requests are compared with. Round robin fails a third of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson

from agent.clock import SystemClock
from agent.demo.client import ChatFailed, send_chat
from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, ResponseSource, bootstrap
from tests.bench.machine_speed import MachineSpeed
from tests.bench.programs import BenchProgram, answers, free_ports, prepare_process
from tests.bench.table import Column, Table, bar

SERVERS = 3
TENANTS = 10
WARM_UP_SECONDS = 5.0
EARLY_SECONDS = 2.0
BAR_ALL, BAR_LATE, BAR_TTFT = 0.05, 0.01, 1.1
FAULTS: dict[str, dict[str, Any]] = {
    "500": {"completions": "error", "completions_status": 500},
    "503": {"completions": "error", "completions_status": 503},
    "reset": {"completions": "reset"},
    "half": {"completions": "error", "completions_status": 500, "completions_ratio": 0.5},
}
SOURCES = (ResponseSource.ACCESS_LOG, ResponseSource.RESPONSE_HEADERS)


class Sent(NamedTuple):
    """One request: seconds since the fault began, and the time to first token, None where it failed."""

    at: float
    ttft: float | None


class Fleet:
    """Servers, agent and Envoy of one run."""

    def __init__(self, folder: Path, servers: int) -> None:
        ports = free_ports(servers + 2)
        self.folder = folder
        self.addresses = [f"127.0.0.1:{port}" for port in ports[:servers]]
        self.picker, self.admin = (f"127.0.0.1:{port}" for port in ports[servers:])

    @contextlib.asynccontextmanager
    async def running(self, source: ResponseSource, *, helped: bool) -> AsyncIterator[str]:
        """The address of Envoy's listener. Not `helped`: Envoy neither retries nor ejects."""
        async with contextlib.AsyncExitStack() as stack:
            python, log = sys.executable, self.folder
            options = ["--prefill-tokens-per-second", "20000", "--step-seconds", "0.005"]
            for address in self.addresses:
                command = [python, "-m", "agent", "emulate", "--listen", address, *options]
                stack.callback(BenchProgram(command, log / f"{address}.log").stop)
            pools = [{"extProcAddress": self.picker, "endpoints": self.addresses}]
            config = {
                "apiVersion": "llm-d.ai/v1alpha1",
                "kind": "EndpointPickerConfig",
                "admin": {"address": self.admin},
                "scrape": {"interval": "200ms"},
                "pools": pools,
            }
            path = self.folder / "igw.yaml"
            path.write_bytes(orjson.dumps(config))
            agent = BenchProgram([python, "-m", "agent", "run", "--config", path], log / "agent.log")
            stack.callback(agent.stop)
            agent.wait_until(lambda: answers(f"http://{self.admin}/readyz"))
            settings = EnvoyConfig(
                (EnvoyPool("default", tuple(self.addresses), self.picker),),
                (EnvoyListener("picker", "127.0.0.1:0", "default"),),
                responses=source,
            )
            rendered = bootstrap(settings)
            if not helped:
                _without_help(rendered)
            envoy = await process.start(rendered, self.folder / "envoy", concurrency=1)
            stack.push_async_callback(envoy.stop)
            yield f"http://127.0.0.1:{envoy.ports['picker']}/v1/chat/completions"


def _without_help(rendered: dict[str, Any]) -> None:
    """Remove retries and outlier detection from Envoy's configuration."""
    for cluster in rendered["static_resources"]["clusters"]:
        cluster.pop("outlier_detection", None)
    for listener in rendered["static_resources"]["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        for host in manager["route_config"]["virtual_hosts"]:
            for route in host["routes"]:
                route["route"].pop("retry_policy", None)


async def run(
    servers: int, source: ResponseSource, fault: str | None, rate: float, seconds: float, *, helped: bool
) -> list[Sent]:
    """The requests of one run, those of the warm-up excluded."""
    random_ = random.Random(7)
    systems = [" ".join(random_.choices(_WORDS, k=400)) for _ in range(TENANTS)]
    sent: list[Sent] = []
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), servers)
        async with (
            fleet.running(source, helped=helped) as url,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30)
            ) as session,
        ):

            async def one(at: float) -> None:
                words = " ".join(random_.choices(_WORDS, k=60))
                messages = [
                    {"role": "system", "content": random_.choice(systems)},
                    {"role": "user", "content": words},
                ]
                body = orjson.dumps({"model": "emulated", "messages": messages, "stream": True, "max_tokens": 8})
                try:
                    ttft: float | None = await send_chat(session, url, body, clock)
                except ChatFailed:
                    ttft = None
                if at >= 0:
                    sent.append(Sent(at, ttft))

            start = time.monotonic() + WARM_UP_SECONDS
            broken = fault is None
            at = -WARM_UP_SECONDS
            async with asyncio.TaskGroup() as group:
                while at < seconds:
                    await asyncio.sleep(max(0.0, start + at - time.monotonic()))
                    if not broken and at >= 0:
                        broken = True
                        await _break(session, fleet, FAULTS[fault or ""])
                    group.create_task(one(at))
                    at += random_.expovariate(rate)
    return sent


async def _break(session: aiohttp.ClientSession, fleet: Fleet, fault: dict[str, Any]) -> None:
    """Let the server fail that served most so far."""
    async with session.get(f"http://{fleet.admin}/v1/picks?limit=100") as response:
        picks = (await response.json())["picks"]
    ((busiest, _),) = collections.Counter(pick["endpoint"] for pick in picks).most_common(1)
    async with session.post(f"http://{busiest}/emulator/faults", json=fault) as response:
        response.raise_for_status()


def _p90(sent: list[Sent]) -> float:
    times = sorted(each.ttft for each in sent if each.ttft is not None)
    return times[int(0.9 * len(times))] if times else float("inf")


_WORDS = "the quick brown fox jumps over a lazy dog while many small birds sing in old trees".split()


def main(argv: list[str] | None = None) -> int:
    """Run the bench; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="make bench-failing", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rate", type=float, default=60.0, help="requests per second (default: 60)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the server fails (default: 20)")
    parser.add_argument("--fault", nargs="*", choices=sorted(FAULTS), default=["500"], help="default: 500")
    args = parser.parse_args(argv)
    prepare_process()
    speed = MachineSpeed()
    table = Table(
        [
            Column("fault", 8),
            Column("reports", 18),
            Column("Envoy helps", 12),
            Column("requests", 9, "d"),
            Column("failed", 8, ".2%"),
            Column("after 2 s", 10, ".2%"),
            Column("TTFT p90 ms", 12, ".1f"),
        ]
    )
    bars = []
    well = asyncio.run(run(SERVERS - 1, SOURCES[0], None, args.rate, args.seconds, helped=True))
    reference = _p90(well)
    table.row("none", SOURCES[0].value, "two servers", len(well), _failed(well), _failed(well), 1000 * reference)
    for fault in args.fault:
        for source in SOURCES:
            for helped in (False, True):
                sent = asyncio.run(run(SERVERS, source, fault, args.rate, args.seconds, helped=helped))
                late = [each for each in sent if each.at >= EARLY_SECONDS]
                help_ = "yes" if helped else "no"
                table.row(fault, source.value, help_, len(sent), _failed(sent), _failed(late), 1000 * _p90(sent))
                name = f"{fault}, {source.value}, {'with' if helped else 'without'} Envoy's help"
                bars += [
                    (f"{name}: failed", _failed(sent), BAR_ALL),
                    (f"{name}: failed after 2 s", _failed(late), BAR_LATE),
                    (f"{name}: TTFT p90 over two servers'", _p90(sent) / reference, BAR_TTFT),
                ]
    for claim, value, limit in bars:
        print(bar(claim, value, limit))
    print(speed.summary())
    return int(any(value > limit for _, value, limit in bars))


def _failed(sent: list[Sent]) -> float:
    return sum(each.ttft is None for each in sent) / max(1, len(sent))


if __name__ == "__main__":
    sys.exit(main())
