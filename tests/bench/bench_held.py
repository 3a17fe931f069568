"""Requests of 2 kB that the agent holds, through a real Envoy: what they cost the agent and Envoy, and their release.

    .venv/bin/python -m tests.bench.bench_held [--requests 10000] [--mode buffered full_duplex]

`igw run`, Envoy as `igw render` configures it, and one model server whose page shows a full batch. Clients send all
requests over HTTP/2; each is held. Then the page shows an empty batch of 256 slots, and the requests are dispatched as
others end. Memory is resident memory of the process, of which the time before the first request is shown too. The bar
is that of the agent while it holds all requests.

The time to release them is not the agent's alone: the clients, Envoy and the server share the machine. The CPU time of
the agent is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import aiohttp
import h2.config
import h2.connection
import h2.events
import orjson
from prometheus_client.parser import text_string_to_metric_families

from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from tests.bench.held_server import CHAT
from tests.bench.machine_speed import MachineSpeed
from tests.bench.programs import BenchProgram, answers, free_ports, listens, prepare_process
from tests.bench.table import Column, Table, bar

REQUESTS = 10_000
BODY_BYTES = 2_000
SLOTS = 256
STREAMS = 100  # of one connection of the clients
CONNECTIONS = 5  # that send at once: more than 5 s of work for the agent would exceed the message timeout
BAR_MIB = 200.0
WITHIN_SECONDS = 300.0
MODES = (PickMode.BUFFERED, PickMode.FULL_DUPLEX)
_MIB = 1 << 20
_WORDS = [f"word{number}" for number in range(2000)]


def request_body(random_: random.Random) -> bytes:
    """A chat of BODY_BYTES."""
    body = {"model": "m", "messages": [{"role": "user", "content": " ".join(random_.choices(_WORDS, k=240))}]}
    return orjson.dumps(body)[: BODY_BYTES - 4] + b'"}]}'


class Requests(asyncio.Protocol):
    """One connection of the clients: STREAMS requests at most, all sent at once."""

    def __init__(self, bodies: Sequence[bytes], statuses: list[int], done: asyncio.Event, total: int) -> None:
        self._bodies = list(bodies)
        self._statuses = statuses
        self._done = done
        self._total = total
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send as many requests as the window allows."""
        self._transport = cast(asyncio.Transport, transport)
        self._h2.initiate_connection()
        self._send()

    def data_received(self, data: bytes) -> None:
        """Answers."""
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self._statuses.append(int(dict(event.headers)[b":status"]))
            elif isinstance(event, h2.events.DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self._send()
        if len(self._statuses) == self._total:
            self._done.set()

    def _send(self) -> None:
        bodies, connection = self._bodies, self._h2
        while bodies and connection.outbound_flow_control_window >= len(bodies[-1]):
            body = bodies.pop()
            stream = connection.get_next_available_stream_id()
            fields = [(":method", "POST"), (":scheme", "http"), (":authority", "gateway"), (":path", CHAT)]
            connection.send_headers(stream, [*fields, ("content-length", str(len(body)))])
            connection.send_data(stream, body, end_stream=True)
        if self._transport is not None:
            self._transport.write(connection.data_to_send())


class Fleet:
    """The model server, the agent and Envoy of one run."""

    def __init__(self, folder: Path) -> None:
        picker, admin, self._server_port = free_ports(3)
        self._folder = folder
        self._picker = f"127.0.0.1:{picker}"
        self.admin = f"http://127.0.0.1:{admin}"
        self.full = folder / "full"
        self.agent: BenchProgram
        self.envoy: process.EnvoyProcess

    @contextlib.asynccontextmanager
    async def running(self, mode: PickMode) -> AsyncIterator[None]:
        """All of them, until the end of the block."""
        async with contextlib.AsyncExitStack() as stack:
            self.full.touch()
            port, server = self._server_port, f"127.0.0.1:{self._server_port}"
            command = [sys.executable, "-m", "tests.bench.held_server", str(port), str(SLOTS), str(self.full)]
            model_server = BenchProgram(command, self._folder / "server")
            stack.callback(model_server.stop)
            await asyncio.to_thread(model_server.wait_until, lambda: listens(port))
            config = {
                "apiVersion": "llm-d.ai/v1alpha1",
                "kind": "EndpointPickerConfig",
                "admin": {"address": self.admin.removeprefix("http://")},
                "scrape": {"interval": "200ms"},
                "prefillRate": {"fixed": 1_000_000},
                "flowControl": {
                    "defaultRequestTTL": "9m",
                    "saturationDetector": {"slots": SLOTS, "maxWait": "60s"},
                },
                "pools": [{"extProcAddress": self._picker, "engine": "vllm", "endpoints": [server]}],
            }
            path = self._folder / "igw.yaml"
            path.write_bytes(orjson.dumps(config))
            self.agent = BenchProgram([sys.executable, "-m", "agent", "run", "--config", path], self._folder / "agent")
            stack.callback(self.agent.stop)
            await asyncio.to_thread(self.agent.wait_until, lambda: answers(f"{self.admin}/readyz"))
            settings = EnvoyConfig(
                (EnvoyPool("default", (server,), self._picker),),
                (EnvoyListener("in", "127.0.0.1:0", "default", mode),),
            )
            self.envoy = await process.start(bootstrap(settings), self._folder / "envoy", concurrency=1)
            stack.push_async_callback(self.envoy.stop)
            yield

    async def holds(self, client: aiohttp.ClientSession, number: int, statuses: Sequence[int]) -> None:
        """Wait until all of so many requests are held, but for those that were answered."""
        async with asyncio.timeout(WITHIN_SECONDS):
            while await self._held(client) < number - len(statuses):  # noqa: ASYNC110  of another process
                await asyncio.sleep(0.1)

    async def _held(self, client: aiohttp.ClientSession) -> float:
        """The requests that the agent holds."""
        async with client.get(f"{self.admin}/metrics") as page:
            families = text_string_to_metric_families(await page.text())
            return sum(
                sample.value for each in families for sample in each.samples if sample.name == "igw_flow_held_requests"
            )


def resident(pid: int) -> float:
    """Resident MiB of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / _MIB


async def run(mode: PickMode, number: int, table: Table) -> float:
    """Hold and release so many requests; the MiB of the agent while it holds them."""
    random_ = random.Random(7)
    statuses: list[int] = []
    done = asyncio.Event()
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder))
        async with fleet.running(mode), aiohttp.ClientSession() as client:
            agent, envoy = fleet.agent, fleet.envoy
            before = resident(agent.pid), resident(envoy.pid)
            began, cpu = time.monotonic(), agent.cpu_seconds()
            connections = []
            for count, part in enumerate(_parts(number, random_)):
                if count % CONNECTIONS == 0:
                    await fleet.holds(client, count * STREAMS, statuses)
                factory = partial(Requests, part, statuses, done, number)
                connection = asyncio.get_running_loop().create_connection(factory, "127.0.0.1", envoy.ports["in"])
                connections.append(await connection)
            await fleet.holds(client, number, statuses)
            hold_seconds, hold_cpu = time.monotonic() - began, agent.cpu_seconds() - cpu
            holding = resident(agent.pid), resident(envoy.pid)
            refused = len(statuses)
            began, cpu = time.monotonic(), agent.cpu_seconds()
            fleet.full.unlink()
            async with asyncio.timeout(WITHIN_SECONDS):
                await done.wait()
            release_seconds, release_cpu = time.monotonic() - began, agent.cpu_seconds() - cpu
            peak = agent.memory_bytes() / _MIB
            for transport, _ in connections:
                transport.close()
    good_ones = sum(status == 200 for status in statuses)
    table.row(
        mode.value,
        float(number - refused),
        before[0],
        holding[0],
        peak,
        (holding[0] - before[0]) * 1024 / number,
        before[1],
        holding[1],
        (holding[1] - before[1]) * 1024 / number,
        hold_cpu / number * 1e6,
        release_cpu / number * 1e6,
        hold_seconds,
        release_seconds,
        float(good_ones),
    )
    return holding[0]


def _parts(number: int, random_: random.Random) -> list[list[bytes]]:
    bodies = [request_body(random_) for _ in range(number)]
    return [bodies[start : start + STREAMS] for start in range(0, number, STREAMS)]


def main(argv: Sequence[str] | None = None) -> None:
    """Print one row for each mode, and the bar."""
    parser = argparse.ArgumentParser(prog="make bench-held", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=REQUESTS, help="requests that are held (default: 10000)")
    parser.add_argument(
        "--mode", nargs="*", choices=[mode.value for mode in MODES], default=[mode.value for mode in MODES]
    )
    arguments = parser.parse_args(argv)
    prepare_process()
    speed = MachineSpeed()
    columns = [
        Column("mode", 11),
        Column("held", 6, ".0f"),
        Column("agent MiB: empty", 16, ".0f"),
        Column("holding", 7, ".0f"),
        Column("peak", 4, ".0f"),
        Column("KiB each", 8, ".1f"),
        Column("Envoy MiB: empty", 16, ".0f"),
        Column("holding", 7, ".0f"),
        Column("KiB each", 8, ".1f"),
        Column("agent us: hold", 14, ".0f"),
        Column("release", 7, ".0f"),
        Column("seconds: hold", 13, ".1f"),
        Column("release", 7, ".1f"),
        Column("200s", 6, ".0f"),
    ]
    table = Table(columns)
    held = {mode: asyncio.run(run(PickMode(mode), arguments.requests, table)) for mode in arguments.mode}
    print()
    for mode, mib in held.items():
        print(bar(f"MiB of the agent with {arguments.requests} held, {mode}", mib, BAR_MIB, format=".0f"))
    speed.sample()
    print(speed.summary())


if __name__ == "__main__":
    main()
