"""The processes of the demo: emulated model servers, the agent and Envoy.

All of them listen on loopback, write into one folder, and end with the demo: by SIGTERM, or by the kernel if the demo
is killed (`agent.envoy.process.kill_with_parent`). Servers given by `--endpoints` only receive requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import orjson

from agent.emulator import accelerators
from agent.emulator.config import EmulatorConfig
from agent.envoy.process import EnvoyFailed, EnvoyProcess, kill_with_parent
from agent.envoy.process import start as start_envoy
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap

HOST: Final = "127.0.0.1"
POOL: Final = "default"
MODEL: Final = "emulated"
SERVERS: Final = 4
BYTES_PER_TOKEN: Final = 4  # of the emulated servers, and the agent's default
SCRAPE_INTERVAL_SECONDS: Final = 0.2
ACCELERATOR: Final = "dcgm"  # the emulated servers also serve its page
# A small model server: it computes 7,000 prompt tokens per second and caches 32,752. The workload needs more than four
# of them can do without cache hits, a little less with most prefixes cached, and the most popular tenant alone needs
# more than one of them can do.
EMULATED: Final = EmulatorConfig(
    max_num_seqs=32,
    max_num_batched_tokens=2048,
    num_blocks=2048,
    block_size=16,
    max_model_len=8192,
    prefill_tokens_per_second=7000.0,
    step_seconds=0.005,
    step_seconds_per_request=0.0002,
)
NO_MORE: Final[Mapping[str, Any]] = {}
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.03


class FleetNotStarted(Exception):
    """The demo cannot run; the message says why and what to change."""


class FleetPorts(NamedTuple):
    """The ports of the fleet, all on loopback."""

    servers: tuple[int, ...] = (8001, 8002, 8003, 8004)
    round_robin: int = 8080
    picker: int = 8081
    ext_proc: int = 9002
    admin: int = 9090
    envoy_admin: int = 9901

    @classmethod
    def base(cls, first: int) -> FleetPorts:
        """Consecutive ports from `first` on, free ones for 0. Raises FleetNotStarted if they exceed 65535."""
        if first == 0:
            return cls._free()
        if first < 0 or first + SERVERS + 4 > 65535:
            raise FleetNotStarted(f"--port-base {first}: the nine ports from there on must be between 1 and 65535")
        rest = first + SERVERS
        return cls(tuple(range(first, rest)), rest, rest + 1, rest + 2, rest + 3, rest + 4)

    @classmethod
    def _free(cls) -> FleetPorts:
        """Ports on which nothing listens now."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(SERVERS + 5)]
            for one in sockets:
                one.bind((HOST, 0))
            ports = [one.getsockname()[1] for one in sockets]
        return cls(tuple(ports[:SERVERS]), *ports[SERVERS:])

    def named(self, *, with_servers: bool) -> list[tuple[str, int]]:
        """The name of each listener, and its port."""
        names = [
            ("Envoy's round-robin listener", self.round_robin),
            ("Envoy's listener with the picker", self.picker),
            ("Envoy's admin address", self.envoy_admin),
            ("the agent's picker address", self.ext_proc),
            ("the agent's admin address", self.admin),
        ]
        if with_servers:
            names += [(f"emulated server {number}", port) for number, port in enumerate(self.servers, 1)]
        return names

    def check(self, *, with_servers: bool) -> None:
        """Raise FleetNotStarted with every address that is in use."""
        taken = [f"{name} {HOST}:{port}" for name, port in self.named(with_servers=with_servers) if _taken(port)]
        if taken:
            verb = "is" if len(taken) == 1 else "are"
            raise FleetNotStarted(
                f"{', '.join(taken)} {verb} in use by another program; stop it, or set --port-base N to use nine ports "
                "from N on, or --port-base 0 to use free ports"
            )


def _taken(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError:
            return True
    return False


class ChildProcess:
    """A process of the demo whose output goes to a file."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name.replace(' ', '-')}.log"
        with self._log.open("ab") as out:
            self._popen = subprocess.Popen(
                kill_with_parent(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal must reach the demo only
            )
        self.pid = self._popen.pid

    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._popen.poll() is None

    def check(self) -> None:
        """Raise FleetNotStarted, with the end of its output, if it has ended."""
        status = self._popen.poll()
        if status is not None:
            output = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
            raise FleetNotStarted(f"{self.name} ended with status {status}: " + ("\n".join(output) or "no output"))

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after some seconds; returns when the process has ended."""
        loop = asyncio.get_running_loop()
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
        deadline = loop.time() + _STOP_SECONDS
        while self._popen.poll() is None:
            if loop.time() > deadline:
                self._popen.kill()
            await asyncio.sleep(_POLL_SECONDS)

    def cpu_seconds(self) -> float | None:
        """CPU time used, user and system, in steps of 10 ms; None where there is no /proc."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _igw(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agent", *arguments]


def envoy_config(ports: FleetPorts, endpoints: Sequence[str]) -> EnvoyConfig:
    """Envoy with a round-robin listener and a listener with the picker, as in deploy/envoy/demo.yaml."""
    return EnvoyConfig(
        (EnvoyPool(POOL, tuple(endpoints), f"{HOST}:{ports.ext_proc}"),),
        (
            EnvoyListener(f"{POOL}-round-robin", f"{HOST}:{ports.round_robin}", POOL, PickMode.ROUND_ROBIN),
            EnvoyListener(f"{POOL}-buffered", f"{HOST}:{ports.picker}", POOL, PickMode.BUFFERED),
        ),
        admin=f"{HOST}:{ports.envoy_admin}",
    )


def agent_config(
    ports: FleetPorts,
    endpoints: Sequence[str],
    profile: str,
    bytes_per_token: int,
    *,
    own: bool,
    more: Mapping[str, Any] = NO_MORE,
) -> dict[str, Any]:
    """The agent's configuration file as JSON, a subset of YAML. `own`: the demo started the servers. `more` are further
    sections."""
    return {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "admin": {"address": f"{HOST}:{ports.admin}"},
        "scrape": {"interval": f"{SCRAPE_INTERVAL_SECONDS * 1000:.0f}ms"},
        "prefixIndex": {"bytesPerToken": bytes_per_token},
        "pools": [
            {
                "name": POOL,
                "profile": profile,
                "extProcAddress": f"{HOST}:{ports.ext_proc}",
                **(_with_accelerators(endpoints) if own else {"endpoints": list(endpoints)}),
            }
        ],
        **more,
    }


def _with_accelerators(endpoints: Sequence[str]) -> dict[str, Any]:
    """The emulated servers, each with the accelerator page that it serves."""
    return {
        "endpoints": [
            {"address": address, "pod": f"default/emulated-{address.rpartition(':')[2]}"} for address in endpoints
        ],
        "accelerators": [
            {"source": ACCELERATOR, "address": address, "path": accelerators.PATH, "interval": "1s"}
            for address in endpoints
        ],
    }


class DemoFleet:
    """The running processes. `endpoints` are the model servers, `own` is True if the demo starts them, `emulated` is
    what each of those can do.

    `bytes_per_token` is the agent's `prefixIndex.bytesPerToken` from its next start on.
    """

    def __init__(
        self,
        ports: FleetPorts,
        folder: Path,
        session: aiohttp.ClientSession,
        endpoints: Sequence[str],
        emulated: EmulatorConfig = EMULATED,
    ) -> None:
        self.ports = ports
        self.emulated = emulated
        self.own = not endpoints
        self.endpoints = tuple(endpoints) or tuple(f"{HOST}:{port}" for port in ports.servers)
        self.bytes_per_token = BYTES_PER_TOKEN
        self._folder = folder
        self._session = session
        self._servers: list[ChildProcess] = []
        self._agent: ChildProcess | None = None
        self._envoy: EnvoyProcess | None = None

    @property
    def admin(self) -> str:
        """The base URL of the agent's admin address."""
        return f"http://{HOST}:{self.ports.admin}"

    async def start_servers(self) -> None:
        """Start the emulated model servers and wait until they are healthy."""
        flags = []
        for name in self.emulated.__dataclass_fields__:
            value = getattr(self.emulated, name)
            if value != getattr(EmulatorConfig(), name):
                flags += [f"--{name.replace('_', '-')}", str(value)]
        for address, name in self.server_names().items():
            command = _igw("emulate", "--listen", address, "--model", MODEL, "--accelerator", ACCELERATOR, *flags)
            self._servers.append(ChildProcess(name, command, self._folder))
        for child, address in zip(self._servers, self.endpoints, strict=True):
            await self._until_200(child, f"http://{address}/health")

    async def start_agent(self, profile: str, more: Mapping[str, Any] = NO_MORE) -> None:
        """Start the agent with this profile and these further sections of its configuration, instead of the one that
        runs, and wait until it is ready.

        Raises FleetNotStarted if it does not become ready, or a model server is not healthy.
        """
        if self._agent is not None:
            await self._agent.stop()
        path = self._folder / "igw.yaml"
        config = agent_config(self.ports, self.endpoints, profile, self.bytes_per_token, own=self.own, more=more)
        path.write_text(json.dumps(config))
        command = _igw("run", "--config", str(path))
        self._agent = ChildProcess("the agent", command, self._folder)
        await self._until_200(self._agent, f"{self.admin}/readyz")
        (pool,) = (await self.state())["pools"]
        unhealthy = [
            f"{endpoint['address']} is {endpoint['health']} ({endpoint['reason']})"
            for endpoint in pool["endpoints"]
            if endpoint["health"] != "healthy"
        ]
        if unhealthy:
            raise FleetNotStarted(f"not every model server is healthy: {', '.join(unhealthy)}")

    async def start_envoy(self) -> None:
        """Start Envoy and wait until it is ready. Raises FleetNotStarted if it fails."""
        try:
            # The client of the overload demo sets the objectives of its requests.
            config = bootstrap(envoy_config(self.ports, self.endpoints)._replace(untrusted_headers=()))
            self._envoy = await start_envoy(config, self._folder / "envoy", concurrency=1)
        except (EnvoyFailed, ValueError) as error:
            raise FleetNotStarted(str(error)) from error

    async def reset_prefix_caches(self) -> None:
        """Reset the prefix caches of the emulated servers."""
        for address in self.endpoints:
            async with self._session.post(f"http://{address}/reset_prefix_cache") as answer:
                answer.raise_for_status()

    async def stop(self) -> None:
        """Stop Envoy first, then the agent and the servers, so that none of them sees an error."""
        if self._envoy is not None:
            await self._envoy.stop()
        children = [*([self._agent] if self._agent is not None else []), *self._servers]
        await asyncio.gather(*(child.stop() for child in children))

    def check(self, *, servers: bool = True) -> None:
        """Raise FleetNotStarted if a process has ended by itself; `servers`: check the model servers too."""
        for child in [*(self._servers if servers else []), *([self._agent] if self._agent is not None else [])]:
            child.check()
        if self._envoy is not None and not self._envoy.running():
            raise FleetNotStarted("Envoy ended by itself")

    def ended_servers(self) -> list[str]:
        """The names of the emulated servers that have ended."""
        return [child.name for child in self._servers if not child.running()]

    def server_names(self) -> dict[str, str]:
        """Address -> display name of each model server: a number where the demo starts it, else its address."""
        return {
            address: f"emulated server {number}" if self.own else address
            for number, address in enumerate(self.endpoints, 1)
        }

    async def state(self) -> Mapping[str, Any]:
        """The agent's `/v1/state` document."""
        state: Mapping[str, Any] = await self.json(f"{self.admin}/v1/state")
        return state

    async def pages(self) -> dict[str, bytes]:
        """Address -> the /metrics page of each model server, scraped now and directly."""
        pages = await asyncio.gather(*(self._get(f"http://{address}/metrics") for address in self.endpoints))
        return dict(zip(self.endpoints, pages, strict=True))

    async def agent_page(self) -> bytes:
        """The agent's /metrics page."""
        return await self._get(f"{self.admin}/metrics")

    def agent_cpu_seconds(self) -> float | None:
        """CPU time used by the agent so far."""
        return None if self._agent is None else self._agent.cpu_seconds()

    async def json(self, url: str, data: Mapping[str, Any] | None = None) -> Any:
        """The answer to a GET, or to a POST of `data`. FleetNotStarted if it is not JSON with status 200."""
        try:
            return orjson.loads(await self._get(url, data))
        except orjson.JSONDecodeError:
            raise FleetNotStarted(f"{url} does not return JSON") from None

    async def _get(self, url: str, data: Mapping[str, Any] | None = None) -> bytes:
        method = "GET" if data is None else "POST"
        try:
            async with self._session.request(method, url, json=data) as answer:
                content = await answer.read()
        except aiohttp.ClientConnectorError as error:  # its own message mentions SSL, which is not used here
            raise FleetNotStarted(f"{url} does not answer: {error.os_error.strerror}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise FleetNotStarted(f"{url} does not answer: {error or type(error).__name__}") from error
        if answer.status != 200:
            raise FleetNotStarted(f"{url} returns status {answer.status}")
        return content

    async def _until_200(self, child: ChildProcess, url: str) -> None:
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while True:
            child.check()
            with contextlib.suppress(FleetNotStarted):
                await self._get(url)
                return
            if asyncio.get_running_loop().time() > deadline:
                raise FleetNotStarted(f"{child.name} is not ready after {_START_SECONDS:g} s")
            await asyncio.sleep(_POLL_SECONDS)
