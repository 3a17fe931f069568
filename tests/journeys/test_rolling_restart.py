"""Two replicas are restarted one after the other behind a real Envoy, under load: no request fails."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from agent.envoy import process
from agent.envoy.render import PickMode
from tests.journeys.bad_input.fleet import CHAT, IGW, MODES, Counts, chat
from tests.processes import ROOT, Process, Processes
from tests.waiting import found

HOSTS = ("127.0.0.1", "127.0.0.2")
WORKERS = 6


def free_ports(count: int) -> list[int]:
    """Different ports that are free at both addresses."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            first = held.enter_context(socket.create_server((HOSTS[0], 0)))
            port = int(first.getsockname()[1])
            try:
                held.enter_context(socket.create_server((HOSTS[1], port)))
            except OSError:
                continue
            ports.append(port)
        return ports


class TwoReplicas:
    """Two agents of one configuration, but for their own addresses, and their files."""

    def __init__(self, folder: Path, started: Processes, servers: list[str], client: aiohttp.ClientSession) -> None:
        picker, peers, self.admin_port = free_ports(3)
        self.client = client
        self._started = started
        self.running: dict[str, Process] = {}
        self.files: dict[str, Path] = {}
        for host in HOSTS:
            self.files[host] = folder / f"{host}.yaml"
            self.files[host].write_text(
                "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
                f"admin: {{address: '{host}:{self.admin_port}'}}\n"
                "scrape: {interval: 200ms}\nstate: {staleAfter: 2s}\n"
                f"envoy: {{pickerHosts: [{', '.join(HOSTS)}]}}\n"
                f"replicas: {{address: '{host}:{peers}', peers: ['{HOSTS[0]}:{peers}', '{HOSTS[1]}:{peers}']}}\n"
                f"pools:\n- {{name: pool, extProcAddress: '{host}:{picker}', engine: vllm, "
                f"endpoints: [{', '.join(map(repr, servers))}]}}\n"
            )

    def start(self, host: str) -> None:
        self.running[host] = self._started.start([*IGW, "run", "--config", self.files[host]])

    async def reporting(self, host: str) -> None:
        """Wait until the replica is ready and gets the reports of the other one."""
        await asyncio.to_thread(self.running[host].wait_for, r"admin: (http://\S+)")
        await found(lambda: self.counts(host), lambda seen: seen.of("igw_replica_peers", state="reporting") == 1)

    async def counts(self, host: str) -> Counts:
        async with self.client.get(f"http://{host}:{self.admin_port}/metrics") as answer:
            return Counts(await answer.text())

    async def restart(self, host: str) -> None:
        """Stop the replica by SIGTERM, and start it again."""
        before = self.running[host]
        before.signal(signal.SIGTERM)
        assert await asyncio.to_thread(before.wait) == 0
        self.start(host)
        for each in HOSTS:
            await self.reporting(each)


class SteadyLoad:
    """Requests through Envoy, one after the other by each worker, some with a longer answer."""

    def __init__(self, client: aiohttp.ClientSession, url: str) -> None:
        self._client = client
        self._url = url
        self.answers: list[tuple[int, str]] = []
        self._running = True

    async def worker(self, number: int) -> None:
        turn = 0
        while self._running:
            turn += 1
            body = chat(f"question {turn} of {number}", max_tokens=20 if turn % 4 == 0 else 1)
            async with self._client.post(self._url, json=body) as answer:
                self.answers.append((answer.status, await answer.text()))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(WORKERS):
                group.create_task(self.worker(number))

    def stop(self) -> None:
        self._running = False

    async def more(self, count: int) -> None:
        """Wait for so many further answers."""
        goal = len(self.answers) + count

        async def answered() -> int:
            return len(self.answers)

        await found(answered, lambda answers: answers >= goal)


async def test_a_replica_whose_process_is_stopped_is_silent_until_it_goes_on(
    tmp_path: Path, processes: Processes
) -> None:
    emulator = processes.start([*IGW, "emulate", "--listen", "127.0.0.1:0"])
    emulator.wait_for(r"on http://.*\n")
    servers = re.findall(r"on http://(\S+): ", emulator.output())
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as client:
        replicas = TwoReplicas(tmp_path, processes, servers, client)
        for host in HOSTS:
            replicas.start(host)
        for host in HOSTS:
            await replicas.reporting(host)
        first, second = HOSTS
        replicas.running[second].signal(signal.SIGSTOP)
        silent = await found(
            lambda: replicas.counts(first), lambda seen: seen.of("igw_replica_peers", state="silent") == 1
        )
        assert silent.series("igw_pool_in_flight_requests") == {}
        assert silent.of("igw_withheld_gauges", gauge="igw_pool_in_flight_requests", reason="replica_unknown") == 1
        assert silent.series("igw_pool_own_in_flight_requests") != {}
        assert f"replica {second}" in replicas.running[first].output()
        assert "is silent" in replicas.running[first].output()
        replicas.running[second].signal(signal.SIGCONT)
        await replicas.reporting(first)
        assert (await replicas.counts(first)).series("igw_pool_in_flight_requests") != {}


def rendered(file: Path, mode: PickMode) -> Any:
    """What `igw render` prints for the file, with free ports."""
    ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    command = [*IGW, "render", "--config", str(file), "--mode", mode.value.replace("_", "-"), *ports]
    return yaml.safe_load(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
async def test_no_request_fails_while_both_replicas_are_restarted_in_turn(
    tmp_path: Path, processes: Processes, mode: PickMode
) -> None:
    emulator = processes.start([*IGW, "emulate", *["--listen", "127.0.0.1:0"] * 2])
    emulator.wait_for(r"(?s)on http://.*on http://.*\n")
    servers = re.findall(r"on http://(\S+): ", emulator.output())
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as client:
        replicas = TwoReplicas(tmp_path, processes, servers, client)
        for host in HOSTS:
            replicas.start(host)
        for host in HOSTS:
            await replicas.reporting(host)
        envoy = await process.start(rendered(replicas.files[HOSTS[0]], mode), tmp_path / "envoy", concurrency=2)
        try:
            (port,) = envoy.ports.values()
            load = SteadyLoad(client, f"http://127.0.0.1:{port}{CHAT}")
            sending = asyncio.create_task(load.run())
            await load.more(60)
            for host in HOSTS:
                picked = (await replicas.counts(host)).of("igw_picks_total")
                assert picked > 0, f"{host} has picked nothing"
                await replicas.restart(host)
                await found(
                    lambda host=host: replicas.counts(host),  # type: ignore[misc]
                    lambda seen: seen.of("igw_picks_total") > 0,
                    what=f"picks of {host} after its restart",
                )
                await load.more(60)
            load.stop()
            await sending
            failed = [answer for answer in load.answers if answer[0] != 200]
            assert failed == []
            for host in HOSTS:  # and each knows the other again
                assert (await replicas.counts(host)).of("igw_replica_peers", state="reporting") == 1
        finally:
            await envoy.stop()
