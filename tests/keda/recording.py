"""Records what the operator sends to the external scaler: a proxy on loopback between the two.

A recording is a file of JSON lines: the first one says what it is, each other one is one read of a connection from the
operator, in the order of their arrival: the number of the connection and the bytes in base64. `IGW_RECORD_KEDA=1 make
test-keda` writes it into tests/recordings/keda.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from pathlib import Path
from typing import Any


class RecordingProxy:
    """Forwards each connection to `target` (host and port), and keeps what its client sends."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = 0
        self.reads: list[tuple[int, bytes]] = []

    async def start(self) -> str:
        """Listen; returns the address."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def write(self, path: Path, **about: Any) -> None:
        """Write the recording."""
        rows = [{"connection": number, "sent": base64.b64encode(data).decode()} for number, data in self.reads]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in (about, *rows)), encoding="utf-8")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number = self._connections
        self._connections += 1
        try:
            with contextlib.suppress(OSError):
                back_reader, back_writer = await asyncio.open_connection(*self._target)
                back = asyncio.create_task(_copy(back_reader, writer))
                try:
                    while data := await reader.read(65536):
                        self.reads.append((number, data))
                        back_writer.write(data)
                finally:
                    back.cancel()
                    back_writer.close()
        finally:
            writer.close()
            self._tasks.discard(task)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()
