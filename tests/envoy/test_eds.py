"""Reloads and changes of DNS reach a running Envoy by the agent's file, and every pick is served where it was made."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from agent.__main__ import main
from agent.envoy import process
from agent.envoy.endpoints import document as eds_document
from agent.envoy.process import EnvoyFailed, EnvoyProcess, validate
from agent.envoy.render import DESTINATION, EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from agent.events.requests import Picked
from tests.app.live import Live, document, running
from tests.envoy.gateway import MODES, chat
from tests.fakes.ext_proc import CHAT
from tests.fakes.model_server import ModelServer, answer, chunk, chunked_head, vllm_page
from tests.waiting import eventually, found

both = pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])


async def page_or_answer(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """The page for the agent; for clients a JSON object."""
    if path == CHAT:
        writer.write(answer(b"{}", headers="Content-Type: application/json\r\n"))
    else:
        writer.write(answer({"/health": b""}.get(path, server.page)))


def rendered(directory: Path, picker: str) -> EnvoyConfig:
    listeners = tuple(EnvoyListener(mode.value, "127.0.0.1:0", "default", mode) for mode in PickMode)
    return EnvoyConfig((EnvoyPool("default", (), picker),), listeners, eds_directory=str(directory))


def file_of(endpoints: list[str], directory: Path) -> str:
    return document(endpoints, f"envoy: {{edsDirectory: '{directory}'}}\nscrape: {{interval: 50ms}}\n")


@contextlib.asynccontextmanager
async def fleet(count: int) -> AsyncIterator[list[ModelServer]]:
    async with contextlib.AsyncExitStack() as stack:
        started = [ModelServer(page_or_answer, vllm_page()) for _ in range(count)]
        for server in started:
            await server.start()
            stack.push_async_callback(server.stop)
        yield started


class ChatLoad:
    """Four chats at a time, each with a prompt of its own, until it is stopped."""

    def __init__(self, url: str, client: aiohttp.ClientSession) -> None:
        self.statuses: list[int] = []
        self._url = url
        self._client = client
        self._numbers = itertools.count()
        self._stopping = False
        self._tasks = [asyncio.ensure_future(self._send()) for _ in range(4)]

    async def _send(self) -> None:
        while not self._stopping:
            body = {"model": "m", "messages": [{"role": "user", "content": f"{next(self._numbers)} words " * 50}]}
            async with self._client.post(self._url, json=body) as response:
                await response.read()
                self.statuses.append(response.status)

    async def more(self, count: int) -> None:
        """Wait until `count` more chats are answered."""
        wanted = len(self.statuses) + count
        await eventually(lambda: len(self.statuses) >= wanted)

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)


def picked_and_served(servers: list[ModelServer]) -> list[tuple[str, str]]:
    """Of each chat the endpoint that was picked, and the one that received it."""
    return [
        (request.headers[DESTINATION], server.address)
        for server in servers
        for request in server.requests
        if request.path == CHAT
    ]


@contextlib.asynccontextmanager
async def gateway(path: Path, directory: Path, home: Path, healthy: int) -> AsyncIterator[tuple[Live, EnvoyProcess]]:
    """The agent of a file, and an Envoy that reads the agent's files of endpoints."""
    async with running(path, healthy=healthy) as live:
        envoy = await process.start(bootstrap(rendered(directory, live.picker)), home / "envoy")
        try:
            yield live, envoy
        finally:
            await envoy.stop()


@both
async def test_a_reload_under_load_moves_no_request_from_its_pick(tmp_path: Path, mode: PickMode) -> None:
    path, directory = tmp_path / "igw.yaml", tmp_path / "eds"
    directory.mkdir()
    async with fleet(4) as servers, aiohttp.ClientSession() as client:
        addresses = [server.address for server in servers]
        path.write_text(file_of(addresses[:2], directory))
        async with gateway(path, directory, tmp_path, healthy=2) as (live, envoy):
            load = ChatLoad(f"http://127.0.0.1:{envoy.ports[mode.value]}{CHAT}", client)
            await load.more(40)
            for endpoints in (addresses[:3], addresses[1:], addresses[3:], addresses):
                path.write_text(file_of(endpoints, directory))
                await eventually(lambda endpoints=endpoints: set(live.healthy()) == set(endpoints))  # type: ignore[misc]
                await load.more(40)
            await load.stop()
            picks = picked_and_served(servers)
            assert set(load.statuses) == {200}
            assert [(pick, server) for pick, server in picks if pick != server] == []
            assert len(picks) == len(load.statuses) == len(live.recorder.of(Picked))
            assert {pick for pick, _ in picks} == set(addresses)


async def test_a_change_of_dns_reaches_envoy_without_a_rendering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, directory = tmp_path / "igw.yaml", tmp_path / "eds"
    directory.mkdir()
    addresses: list[str] = []
    look_up = asyncio.BaseEventLoop.getaddrinfo

    async def look_up_pods(self: Any, host: str, port: int, **more: Any) -> list[Any]:
        if host != "pods.example":
            return await look_up(self, host, port, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up_pods)
    async with fleet(1) as (first,), aiohttp.ClientSession() as client, contextlib.AsyncExitStack() as stack:
        second = ModelServer(page_or_answer, vllm_page())
        await second.start(first.port, host="127.0.0.2")
        stack.push_async_callback(second.stop)
        addresses.append("127.0.0.1")
        path.write_text(file_of([f"pods.example:{first.port}"], directory))
        async with gateway(path, directory, tmp_path, healthy=1) as (live, envoy):
            load = ChatLoad(f"http://127.0.0.1:{envoy.ports['buffered']}{CHAT}", client)
            await load.more(10)
            both_pods, new_pod = ["127.0.0.1", "127.0.0.2"], ["127.0.0.2"]
            for pods in (both_pods, new_pod):
                addresses[:] = pods
                await eventually(lambda pods=pods: live.healthy() == [f"{pod}:{first.port}" for pod in pods])  # type: ignore[misc]
                await load.more(10)
            await load.stop()
            assert set(load.statuses) == {200}
            assert {pick for pick, _ in picked_and_served([first])} == {first.address}
            assert {pick for pick, _ in picked_and_served([second])} == {f"127.0.0.2:{first.port}"}


async def test_a_stream_continues_at_an_endpoint_that_was_removed(tmp_path: Path) -> None:
    path, directory = tmp_path / "igw.yaml", tmp_path / "eds"
    directory.mkdir()
    async with fleet(2) as (one, two), aiohttp.ClientSession() as client:
        path.write_text(file_of([one.address], directory))
        async with gateway(path, directory, tmp_path, healthy=1) as (live, envoy):
            unpaused = asyncio.Event()

            async def stream(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
                if path != CHAT:
                    await page_or_answer(server, path, writer)
                    return
                writer.write(chunked_head() + chunk(b"data: 1\n\n"))
                await writer.drain()
                await unpaused.wait()
                writer.write(chunk(b"data: 2\n\n") + chunk())

            one.behave = stream
            url = f"http://127.0.0.1:{envoy.ports['buffered']}{CHAT}"
            async with client.post(url, json=chat(stream=True)) as response:
                assert await response.content.readany() == b"data: 1\n\n"
                path.write_text(file_of([two.address], directory))
                await eventually(lambda: live.healthy() == [two.address])
                await found(lambda: hosts(client, envoy), lambda listed: listed == {two.address})
                unpaused.set()
                assert await response.read() == b"data: 2\n\n"


async def hosts(client: aiohttp.ClientSession, envoy: EnvoyProcess) -> set[str]:
    """The endpoints that Envoy has."""
    async with client.get(f"{envoy.admin}/clusters?format=json") as response:
        statuses = json.loads(await response.read())["cluster_statuses"]
    (pool,) = (each for each in statuses if each["name"] == "default")
    sockets = [host["address"]["socket_address"] for host in pool.get("host_statuses", ())]
    return {f"{each['address']}:{each['port_value']}" for each in sockets}


async def test_envoy_without_the_file_does_not_start_and_says_which(tmp_path: Path) -> None:
    with pytest.raises(EnvoyFailed, match=r"default\.eds\.json' does not exist"):
        await process.start(bootstrap(rendered(tmp_path, "127.0.0.1:2")), tmp_path / "envoy")


def test_host_names_are_rendered_where_the_agent_writes_their_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "igw.yaml"
    file.write_text(
        document(["vllm.llm.svc:8000"], f"envoy: {{edsDirectory: '{tmp_path}'}}\n").replace(
            "extProcAddress: 127.0.0.1:0", "extProcAddress: 127.0.0.1:9002"
        )
    )
    (tmp_path / "default.eds.json").write_text(eds_document("default", ["10.0.0.1:8000"]))
    assert main(["render", "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "vllm.llm.svc" not in printed
    assert validate(yaml.safe_load(printed)) == ""
    assert main(["render", "--config", str(file), "--eds-directory", "/elsewhere/"]) == 0
    printed = capsys.readouterr().out
    assert 'path: "/elsewhere/default.eds.json"' in printed or "path: /elsewhere/default.eds.json" in printed
    assert str(tmp_path) not in printed.partition("\n")[2]
    assert main(["render", "--endpoints", "vllm.llm.svc:8000", "--eds-directory", str(tmp_path)]) == 0
    assert main(["render", "--endpoints", "vllm.llm.svc:8000"]) == 2
    assert "envoy.edsDirectory" in capsys.readouterr().err
