"""The model server of `bench_held`, a process of its own: it is full while the file FULL exists.

.venv/bin/python -m tests.bench.held_server PORT SLOTS FULL
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.fakes.model_server import ModelServer, answer, good, vllm_page

CHAT = "/v1/chat/completions"
_ANSWER = answer(b"{}", headers="Content-Type: application/json\r\n")


async def serve(port: int, slots: int, full: Path) -> None:
    """Serve until the process ends."""

    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if path == CHAT:
            writer.write(_ANSWER)
        else:
            server.page = vllm_page(running=2 * slots if full.exists() else 0)  # noqa: ASYNC240  microseconds
            await good(server, path, writer)
        server.requests.clear()

    await ModelServer(behave).start(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
