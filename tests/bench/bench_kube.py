"""The agent beside a real control plane: how fast it starts, how fast a deleted pod leaves, and what pod events cost.

    .venv/bin/python -m tests.bench.bench_kube [--only start,deletion,event,replacement,memory,peers] [--json]

etcd and kube-apiserver are real, and the pods have no kubelet: their status is written here, and one nginx answers at
all their addresses. The agent is a whole `igw run` whose pool is an InferencePool. Picks are ext_proc calls over
grpc.aio, as Envoy makes them.

    start        from the start of the process to the first pick, with 1,000 pods
    deletion     from the DELETE of a pod to the last pick of it, 200 deletions under load
    event        CPU time of the agent per event of a pod, with 1,000 pods; scraping is subtracted
    replacement  picks while 500 of 1,000 pods are replaced, compared with as long a time without
    memory       peak and present memory with 5,000 pods, and the longest pause of the event loop while they are listed
    peers        CPU time of the exchange with another replica at 1,000 requests/s

Times include the API server's own, which shares the machine with the agent and the callers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc.aio
import orjson

from tests.bench.bench_peers import measure
from tests.bench.figure_table import FigureTable
from tests.bench.kube_fleet import NAMESPACE, POOL, KubePods
from tests.bench.loop_pauses import stopped
from tests.bench.machine_speed import MachineSpeed
from tests.bench.nginx_fleet import NginxFleet
from tests.bench.programs import (
    BenchProgram,
    answers,
    free_ports,
    machine_seconds,
    missing,
    prepare_process,
)
from tests.cluster import programs
from tests.cluster.control_plane import ControlPlane
from tests.cluster.schemas import CRDS, manifests
from tests.fakes.ext_proc import finish, send_request

ROWS: Final = ("start", "deletion", "event", "replacement", "memory", "peers")
PODS: Final = 1000
MANY_PODS: Final = 5000
DELETIONS: Final = 200
LOADED_PODS: Final = 20  # few, so that each is picked many times a second
EVENTS: Final = 2000
REPLACED: Final = 500
CALLERS: Final = 8
BAR_DELETION_SECONDS, BAR_PAUSE_MS = 2.0, 50.0


def report(text: str) -> None:
    """Print the progress to standard error."""
    print(f"  .. {text}", file=sys.stderr, flush=True)


class Picks:
    """Calls of a picker port in closed loops. `last` has the time of the last pick of each endpoint."""

    def __init__(self, address: str) -> None:
        self.count = self.failed = 0
        self.last: dict[str, float] = {}
        self.slowest = 0.0
        self._address = address
        self._numbers = itertools.count()

    async def first(self) -> str:
        """The first endpoint that is picked."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError, AssertionError):
                    call, picked = await send_request(channel, body=self._body())
                    await finish(call)
                    if ":" in picked:
                        return picked
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def running(self, callers: int = CALLERS, pause: float = 0.0) -> AsyncIterator[None]:
        """Callers that each make one call after the other, with a pause between them."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            tasks = [asyncio.create_task(self._calls(channel, pause)) for _ in range(callers)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _calls(self, channel: Any, pause: float) -> None:
        while True:
            start = time.monotonic()
            call, picked = await send_request(channel, body=self._body())
            now = time.monotonic()
            self.slowest = max(self.slowest, now - start)
            await finish(call)
            if ":" in picked:
                self.count += 1
                self.last[picked] = now
            else:
                self.failed += 1
            await asyncio.sleep(pause)

    def _body(self) -> bytes:
        """A short prompt that shares no prefix with another."""
        number = next(self._numbers)
        return orjson.dumps({"model": "tiny", "messages": [{"role": "user", "content": f"{number}: describe the sea"}]})


class BenchAgent:
    """`igw run` for the InferencePool."""

    def __init__(self, folder: Path, kubeconfig: Path, interval: str) -> None:
        ports = free_ports(2)
        self.picker, self.admin = (f"127.0.0.1:{port}" for port in ports)
        self._folder = folder
        path = folder / f"igw-{ports[0]}.yaml"
        config = {
            "apiVersion": "llm-d.ai/v1alpha1",
            "kind": "EndpointPickerConfig",
            "admin": {"address": self.admin},
            "kubernetes": {"kubeconfig": str(kubeconfig), "namespace": NAMESPACE, "events": False},
            "scrape": {"interval": interval, "healthInterval": interval},
            "state": {"staleAfter": "120s"},
            "pools": [{"inferencePool": POOL, "extProcAddress": self.picker}],
        }
        path.write_bytes(orjson.dumps(config))
        self._config = path

    @contextlib.asynccontextmanager
    async def running(self, *, timed: bool = False) -> AsyncIterator[BenchProgram]:
        """The process, from its start; where `timed`, one that times the pauses of its event loop."""
        command = ["-m", "tests.bench.loop_pauses"] if timed else ["-m", "agent", "run", "--config"]
        child = BenchProgram([sys.executable, *command, self._config], self._folder / "agent.log")
        try:
            yield child
        finally:
            child.stop()

    def ready(self) -> bool:
        """Whether it answers that it is ready."""
        return answers(f"http://{self.admin}/readyz")


class Bench:
    """The measurements, each with an agent of its own."""

    def __init__(self, folder: Path, kubeconfig: Path, pods: KubePods, table: FigureTable) -> None:
        self._folder = folder
        self._kubeconfig = kubeconfig
        self._pods = pods
        self._table = table

    async def fleet_of(self, count: int) -> list[str]:
        """The names of `count` pods, created or deleted as necessary."""
        names = list(self._pods.addresses)
        report(f"{count:,} pods")
        if len(names) > count:
            await self._pods.delete(names[count:])
        elif len(names) < count:
            for begin in range(len(names), count, 500):
                await self._pods.create(min(500, count - begin))
        return list(self._pods.addresses)

    def _agent(self, interval: str) -> BenchAgent:
        return BenchAgent(self._folder, self._kubeconfig, interval)

    async def start(self) -> None:
        """From the start of the process to its first pick."""
        await self.fleet_of(PODS)
        agent = self._agent("1s")
        picks = Picks(agent.picker)
        begin = time.monotonic()
        async with agent.running() as child:
            await asyncio.wait_for(picks.first(), 120)
            took, used = time.monotonic() - begin, child.cpu_seconds()
        self._table.row(f"start to first pick, {PODS:,} pods, s", took)
        self._table.row("  CPU time of it, s", used)

    async def deletion(self) -> None:
        """From a DELETE to the last pick of the pod."""
        await self.fleet_of(LOADED_PODS)
        agent = self._agent("1s")
        picks = Picks(agent.picker)
        deleted_at: dict[str, float] = {}
        async with agent.running():
            await asyncio.wait_for(picks.first(), 60)
            async with picks.running(pause=0.01):
                begin = time.monotonic()
                for number in range(DELETIONS):
                    name, address = next(iter(self._pods.addresses.items()))
                    deleted_at[address] = time.monotonic()
                    # Half of them with a grace period: the object stays, with a deletion timestamp.
                    await self._pods.delete([name], 0 if number % 2 else 30)
                    self._pods.addresses.pop(name, None)
                    await self._pods.create(1)
                    if number % 50 == 49:
                        report(f"{number + 1} of {DELETIONS} deletions")
                await asyncio.sleep(3)
                rate = picks.count / (time.monotonic() - begin)
        times = sorted(
            max(0.0, picks.last[address] - at) for address, at in deleted_at.items() if address in picks.last
        )
        seen = len(times)
        self._table.row(f"deletion to last pick, p50 of {seen} picked before, ms", times[seen // 2] * 1e3)
        self._table.row("  p99, s", times[min(seen - 1, int(0.99 * seen))], BAR_DELETION_SECONDS)
        self._table.row("  largest, s", times[-1])
        self._table.row("  picks/s meanwhile", rate)
        self._table.row("  calls without a pick", float(picks.failed))

    async def event(self) -> None:
        """CPU time per event of a pod: without effect, and with one."""
        names = await self.fleet_of(PODS)
        agent = self._agent("30s")
        async with agent.running() as child:
            await asyncio.wait_for(Picks(agent.picker).first(), 120)
            await asyncio.sleep(35)  # the first scrapes, probes and models
            idle_from = time.monotonic(), child.cpu_seconds()
            await asyncio.sleep(30)
            idle = (child.cpu_seconds() - idle_from[1]) / (time.monotonic() - idle_from[0])
            self._table.row(f"cores without an event, {PODS:,} pods scraped each 30 s", idle)

            async def cost(what: str, work: Any) -> None:
                begin, used = time.monotonic(), child.cpu_seconds()
                await work
                await asyncio.sleep(1)
                spent = child.cpu_seconds() - used - idle * (time.monotonic() - begin)
                self._table.row(what, spent / EVENTS * 1e6)

            half = [names[number % PODS] for number in range(EVENTS)]
            await cost("CPU per event without effect, us", self._touch(half))
            flips = names[: EVENTS // 2]
            await cost("CPU per event that removes or adds an endpoint, us", self._flip(flips))

    async def _touch(self, names: Sequence[str]) -> None:
        for begin in range(0, len(names), 250):
            await self._pods.touch(names[begin : begin + 250], str(begin))

    async def _flip(self, names: Sequence[str]) -> None:
        for begin in range(0, len(names), 50):
            part = names[begin : begin + 50]
            await self._pods.set_ready(part, ready=False)
            await self._pods.set_ready(part, ready=True)

    async def replacement(self) -> None:
        """Picks while pods are replaced."""
        names = await self.fleet_of(PODS)
        agent = self._agent("1s")
        picks = Picks(agent.picker)
        async with agent.running() as child:
            await asyncio.wait_for(picks.first(), 120)
            child.wait_until(agent.ready, within=60)
            async with picks.running():
                await asyncio.sleep(3)  # warm
                before, spent = picks.count, child.cpu_seconds()
                begin = time.monotonic()
                replace = asyncio.create_task(self._replace(names[:REPLACED]))
                picks.slowest = 0.0
                await replace
                took = time.monotonic() - begin
                during, during_cpu, slowest = picks.count - before, child.cpu_seconds() - spent, picks.slowest
                before, spent, picks.slowest = picks.count, child.cpu_seconds(), 0.0
                await asyncio.sleep(took)
                after, after_cpu = picks.count - before, child.cpu_seconds() - spent
        self._table.row(f"picks/s while {REPLACED} of {PODS:,} pods are replaced in {took:.1f} s", during / took)
        self._table.row("  picks/s in as long a time after it", after / took)
        self._table.row("  agent's cores, replacing", during_cpu / took)
        self._table.row("  agent's cores, after", after_cpu / took)
        self._table.row("  slowest pick, replacing, ms", slowest * 1e3)
        self._table.row("  slowest pick, after, ms", picks.slowest * 1e3)
        self._table.row("  calls without a pick", float(picks.failed))

    async def _replace(self, names: Sequence[str]) -> None:
        for begin in range(0, len(names), 25):
            part = names[begin : begin + 25]
            await self._pods.delete(part)
            await self._pods.create(len(part))

    async def memory(self) -> None:
        """Memory with many pods, and pauses of the event loop while they are listed."""
        await self.fleet_of(MANY_PODS)
        agent = self._agent("30s")
        async with agent.running() as child:
            await asyncio.wait_for(Picks(agent.picker).first(), 180)
            child.wait_until(agent.ready, within=120)
            await asyncio.sleep(10)
            self._table.row(f"MiB with {MANY_PODS:,} pods, at most", child.memory_bytes() / 2**20)
            self._table.row("  now", child.memory_bytes("VmRSS") / 2**20)
        async with agent.running(timed=True) as child:
            await asyncio.wait_for(Picks(agent.picker).first(), 180)
            pauses = stopped(child)
        worst = max(pauses, key=lambda pause: pause.elapsed_ms)
        self._table.row("longest step of the event loop in it: CPU time, ms", pauses[0].cpu_ms, BAR_PAUSE_MS)
        self._table.row("  elapsed time, ms", worst.elapsed_ms, BAR_PAUSE_MS)


async def bench(rows: Sequence[str], folder: Path, plane: ControlPlane, table: FigureTable) -> None:
    """Fill the table."""
    for manifest in manifests(CRDS):
        plane.install_crd(manifest)
    admin = plane.admin
    kubeconfig = plane.kubeconfig("bench", {"client-certificate": str(admin.certificate), "client-key": str(admin.key)})
    with contextlib.ExitStack() as stack:
        fleet = NginxFleet(folder / "fleet", stack)
        async with KubePods(plane, fleet.port) as pods:
            measurements = Bench(folder, kubeconfig, pods, table)
            for row in rows:
                if row != "peers":
                    await getattr(measurements, row)()


def main(arguments: list[str] | None = None) -> int:
    """Print the table; always 0, also for a missed bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows to measure: {','.join(ROWS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(arguments)
    rows = args.only.split(",")
    for row in rows:
        if row not in ROWS:
            parser.error(f"unknown row {row!r}; choose from {', '.join(ROWS)}")
    if missing("nginx"):
        print("nginx not installed: `make packages` installs it")
        return 0
    found = programs.find()
    if absent := [name for name in programs.PROGRAMS if name not in found]:
        print(f"{', '.join(absent)} missing: `make control-plane` builds them")
        return 0
    prepare_process()
    start, machine = time.monotonic(), machine_seconds()
    table, speed = FigureTable(quiet=args.json), MachineSpeed()
    speed.sample()
    with tempfile.TemporaryDirectory(prefix="igw-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if set(rows) - {"peers"}:
            plane_folder = folder / "control-plane"
            plane_folder.mkdir()
            plane = ControlPlane(plane_folder, found)
            try:
                asyncio.run(bench(rows, folder, plane, table))
            finally:
                plane.stop()
        if "peers" in rows:
            cost = measure()
            what = f"reports to a replica at {cost.requests:,} requests/s, cores of the"
            table.row(f"{what} sender", cost.sender_cores)
            table.row(f"{what} receiver", cost.receiver_cores)
    speed.sample()
    if args.json:
        print(json.dumps(table.figures, indent=1))
    else:
        took = time.monotonic() - start
        print(f"{took:.0f} s in all; all programs used {(machine_seconds() - machine) / took:.2f} cores meanwhile")
        print(speed.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
