"""Waiting for a condition with a deadline: what a test does instead of sleeping.

The deadline only bounds a failure; a test that passes never waits longer than its condition takes to come true.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

T = TypeVar("T")
_LOOK_AGAIN_SECONDS = 0.02


def until(condition: Callable[[], T], within: float = 20.0, what: str = "") -> T:
    """The first true value of `condition`; the test fails when `within` seconds pass without one."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {within:g} s in vain for {what or condition}")
        pause.wait(_LOOK_AGAIN_SECONDS)
    return value


async def found(
    ask: Callable[[], Awaitable[T]], fits: Callable[[T], object] = bool, within: float = 20.0, what: str = ""
) -> T:
    """The first answer of `ask` that fits; the test fails with the last one when `within` seconds pass without one."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not fits(answer := await ask()):
        if loop.time() > deadline:
            pytest.fail(f"waited {within:g} s in vain for {what or fits}; the last answer: {answer!r:.2000}")
        look_again: asyncio.Future[None] = loop.create_future()
        loop.call_later(_LOOK_AGAIN_SECONDS, look_again.set_result, None)
        await look_again
    return answer


async def eventually(condition: Callable[[], T], within: float = 20.0, what: str = "") -> T:
    """`until` for a test that shares its event loop with what it waits for."""

    async def ask() -> T:
        return condition()

    return await found(ask, within=within, what=what or str(condition))
