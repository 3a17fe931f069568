"""A real Envoy and the real picker port between a test's client, its model servers, and a scripted pool."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, FailureMode, PickMode, ResponseSource, bootstrap
from agent.events import Event
from agent.serve.ext_proc.holding import ProxyTimeouts
from agent.serve.ext_proc.server import ExtProcServer
from agent.serve.tls.server import ServerTls
from tests.fakes.ext_proc import CHAT
from tests.fakes.model_server import ModelServer, own_address
from tests.fakes.scripted_pool import ScriptedPool

MODES = (PickMode.BUFFERED, PickMode.FULL_DUPLEX)


def chat(words: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": words}], **more}


class Gateway:
    """A running Envoy, its picker port, its servers, and a client."""

    def __init__(
        self, servers: list[ModelServer], pool: ScriptedPool, events: list[Event], tls: ServerTls | None = None
    ) -> None:
        self.servers = servers
        self.tls = tls
        self.pool = pool
        self.events = events
        self.picker: ExtProcServer
        self.picker_port = 0
        self.envoy: process.EnvoyProcess
        self.client: aiohttp.ClientSession

    def port(self, mode: PickMode) -> int:
        return self.envoy.ports[mode.value]

    def url(self, mode: PickMode, path: str = CHAT) -> str:
        return f"http://127.0.0.1:{self.port(mode)}{path}"

    async def stop_picker(self) -> None:
        await self.picker.stop(0.0)

    async def start_picker(self) -> None:
        """A new picker at the address of the stopped one."""
        self.picker = ExtProcServer(
            self.pool, self.events.append, address=f"127.0.0.1:{self.picker_port}", tls=self.tls
        )
        await self.picker.start()

    async def counter(self, name: str) -> int:
        """A counter of Envoy, such as `cluster.pool.upstream_rq_retry`; 0 until it is used."""
        async with self.client.get(f"{self.envoy.admin}/stats?filter=^{name}$") as response:
            line = (await response.text()).strip()
        return int(line.rpartition(" ")[2]) if line else 0

    async def ejected(self) -> list[bool]:
        """Whether Envoy has ejected each server."""
        async with self.client.get(f"{self.envoy.admin}/clusters") as response:
            text = await response.text()
        return [
            f"pool::{server.address}::health_flags::/failed_outlier_check" in text.splitlines()
            for server in self.servers
        ]


def envoy_config(servers: list[str], picker: str, *, reports: bool = False, **more: Any) -> EnvoyConfig:
    listeners = tuple(EnvoyListener(mode.value, "127.0.0.1:0", "pool", mode) for mode in PickMode)
    return EnvoyConfig((EnvoyPool("pool", tuple(servers), picker, reports),), listeners, **more)


@contextlib.asynccontextmanager
async def run_gateway(
    directory: Path,
    *,
    servers: int = 3,
    max_body: int = 16 << 20,
    failure_mode: FailureMode = FailureMode.CLOSE,
    max_buffered: int = 1 << 30,
    processing_mode: Mapping[str, str] | None = None,
    filter_options: Mapping[str, Any] | None = None,
    envoy_buffer: int = 0,
    reports: bool = False,
    responses: ResponseSource = ResponseSource.ACCESS_LOG,
    settings: Mapping[str, Any] | None = None,
    edit: Callable[[Any], None] | None = None,
    tls: ServerTls | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway that runs until the end of the block; `tls`: of its picker port.

    `settings` are fields of `EnvoyConfig`; `processing_mode`, `filter_options` and `envoy_buffer` (bytes) override the
    rendered configuration, and `edit` changes the connection manager of each listener.
    """
    async with contextlib.AsyncExitStack() as stack:
        started = [ModelServer(own_address) for _ in range(servers)]
        for server in started:
            await server.start()
            stack.push_async_callback(server.stop)
        addresses = [server.address for server in started]
        events: list[Event] = []
        gateway = Gateway(started, ScriptedPool(*addresses, hook=events.append), events, tls)
        gateway.picker = ExtProcServer(
            gateway.pool,
            events.append,
            address="127.0.0.1:0",
            max_body=max_body,
            max_buffered=max_buffered,
            timeouts=_timeouts(settings or {}),
            tls=tls,
        )
        gateway.picker_port = await gateway.picker.start()
        stack.push_async_callback(gateway.stop_picker)
        gateway.pool.reports = reports
        config = bootstrap(
            envoy_config(
                addresses,
                f"127.0.0.1:{gateway.picker_port}",
                reports=reports,
                max_body=max_body,
                failure_mode=failure_mode,
                responses=responses,
                **(settings or {}),
            )
        )
        for listener in config["static_resources"]["listeners"]:
            listener["per_connection_buffer_limit_bytes"] = (
                envoy_buffer or listener["per_connection_buffer_limit_bytes"]
            )
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            for item in manager["http_filters"]:
                if item["name"] != "envoy.filters.http.ext_proc":
                    continue
                item["typed_config"]["processing_mode"].update(processing_mode or {})
                item["typed_config"].update(filter_options or {})
            if edit is not None:
                edit(manager)
        gateway.envoy = await process.start(config, directory / "envoy")
        stack.push_async_callback(gateway.envoy.stop)
        gateway.client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        yield gateway


def _timeouts(settings: Mapping[str, Any]) -> ProxyTimeouts:
    """The limits of the rendered Envoy, as the picker knows them."""
    config = EnvoyConfig((), (), **settings)
    return ProxyTimeouts(config.message_timeout, config.max_message_timeout, config.stream_idle_timeout)


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TCP connection to a listener."""
    return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 10)
