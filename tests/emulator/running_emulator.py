"""An emulated server on a free port in the test's event loop, and the recorded transcripts to compare it with."""

from __future__ import annotations

import contextlib
import itertools
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from agent.clock import SystemClock
from agent.emulator.config import EmulatorConfig, ModelSpec
from agent.emulator.server import EmulatedServer

TRANSCRIPTS = Path(__file__).resolve().parent.parent / "recordings" / "vllm_http"
CONFIG = EmulatorConfig(
    max_num_seqs=4,
    num_blocks=200,
    block_size=32,
    max_model_len=2048,
    max_loras=2,
    step_seconds=0.001,
    step_seconds_per_request=0.0001,
    prefill_tokens_per_second=1e6,
)
MODEL = ModelSpec("tiny", ("lora-a", "lora-b"), answer_tokens=40)


@dataclass
class RunningEmulator:
    """A running server, a client session for it, and one entry in `deaths` for each fault `die`."""

    server: EmulatedServer
    port: int
    session: aiohttp.ClientSession
    deaths: list[None] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def get(self, path: str) -> tuple[int, bytes]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.read()

    async def post(self, path: str, fields: dict[str, Any]) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=fields) as response:
            return response.status, await response.json(content_type=None)

    async def fault(self, **fields: Any) -> None:
        status, answer = await self.post("/emulator/faults", fields)
        assert status == 200, answer


@contextlib.asynccontextmanager
async def run_emulator(
    config: EmulatorConfig = CONFIG, model: ModelSpec = MODEL, *, accelerator: str = ""
) -> AsyncIterator[RunningEmulator]:
    """A server that runs until the end of the block."""
    deaths: list[None] = []
    server = EmulatedServer(config, model, SystemClock(), die=lambda: deaths.append(None), accelerator=accelerator)
    port = await server.start("127.0.0.1", 0)
    async with aiohttp.ClientSession() as session:
        try:
            yield RunningEmulator(server, port, session, deaths)
        finally:
            await server.stop()


@dataclass(frozen=True)
class Transcript:
    """One recorded exchange."""

    method: str
    path: str
    headers: dict[str, str]
    data: str | None
    status: int
    answer_headers: dict[str, str]
    body: str


def transcript(name: str) -> Transcript:
    text = (TRANSCRIPTS / f"{name}.txt").read_text(encoding="utf-8")
    command, _, answer = text.partition("\n# ---- response\n")
    words = shlex.split(command.removeprefix("# "))
    headers, data = {}, None
    for word, following in itertools.pairwise(words):
        if word == "-H":
            key, _, value = following.partition(":")
            headers[key] = value.strip()
        elif word == "-d":
            data = following
    head, _, body = answer.partition("\n\n")
    status_line, *lines = head.splitlines()
    return Transcript(
        method=words[words.index("-X") + 1],
        path=words[words.index("-X") + 2],
        headers=headers,
        data=data,
        status=int(status_line.split()[1]),
        answer_headers={k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)},
        body=body.partition("\n# ---- curl exit")[0].strip(),
    )


def shape(value: Any) -> Any:
    """The structure of a JSON value: keys in their order and types of values."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__


def sse(body: str) -> list[str]:
    """The data of each event of a stream."""
    return [part.removeprefix("data: ") for part in body.strip().split("\n\n")]
