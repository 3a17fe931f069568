"""The client of the demo: an open loop of streamed chats, each with the time to its first token."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import orjson

from agent.clock import Clock
from agent.demo.workload import Turn

PATH: Final = "/v1/chat/completions"
# A request that takes longer has failed: nobody waits for so long, and the demo has to end.
PATIENCE_SECONDS: Final = 60.0
_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
_ERROR: Final = b'data: {"error"'


@dataclass(slots=True)
class Progress:
    """Where a run is, and what came of its requests so far."""

    total: int
    sent: int = 0
    ended: int = 0
    ttft_seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    late_seconds: float = 0.0


async def send(
    session: aiohttp.ClientSession,
    url: str,
    turns: Sequence[Turn],
    model: str,
    answer_tokens: int,
    clock: Clock,
    moved: Callable[[Progress], None],
) -> Progress:
    """Send each turn at its time, wait for all answers; `moved` is told whenever something was sent or has ended."""
    progress = Progress(len(turns))
    start = clock.now()
    async with asyncio.TaskGroup() as group:
        for turn in turns:
            await asyncio.sleep(max(0.0, start + turn.at - clock.now()))
            progress.late_seconds = max(progress.late_seconds, clock.now() - start - turn.at)
            group.create_task(_one(session, url, body(turn, model, answer_tokens), clock, progress, moved))
    return progress


def body(turn: Turn, model: str, answer_tokens: int) -> bytes:
    """The request of a turn, as OpenAI's API has it."""
    return orjson.dumps(
        {
            "model": model,
            "messages": [message._asdict() for message in turn.messages],
            "stream": True,
            "max_tokens": answer_tokens,
            "temperature": 0,
        }
    )


async def _one(
    session: aiohttp.ClientSession,
    url: str,
    data: bytes,
    clock: Clock,
    progress: Progress,
    moved: Callable[[Progress], None],
) -> None:
    progress.sent += 1
    moved(progress)
    try:
        progress.ttft_seconds.append(await ask(session, url, data, clock))
    except Failed as failed:
        progress.errors[str(failed)] += 1
    finally:
        progress.ended += 1
        moved(progress)


class Failed(Exception):
    """A request that got no whole answer, in a few words that are the same for the same trouble."""


async def ask(session: aiohttp.ClientSession, url: str, data: bytes, clock: Clock) -> float:
    """Send one chat and read its stream to the end; seconds to its first data. Raises Failed."""
    began = clock.now()
    first: float | None = None
    tail = b""
    try:
        async with session.post(url, data=data, headers={"Content-Type": "application/json"}) as answer:
            if answer.status != 200:
                raise Failed(f"HTTP {answer.status} {_code(await answer.read())}".rstrip())
            async for chunk in answer.content.iter_any():
                tail = tail[-32:] + chunk
                if first is None and _DATA in tail:
                    first = clock.now()
                if _ERROR in tail:
                    raise Failed("an error in the stream")
    except TimeoutError:
        raise Failed(f"no whole answer within {PATIENCE_SECONDS:g} s") from None
    except aiohttp.ClientError as error:
        raise Failed(f"the connection failed: {type(error).__name__}") from error
    if first is None:
        raise Failed("an empty stream")
    if _DONE not in tail:
        raise Failed("the stream ended before [DONE]")
    return first - began


def _code(answer: bytes) -> str:
    """The code of an OpenAI error, its message where it has none; empty for another body."""
    try:
        error = orjson.loads(answer)["error"]
        return str(error.get("code") or error.get("message") or "")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return ""
