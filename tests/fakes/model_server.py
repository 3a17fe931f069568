"""A scripted HTTP/1.1 model server in the test's event loop: it records requests; the test sets its behaviour.

A behaviour answers one request: it writes any bytes to the connection, or breaks it. `good` is the default one.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from multidict import CIMultiDict

PAGE = (
    Path(__file__).resolve().parents[1] / "recordings" / "pages" / "vllm" / "load_base_seqs4_blocks100.prom"
).read_bytes()
MODELS = b'{"object":"list","data":[{"id":"tiny"},{"id":"lora-a","parent":"tiny"}]}'

Behaviour = Callable[["ModelServer", str, asyncio.StreamWriter], Awaitable[None]]


class ReceivedRequest(NamedTuple):
    """One request as it arrived."""

    method: str
    path: str
    headers: CIMultiDict[str]
    body: bytes
    head: str


def answer(body: bytes, status: str = "200 OK", headers: str = "", *, length: int | None = None) -> bytes:
    """An HTTP/1.1 response; `length` is a wrong Content-Length."""
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body


def chunked_head(headers: str = "Content-Type: text/event-stream\r\n") -> bytes:
    """The head of a chunked response; `chunk`s follow, the last one empty."""
    return f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{headers}\r\n".encode()


def chunk(data: bytes = b"") -> bytes:
    """One chunk; without data the one that ends the body."""
    return b"%x\r\n" % len(data) + data + b"\r\n"


def vllm_page(running: int = 0, waiting: int = 0) -> bytes:
    """A short page of vLLM with `running` requests in the batch, and `waiting` ones."""
    return f"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {float(running)}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} {float(waiting)}
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} 0.25
""".encode()


class ModelServer:
    """Listens on a port, of 127.0.0.1 by default; `behave` answers each request, `page` is what `good` serves as
    /metrics.
    """

    def __init__(self, behave: Behaviour | None = None, page: bytes = PAGE) -> None:
        self.behave = behave or good
        self.page = page
        self.requests: list[ReceivedRequest] = []
        self.connections = 0
        self.writers: dict[asyncio.StreamWriter, asyncio.StreamReader] = {}
        self.active = 0
        self.max_active = 0
        self._server: asyncio.Server | None = None
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self.port = 0
        self.host = "127.0.0.1"

    @property
    def address(self) -> str:
        """host:port."""
        return f"{self.host}:{self.port}"

    @property
    def paths(self) -> list[str]:
        """The paths of all requests."""
        return [request.path for request in self.requests]

    async def start(self, port: int = 0, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        """Listen on `port`: 0 is the port of the last start, or a free one."""
        self._server = await asyncio.start_server(self._serve, host, port or self.port, ssl=tls)
        self.host = host
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and reset every connection."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for writer in list(self.writers):
                writer.transport.abort()
            await server.wait_closed()

    def pause(self) -> None:
        """Answer no request until `resume`."""
        self._unpaused.clear()

    def resume(self) -> None:
        """Answer the requests that wait and those that come."""
        self._unpaused.set()

    def disconnected(self, writer: asyncio.StreamWriter) -> bool:
        """Whether the client has closed the connection of `writer`."""
        return writer.is_closing() or writer not in self.writers or self.writers[writer].at_eof()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # accepted before the port was closed
            writer.transport.abort()
            return
        self.connections += 1
        self.writers[writer] = reader
        try:
            while True:
                first = await reader.readexactly(1)
                if first == b"\x16":  # a TLS ClientHello to a server without TLS: nginx answers like this
                    writer.write(answer(b"", "400 Bad Request", "Connection: close\r\n"))
                    break
                request = await _read_request(first, reader)
                self.requests.append(request)
                self.active += 1
                self.max_active = max(self.max_active, self.active)
                try:
                    if not self._unpaused.is_set():
                        await self._unpaused.wait()
                    await self.behave(self, request.path, writer)
                    await writer.drain()
                finally:
                    self.active -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self.writers[writer]
            writer.close()


async def _read_request(first: bytes, reader: asyncio.StreamReader) -> ReceivedRequest:
    head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
    method, path, _ = line.split(" ")
    headers = CIMultiDict((name, value.strip()) for name, _, value in (field.partition(":") for field in fields))
    if headers.get("transfer-encoding", "").lower() == "chunked":
        pieces = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            pieces.append(await reader.readexactly(size))
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":  # trailers
            pass
        body = b"".join(pieces)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return ReceivedRequest(method, path, headers, body, head)


class SwitchableServer(ModelServer):
    """A model server that changes its behaviour, or closes its port for a while."""

    _reserved: socket.socket | None = None
    tls: ssl.SSLContext | None = None

    async def switch(self, behave: Behaviour | None) -> None:
        """Behave like this from now on; None: close the port, which no other program can take meanwhile."""
        self.behave = behave or good
        if behave is None:
            await self.stop()
            self._reserved = socket.socket()
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reserved.bind(("127.0.0.1", self.port))
        elif self._server is None:
            self._release()
            await self.start(self.port, tls=self.tls)

    async def stop(self) -> None:
        """Close the port, and reserve it no longer."""
        self._release()
        await super().stop()

    def _release(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None


async def good(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """The server's page, a list of models, and an empty 200 for /health; any other path has the page too."""
    writer.write(answer({"/v1/models": MODELS, "/health": b""}.get(path, server.page)))


async def own_address(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """A JSON object with the server's address."""
    writer.write(answer(b'{"server":"%s"}' % server.address.encode(), headers="Content-Type: application/json\r\n"))


def raw(*pieces: bytes, close: bool = False) -> Behaviour:
    """These bytes, piece by piece, for any request."""

    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if close:
            writer.close()

    return behave


async def hang(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """No answer, ever."""
    await asyncio.Event().wait()


async def drip(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """The head of a long page, and nothing more."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
    await asyncio.Event().wait()


async def break_off(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """Half of the page, then the end of the connection."""
    writer.write(answer(PAGE)[:20000])
    await writer.drain()
    writer.transport.abort()


async def reset(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """Half of the page, then a TCP reset, as after the crash of a server."""
    writer.write(answer(PAGE)[:20000])
    await writer.drain()
    on_close = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends a reset
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, on_close)
    writer.transport.abort()


async def endless(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """A chunked page of 100 MB."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    block = PAGE[:65536]
    for _ in range(1600):
        writer.write(chunk(block))
        await writer.drain()
