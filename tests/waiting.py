"""Waiting for a condition with a deadline, instead of sleeping.

The deadline only limits a failure: a passing test waits no longer than its condition needs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

T = TypeVar("T")
_POLL_SECONDS = 0.02


def until(condition: Callable[[], T], within: float = 20.0, what: str = "") -> T:
    """The first true value of `condition`; the test fails after `within` seconds without one."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what or condition} did not happen within {within:g} s")
        pause.wait(_POLL_SECONDS)
    return value


async def found(
    read: Callable[[], Awaitable[T]], fits: Callable[[T], object] = bool, within: float = 20.0, what: str = ""
) -> T:
    """The first result of `read` that fits; the test fails with the last one after `within` seconds without one."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not fits(answer := await read()):
        if loop.time() > deadline:
            pytest.fail(f"no result for {what or fits} within {within:g} s; the last one: {answer!r:.2000}")
        poll: asyncio.Future[None] = loop.create_future()
        loop.call_later(_POLL_SECONDS, poll.set_result, None)
        await poll
    return answer


async def eventually(condition: Callable[[], T], within: float = 20.0, what: str = "") -> T:
    """`until` for a condition that changes on the test's own event loop."""

    async def read() -> T:
        return condition()

    return await found(read, within=within, what=what or str(condition))
