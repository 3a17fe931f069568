"""Clients of HTTP/1.0: a plain one, and a real nginx in front, whose default `proxy_http_version` is 1.0."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from agent.envoy.process import kill_with_parent
from agent.envoy.render import PickMode
from tests.envoy.gateway import Gateway, chat, connect, run_gateway
from tests.fakes.ext_proc import CHAT
from tests.fakes.model_server import ModelServer, chunk, chunked_head
from tests.waiting import found

every = pytest.mark.parametrize("mode", PickMode, ids=[mode.value for mode in PickMode])
NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    client_max_body_size 16m;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{envoy}; proxy_buffering off; }}
    }}
}}
"""


async def exchange(gateway: Gateway, mode: PickMode, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the response to bytes on a connection of their own, which the server closes."""
    reader, writer = await connect(gateway.port(mode))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


@every
@pytest.mark.parametrize("host", [b"Host: chat.example\r\n", b""], ids=["with a host", "without a host"])
async def test_an_http_1_0_request_is_picked_and_answered(tmp_path: Path, mode: PickMode, host: bytes) -> None:
    async with run_gateway(tmp_path, servers=1) as gateway:
        body = json.dumps(chat("hi")).encode()
        head = f"POST {CHAT} HTTP/1.0\r\nContent-Length: {len(body)}\r\n".encode()
        answer, text = await exchange(gateway, mode, head + host + b"\r\n" + body)
        assert answer.startswith(b"HTTP/1.0 200 ")
        assert json.loads(text) == {"server": gateway.servers[0].address}
        (request,) = gateway.servers[0].requests
        assert json.loads(request.body) == chat("hi")
        assert request.headers["host"] == (host.split()[1].decode() if host else "pool")
        assert [b"hi" in prompt.text for _, prompt, _ in gateway.pool.requests] == (
            [] if mode is PickMode.ROUND_ROBIN else [True]
        )


async def stream(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """Three events."""
    writer.write(chunked_head())
    for number in range(3):
        writer.write(chunk(b"data: %d\n\n" % number))
        await writer.drain()
    writer.write(chunk())


@every
async def test_a_stream_to_an_http_1_0_client_has_no_chunks_and_ends_with_the_connection(
    tmp_path: Path, mode: PickMode
) -> None:
    async with run_gateway(tmp_path, servers=1) as gateway:
        gateway.servers[0].behave = stream
        body = json.dumps(chat(stream=True)).encode()
        head = f"POST {CHAT} HTTP/1.0\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        answer, text = await exchange(gateway, mode, head + body)
        assert b"transfer-encoding" not in answer.lower()
        assert text == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def nginx_command(directory: Path, port: int, envoy: int) -> list[str]:
    """The command of an nginx at `port` whose upstream is the port `envoy`."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "nginx is not installed: make packages"
    directory.mkdir()
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(port=port, envoy=envoy), encoding="utf-8")
    return kill_with_parent([program, "-p", str(directory), "-c", str(config), "-e", "stderr"])


@contextlib.asynccontextmanager
async def nginx_before(gateway: Gateway, mode: PickMode, directory: Path, port: int) -> AsyncIterator[str]:
    """The URL of an nginx whose upstream is the listener."""
    command = nginx_command(directory, port, gateway.port(mode))
    process = await asyncio.create_subprocess_exec(*command)
    try:

        async def listening() -> bool:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return True
            return False

        await found(listening)
        yield f"http://127.0.0.1:{port}{CHAT}"
    finally:
        process.terminate()
        await process.wait()


@every
async def test_a_chat_through_nginx_with_its_defaults_is_picked_and_streamed(
    tmp_path: Path, mode: PickMode, free_port: int
) -> None:
    async with run_gateway(tmp_path, servers=2) as gateway:
        gateway.pool.choose = lambda _, __: gateway.servers[1].address
        async with nginx_before(gateway, mode, tmp_path / "nginx", free_port) as url:
            for words in ("hi", "x" * 100_000):
                async with gateway.client.post(url, json=chat(words)) as response:
                    assert response.status == 200
                    served = (await response.json())["server"]
                    assert mode is PickMode.ROUND_ROBIN or served == gateway.servers[1].address
            for server in gateway.servers:
                server.behave = stream
            async with gateway.client.post(url, json=chat(stream=True)) as response:
                assert (await response.read()).count(b"data: ") == 3
            requests = [request for server in gateway.servers for request in server.requests]
            assert len(requests) == 3
            assert len(gateway.pool.requests) == (0 if mode is PickMode.ROUND_ROBIN else 3)


@every
async def test_an_error_of_the_gateway_reaches_an_http_1_0_client(tmp_path: Path, mode: PickMode) -> None:
    async with run_gateway(tmp_path, servers=1) as gateway:
        await gateway.servers[0].stop()
        head = f"POST {CHAT} HTTP/1.0\r\nHost: x\r\nContent-Length: 15\r\n\r\n".encode()
        answer, text = await exchange(gateway, mode, head + b'{"model": "m" }')
        assert answer.startswith(b"HTTP/1.0 503 ")
        assert json.loads(text)["error"]["code"] == "upstream_unavailable"


async def test_an_aiohttp_client_of_http_1_0_gets_its_answer(tmp_path: Path) -> None:
    async with (
        run_gateway(tmp_path, servers=1) as gateway,
        aiohttp.ClientSession(version=aiohttp.HttpVersion10) as client,
        client.post(gateway.url(PickMode.BUFFERED), json=chat()) as response,
    ):
        assert (response.status, response.version) == (200, aiohttp.HttpVersion10)
