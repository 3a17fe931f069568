"""Everything that the demo starts: emulated model servers, the agent and Envoy, each a process of its own.

All of it listens on loopback, writes into one folder, and ends with us: told to where we can, by the kernel where we
are killed (`agent.envoy.process.ending_with_us`). Servers that were there before (`--endpoints`) are only asked.
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
from agent.emulator.settings import Settings
from agent.envoy.process import Envoy, EnvoyFailed, ending_with_us
from agent.envoy.process import start as start_envoy
from agent.envoy.render import Listener, Pool, Way, bootstrap
from agent.envoy.render import Settings as EnvoySettings

HOST: Final = "127.0.0.1"
POOL: Final = "default"
MODEL: Final = "emulated"
SERVERS: Final = 4
BYTES_PER_TOKEN: Final = 4  # of the emulated servers, and what the agent takes where it is told nothing else
SCRAPE_INTERVAL_SECONDS: Final = 0.2
ACCELERATOR: Final = "dcgm"  # whose page the emulated servers have beside their own
# A small model server: 7,000 prompt tokens a second and room for 32,752 of them. The workload asks a little more of the
# four than they can do where nothing is in their caches, a little less where most is, and of the server that is warm
# for the most popular tenant more than one can do.
EMULATED: Final = Settings(
    max_num_seqs=32,
    max_num_batched_tokens=2048,
    num_blocks=2048,
    block_size=16,
    max_model_len=8192,
    prefill_tokens_per_second=7000.0,
    step_seconds=0.005,
    step_seconds_per_request=0.0002,
)
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 5.0
_LOOK_AGAIN_SECONDS: Final = 0.03


class CannotStart(Exception):
    """The demo cannot run; the text says why and what to change."""


class Ports(NamedTuple):
    """Where everything listens, each on loopback."""

    servers: tuple[int, ...] = (8001, 8002, 8003, 8004)
    round_robin: int = 8080
    picker: int = 8081
    ext_proc: int = 9002
    admin: int = 9090
    envoy_admin: int = 9901

    @classmethod
    def base(cls, first: int) -> Ports:
        """Ports one after the other from `first` on; 0 takes free ones. Raises CannotStart where they do not fit."""
        if first == 0:
            return cls._free()
        if first < 0 or first + SERVERS + 4 > 65535:
            raise CannotStart(f"--port-base {first}: nine ports from there on must be between 1 and 65535")
        rest = first + SERVERS
        return cls(tuple(range(first, rest)), rest, rest + 1, rest + 2, rest + 3, rest + 4)

    @classmethod
    def _free(cls) -> Ports:
        """Ports on which nothing listens now."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(SERVERS + 5)]
            for one in sockets:
                one.bind((HOST, 0))
            found = [one.getsockname()[1] for one in sockets]
        return cls(tuple(found[:SERVERS]), *found[SERVERS:])

    def named(self, *, with_servers: bool) -> list[tuple[str, int]]:
        """What will listen, in words, and its port."""
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
        """Raise CannotStart that names every address which somebody else has."""
        taken = [f"{name} {HOST}:{port}" for name, port in self.named(with_servers=with_servers) if _taken(port)]
        if taken:
            verb = "is" if len(taken) == 1 else "are"
            raise CannotStart(
                f"{', '.join(taken)} {verb} in use by another program; stop that one, or write --port-base N for nine "
                "ports from N on, or --port-base 0 for free ones"
            )


def _taken(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError:
            return True
    return False


class Child:
    """A process of ours that writes into a file."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name.replace(' ', '-')}.log"
        with self._log.open("ab") as out:
            self._popen = subprocess.Popen(
                ending_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to handle
            )
        self.pid = self._popen.pid

    def running(self) -> bool:
        """Whether the process still lives."""
        return self._popen.poll() is None

    def check(self) -> None:
        """Raise CannotStart, with what it said, if it has ended."""
        status = self._popen.poll()
        if status is not None:
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
            raise CannotStart(f"{self.name} ended with status {status}: " + ("\n".join(said) or "it said nothing"))

    async def stop(self) -> None:
        """End it and wait until it is gone: asked first, by force after some seconds."""
        loop = asyncio.get_running_loop()
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
        deadline = loop.time() + _STOP_SECONDS
        while self._popen.poll() is None:
            if loop.time() > deadline:
                self._popen.kill()
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    def cpu_seconds(self) -> float | None:
        """CPU time that it has used, user and system, to 10 ms; None where the system does not say."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _igw(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agent", *arguments]


def envoy_settings(ports: Ports, endpoints: Sequence[str]) -> EnvoySettings:
    """Round robin and the picker side by side: what deploy/envoy/demo.yaml is."""
    return EnvoySettings(
        (Pool(POOL, tuple(endpoints), f"{HOST}:{ports.ext_proc}"),),
        (
            Listener(f"{POOL}-round-robin", f"{HOST}:{ports.round_robin}", POOL, Way.ROUND_ROBIN),
            Listener(f"{POOL}-buffered", f"{HOST}:{ports.picker}", POOL, Way.BUFFERED),
        ),
        admin=f"{HOST}:{ports.envoy_admin}",
    )


def agent_configuration(
    ports: Ports, endpoints: Sequence[str], profile: str, bytes_per_token: int, *, own: bool
) -> dict[str, Any]:
    """The agent's configuration file, as JSON, which YAML is too. `own`: we started the servers."""
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
    }


def _with_accelerators(endpoints: Sequence[str]) -> dict[str, Any]:
    """The emulated servers, each with its device, whose page it serves beside its own."""
    return {
        "endpoints": [
            {"address": address, "pod": f"default/emulated-{address.rpartition(':')[2]}"} for address in endpoints
        ],
        "accelerators": [
            {"source": ACCELERATOR, "address": address, "path": accelerators.PATH, "interval": "1s"}
            for address in endpoints
        ],
    }


class Fleet:
    """What runs. `endpoints` are the model servers, `own` whether we started them.

    `bytes_per_token` is what the agent is to take for one token of their prompts, from its next start on.
    """

    def __init__(self, ports: Ports, folder: Path, session: aiohttp.ClientSession, endpoints: Sequence[str]) -> None:
        self.ports = ports
        self.own = not endpoints
        self.endpoints = tuple(endpoints) or tuple(f"{HOST}:{port}" for port in ports.servers)
        self.bytes_per_token = BYTES_PER_TOKEN
        self._folder = folder
        self._session = session
        self._servers: list[Child] = []
        self._agent: Child | None = None
        self._envoy: Envoy | None = None

    @property
    def admin(self) -> str:
        """The agent's admin address, as the beginning of a URL."""
        return f"http://{HOST}:{self.ports.admin}"

    async def start_servers(self) -> None:
        """Start the emulated model servers, and wait until they answer."""
        settings = []
        for name in EMULATED.__dataclass_fields__:
            value = getattr(EMULATED, name)
            if value != getattr(Settings(), name):
                settings += [f"--{name.replace('_', '-')}", str(value)]
        for number, address in enumerate(self.endpoints, 1):
            command = _igw("emulate", "--listen", address, "--model", MODEL, "--accelerator", ACCELERATOR, *settings)
            self._servers.append(Child(f"emulated server {number}", command, self._folder))
        for child, address in zip(self._servers, self.endpoints, strict=True):
            await self._until_200(child, f"http://{address}/health")

    async def start_agent(self, profile: str) -> None:
        """Start the agent with this profile, in the place of the one that runs, and wait until it can pick.

        Raises CannotStart where it does not come up, or a model server is not healthy.
        """
        if self._agent is not None:
            await self._agent.stop()
        path = self._folder / "igw.yaml"
        settings = agent_configuration(self.ports, self.endpoints, profile, self.bytes_per_token, own=self.own)
        path.write_text(json.dumps(settings))
        command = _igw("run", "--config", str(path))
        self._agent = Child("the agent", command, self._folder)
        await self._until_200(self._agent, f"{self.admin}/readyz")
        (pool,) = (await self.state())["pools"]
        sick = [
            f"{endpoint['address']} is {endpoint['health']} ({endpoint['reason']})"
            for endpoint in pool["endpoints"]
            if endpoint["health"] != "healthy"
        ]
        if sick:
            raise CannotStart(f"not every model server can be scraped: {', '.join(sick)}")

    async def start_envoy(self) -> None:
        """Start Envoy and wait until it serves. Raises CannotStart where it does not."""
        try:
            settings = envoy_settings(self.ports, self.endpoints)
            self._envoy = await start_envoy(bootstrap(settings), self._folder / "envoy", concurrency=1)
        except (EnvoyFailed, ValueError) as error:
            raise CannotStart(str(error)) from error

    async def forget_prefixes(self) -> None:
        """Empty the caches of the emulated servers."""
        for address in self.endpoints:
            async with self._session.post(f"http://{address}/reset_prefix_cache") as answer:
                answer.raise_for_status()

    async def stop(self) -> None:
        """End everything, in the order in which nobody misses anybody."""
        if self._envoy is not None:
            await self._envoy.stop()
        children = [*([self._agent] if self._agent is not None else []), *self._servers]
        await asyncio.gather(*(child.stop() for child in children))

    def check(self, *, servers: bool = True) -> None:
        """Raise CannotStart if anything of ours has ended by itself; `servers`: the model servers too."""
        for child in [*(self._servers if servers else []), *([self._agent] if self._agent is not None else [])]:
            child.check()
        if self._envoy is not None and not self._envoy.running():
            raise CannotStart("Envoy ended by itself")

    def ended_servers(self) -> list[str]:
        """The names of the emulated servers that run no more."""
        return [child.name for child in self._servers if not child.running()]

    # -- what is asked of it -----------------------------------------------------------------------------------------

    async def state(self) -> Mapping[str, Any]:
        """The agent's shared state, as JSON."""
        state: Mapping[str, Any] = await self.json(f"{self.admin}/v1/state")
        return state

    async def pages(self) -> dict[str, bytes]:
        """Address -> the page of metrics of each model server, asked for now, past the agent."""
        found = await asyncio.gather(*(self._get(f"http://{address}/metrics") for address in self.endpoints))
        return dict(zip(self.endpoints, found, strict=True))

    async def agent_page(self) -> bytes:
        """The agent's own page of metrics."""
        return await self._get(f"{self.admin}/metrics")

    def agent_cpu_seconds(self) -> float | None:
        """CPU time that the agent has used so far."""
        return None if self._agent is None else self._agent.cpu_seconds()

    async def json(self, url: str, data: Mapping[str, Any] | None = None) -> Any:
        """The answer to a GET, or to a POST of `data`. CannotStart for anything but JSON with status 200."""
        try:
            return orjson.loads(await self._get(url, data))
        except orjson.JSONDecodeError:
            raise CannotStart(f"{url} does not answer with JSON") from None

    async def _get(self, url: str, data: Mapping[str, Any] | None = None) -> bytes:
        method = "GET" if data is None else "POST"
        try:
            async with self._session.request(method, url, json=data) as answer:
                content = await answer.read()
        except aiohttp.ClientConnectorError as error:  # whose own words speak of SSL, which nobody uses here
            raise CannotStart(f"{url} does not answer: {error.os_error.strerror}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CannotStart(f"{url} does not answer: {error or type(error).__name__}") from error
        if answer.status != 200:
            raise CannotStart(f"{url} answers with status {answer.status}")
        return content

    async def _until_200(self, child: Child, url: str) -> None:
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while True:
            child.check()
            with contextlib.suppress(CannotStart):
                await self._get(url)
                return
            if asyncio.get_running_loop().time() > deadline:
                raise CannotStart(f"{child.name} is not ready after {_START_SECONDS:g} s")
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
