"""The client of the demo: an open loop of streamed chats that measures the time to first token."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import orjson

from agent.clock import Clock
from agent.demo.workload import ChatTurn

PATH: Final = "/v1/chat/completions"
# A request that takes longer has failed, so that the demo ends.
REQUEST_TIMEOUT_SECONDS: Final = 60.0
NO_HEADERS: Final[Mapping[str, str]] = {}
_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
_ERROR: Final = b'data: {"error"'


@dataclass(slots=True)
class RunProgress:
    """The progress of a run and the results of its requests so far."""

    total: int
    sent: int = 0
    ended: int = 0
    ttft_seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    late_seconds: float = 0.0


def new_session() -> aiohttp.ClientSession:
    """A session without a bound on its connections; its requests end after REQUEST_TIMEOUT_SECONDS."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


async def send(
    session: aiohttp.ClientSession,
    url: str,
    turns: Sequence[ChatTurn],
    model: str,
    answer_tokens: int,
    clock: Clock,
    on_progress: Callable[[RunProgress], None],
) -> RunProgress:
    """Send each turn at its time and wait for all answers; `on_progress` is called after each send and each end."""
    progress = RunProgress(len(turns))
    start = clock.now()
    async with asyncio.TaskGroup() as group:
        for turn in turns:
            await asyncio.sleep(max(0.0, start + turn.at - clock.now()))
            progress.late_seconds = max(progress.late_seconds, clock.now() - start - turn.at)
            group.create_task(_send_turn(session, url, body(turn, model, answer_tokens), clock, progress, on_progress))
    return progress


def body(turn: ChatTurn, model: str, answer_tokens: int) -> bytes:
    """The request body of a turn in the format of the OpenAI API."""
    return orjson.dumps(
        {
            "model": model,
            "messages": [message._asdict() for message in turn.messages],
            "stream": True,
            "max_tokens": answer_tokens,
            "temperature": 0,
        }
    )


async def _send_turn(
    session: aiohttp.ClientSession,
    url: str,
    data: bytes,
    clock: Clock,
    progress: RunProgress,
    on_progress: Callable[[RunProgress], None],
) -> None:
    progress.sent += 1
    on_progress(progress)
    try:
        progress.ttft_seconds.append(await send_chat(session, url, data, clock))
    except ChatFailed as failed:
        progress.errors[str(failed)] += 1
    finally:
        progress.ended += 1
        on_progress(progress)


class ChatFailed(Exception):
    """A request without a complete answer; the message is short and equal for equal failures."""


async def send_chat(
    session: aiohttp.ClientSession, url: str, data: bytes, clock: Clock, headers: Mapping[str, str] = NO_HEADERS
) -> float:
    """Send one chat and read its stream to the end; seconds to the first data. Raises ChatFailed."""
    start = clock.now()
    first: float | None = None
    tail = b""
    try:
        async with session.post(url, data=data, headers={"Content-Type": "application/json", **headers}) as answer:
            if answer.status != 200:
                raise ChatFailed(f"HTTP {answer.status} {_code(await answer.read())}".rstrip())
            async for chunk in answer.content.iter_any():
                tail = tail[-32:] + chunk
                if first is None and _DATA in tail:
                    first = clock.now()
                if _ERROR in tail:
                    raise ChatFailed("an error in the stream")
    except TimeoutError:
        raise ChatFailed(f"no complete answer within {REQUEST_TIMEOUT_SECONDS:g} s") from None
    except aiohttp.ClientError as error:
        raise ChatFailed(f"the connection failed: {type(error).__name__}") from error
    if first is None:
        raise ChatFailed("an empty stream")
    if _DONE not in tail:
        raise ChatFailed("the stream ended before [DONE]")
    return first - start


def _code(answer: bytes) -> str:
    """The code of an OpenAI error body, or its message without a code; empty for another body."""
    try:
        error = orjson.loads(answer)["error"]
        return str(error.get("code") or error.get("message") or "")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return ""
