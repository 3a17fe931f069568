"""A server for scrape tests that responds in any way that a test wants; it counts requests."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

PAGE = (
    Path(__file__).resolve().parents[1] / "recordings" / "pages" / "vllm" / "load_base_seqs4_blocks100.prom"
).read_bytes()
MODELS = b'{"object":"list","data":[{"id":"tiny"},{"id":"lora-a","parent":"tiny"}]}'

Behaviour = Callable[["ModelServer", str, asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes, status: str = "200 OK", headers: str = "", *, length: int | None = None) -> bytes:
    """An HTTP/1.1 response; `length` replaces the content length of the body."""
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body


class ModelServer:
    """Listens on a free port of 127.0.0.1; `behave` responds to each GET, and may close the connection."""

    def __init__(self, behave: Behaviour | None = None) -> None:
        self.behave = behave or good
        self.page = PAGE
        self.asked: list[str] = []
        self.head = ""  # of the last request
        self.connections = 0
        self.writers: set[asyncio.StreamWriter] = set()
        self.busy = 0
        self.most_at_once = 0
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    async def start(self, port: int = 0, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, host, port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and abort every connection."""
        if self._server is not None:
            self._server.close()
            for writer in list(self.writers):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            while True:
                first = await reader.readexactly(1)
                if first == b"\x16":  # a TLS handshake: respond as nginx does on a plain port
                    writer.write(answer(b"", "400 Bad Request", "Connection: close\r\n"))
                    break
                head = first + await reader.readuntil(b"\r\n\r\n")
                self.head = head.decode("latin-1")
                path = head.split(b" ")[1].decode()
                self.asked.append(path)
                self.busy += 1
                self.most_at_once = max(self.most_at_once, self.busy)
                try:
                    await self.behave(self, path, writer)
                    await writer.drain()
                finally:
                    self.busy -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()


class Target(ModelServer):
    """A model server whose behaviour changes."""

    _held: socket.socket | None = None
    tls: ssl.SSLContext | None = None

    async def turn(self, behave: Behaviour | None) -> None:
        """Change its behaviour; None: it stops listening, and its port stays reserved."""
        self.behave = behave or good
        if behave is None:
            await self.stop()
            self._held = socket.socket()
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.bind(("127.0.0.1", self.port))
        elif self._server is None:
            self._release()
            await self.start(self.port, tls=self.tls)

    async def stop(self) -> None:
        """Stop listening, and release the port."""
        self._release()
        await super().stop()

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


async def good(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """The recorded page, a list of models, and a good health path."""
    writer.write(answer({"/v1/models": MODELS, "/health": b""}.get(path, server.page)))


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
    """No response."""
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
    """Half of the page, then a reset as a dying kernel sends it."""
    writer.write(answer(PAGE)[:20000])
    await writer.drain()
    on_close = struct.pack("ii", 1, 0)  # linger for 0 s: unsent bytes are dropped, and the connection is reset
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, on_close)
    writer.transport.abort()


async def endless(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """A chunked page of 100 MB."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    block = PAGE[:65536]
    for _ in range(1600):
        writer.write(b"%x\r\n" % len(block) + block + b"\r\n")
        await writer.drain()
