"""WebSocket upgrades through a real Envoy: picked at the headers, and in flight until the socket closes."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.envoy import process
from agent.envoy.render import PickMode, bootstrap
from agent.events import ignore
from agent.pick.decision import NoPick
from agent.serve.ext_proc.server import ExtProcServer
from tests.emulator.running_emulator import RunningEmulator, run_emulator
from tests.envoy.gateway import MODES, chat, envoy_config, run_gateway
from tests.fakes.scripted_pool import ScriptedPool
from tests.waiting import eventually

both = pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
every = pytest.mark.parametrize("mode", PickMode, ids=[mode.value for mode in PickMode])


class Realtime:
    """Envoy and its picker before two emulated servers."""

    def __init__(self, servers: list[RunningEmulator], pool: ScriptedPool, client: aiohttp.ClientSession) -> None:
        self.servers = servers
        self.pool = pool
        self.client = client
        self.envoy: process.EnvoyProcess

    def connect(self, mode: PickMode, path: str = "/v1/realtime?model=tiny") -> Any:
        return self.client.ws_connect(f"http://127.0.0.1:{self.envoy.ports[mode.value]}{path}")

    async def load(self) -> list[int]:
        return [json.loads((await server.get("/load"))[1])["server_load"] for server in self.servers]


@contextlib.asynccontextmanager
async def realtime(directory: Path, *, override: bool = True) -> AsyncIterator[Realtime]:
    """With `override` false Envoy has a route for upgrades as other gateways do: without a mode of its own."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(run_emulator()) for _ in range(2)]
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        running = Realtime(servers, ScriptedPool(*addresses), client)
        picker = ExtProcServer(running.pool, ignore, address="127.0.0.1:0")
        port = await picker.start()
        stack.push_async_callback(picker.stop, 0.0)
        config = bootstrap(envoy_config(addresses, f"127.0.0.1:{port}"))
        for listener in config["static_resources"]["listeners"]:
            routes = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
            if not override:
                routes["virtual_hosts"][0]["routes"][0].pop("typed_per_filter_config", None)
        running.envoy = await process.start(config, directory / "envoy")
        stack.push_async_callback(running.envoy.stop)
        yield running


async def transcribe(socket: aiohttp.ClientWebSocketResponse, audio: bytes) -> str:
    """What the server makes of some audio."""
    await socket.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(audio).decode()})
    await socket.send_json({"type": "input_audio_buffer.commit", "final": True})
    assert (await socket.receive_json())["type"] == "transcription.delta"
    done = await socket.receive_json()
    assert done["type"] == "transcription.done"
    text: str = done["text"]
    return text


@both
async def test_an_upgrade_goes_to_the_picked_endpoint_and_is_in_flight_until_the_client_closes(
    tmp_path: Path, mode: PickMode
) -> None:
    async with realtime(tmp_path) as running:
        running.pool.choose = lambda _, __: running.pool.endpoints[1]
        async with running.connect(mode) as socket:
            assert (await socket.receive_json())["type"] == "session.created"
            assert await running.load() == [0, 1]
            for size in (3, 300_000):
                assert await transcribe(socket, b"x" * size) == f"{size} bytes of audio"
                assert running.pool.in_flight == 1
        await eventually(lambda: running.pool.in_flight == 0)
        assert running.pool.ended_as == ["closed"]
        assert running.pool.picks == 1


@both
async def test_an_upgrade_is_in_flight_until_the_server_closes(tmp_path: Path, mode: PickMode) -> None:
    async with realtime(tmp_path) as running:
        async with running.connect(mode) as socket:
            await socket.receive_json()
            assert running.pool.in_flight == 1
            await running.servers[0].server.stop()
            assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        await eventually(lambda: running.pool.in_flight == 0)


async def test_a_gateway_that_streams_the_data_through_the_picker_gets_it_back(tmp_path: Path) -> None:
    async with realtime(tmp_path, override=False) as running:
        async with running.connect(PickMode.FULL_DUPLEX) as socket:
            await socket.receive_json()
            for size in (3, 300_000, 3):
                assert await transcribe(socket, b"x" * size) == f"{size} bytes of audio"
            assert running.pool.in_flight == 1
        await eventually(lambda: running.pool.in_flight == 0)


@every
async def test_an_upgrade_on_any_path_is_passed_on(tmp_path: Path, mode: PickMode) -> None:
    async with realtime(tmp_path) as running:
        async with running.connect(mode) as socket:
            assert (await socket.receive_json())["type"] == "session.created"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await running.connect(mode, "/v1/other")
        assert refused.value.status == 404  # the server's answer
        await eventually(lambda: running.pool.in_flight == 0)


@both
async def test_an_upgrade_without_an_endpoint_is_rejected_as_any_request(tmp_path: Path, mode: PickMode) -> None:
    async with realtime(tmp_path) as running:
        running.pool.choose = lambda _, __: NoPick("", "none_healthy", "2 of 2 are down")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await running.connect(mode)
        assert refused.value.status == 503
        assert await running.load() == [0, 0]


@both
async def test_an_upgrade_whose_server_resets_is_retried_at_another(tmp_path: Path, mode: PickMode) -> None:
    async with realtime(tmp_path) as running:
        await running.servers[0].server.stop()
        async with running.connect(mode) as socket:
            assert (await socket.receive_json())["type"] == "session.created"
            assert await running.servers[1].get("/load") == (200, b'{"server_load":1}')


@both
async def test_a_chat_that_offers_another_upgrade_is_picked_by_its_body(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path) as gateway:
        headers = {"upgrade": "h2c", "connection": "upgrade, http2-settings", "http2-settings": "AAMAAABkAAQAAP__"}
        async with gateway.client.post(gateway.url(mode), json=chat("hi"), headers=headers) as response:
            assert response.status == 200
        (_, prompt, _), *_ = gateway.pool.requests
        assert b"hi" in prompt.text
        await eventually(lambda: gateway.pool.in_flight == 0)
