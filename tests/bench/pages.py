"""The page that a busy server shows as time goes on, made of one recording. Pure.

Whatever counts goes on counting: every bucket, count, sum and total is the recorded value times the same growing
factor, so that histograms stay true and nothing goes back. The gauges that a picker reads move. What names the server
or its birth stays. No page of the sequence equals the one before, neither in its bytes nor in what is read from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

_SAMPLE: Final = re.compile(rb"^([A-Za-z_:][\w:]*)(\{[^\n]*\})? ([^\s]+)$", re.MULTILINE)
_COUNTING: Final = ("_bucket", "_count", "_sum", "_total")
_STEP: Final = 0.04  # what one step adds to the factor: one more request of the recorded 25
_TURN: Final = (math.sqrt(5) - 1) / 2  # steps by the golden ratio fill an interval evenly and never repeat
# Gauges that a picker reads, where the recording has more than 0: from, to, and whether whole.
_MOVING: Final = {
    "vllm:num_requests_running": (0.0, 5.0, True),
    "vllm:num_requests_waiting": (0.0, 120.0, True),
    "vllm:num_requests_waiting_by_reason": (0.0, 120.0, True),
    "vllm:kv_cache_usage_perc": (0.0, 1.0, False),
}


class NotThere(Exception):
    """The recording lacks a sample that should move; the text names it."""


def sequence(page: bytes, steps: int) -> Iterator[bytes]:
    """The page at so many moments, the recorded counts first. Raises `NotThere` for a page that is not vLLM's."""
    fixed: list[bytes] = []
    moving: list[tuple[float, float, bool] | float] = []
    seen: set[str] = set()
    at = 0
    for sample in _SAMPLE.finditer(page):
        name, value = sample[1].decode(), float(sample[3])
        seen.add(name)
        if name in _MOVING and value > 0:
            moving.append(_MOVING[name])
        elif name.endswith(_COUNTING) and value > 0:
            moving.append(value)
        else:
            continue
        fixed.append(page[at : sample.start(3)])
        at = sample.end(3)
    if _MOVING.keys() - seen:
        raise NotThere(f"the page has no {', '.join(sorted(_MOVING.keys() - seen))}")
    for step in range(steps):
        parts = []
        for before, what in zip(fixed, moving, strict=True):
            parts += [before, _shown(what, step)]
        yield b"".join([*parts, page[at:]])


def _shown(what: tuple[float, float, bool] | float, step: int) -> bytes:
    if isinstance(what, tuple):
        low, high, whole = what
        value = low + (high - low) * (step * _TURN % 1.0)
        return repr(float(math.floor(value)) if whole else value).encode()
    value = what * (1 + _STEP * step)
    return repr(float(math.floor(value)) if what.is_integer() else value).encode()
