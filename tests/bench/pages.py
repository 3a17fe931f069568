"""A sequence of pages of a busy server, generated from one recording. Pure.

Counters increase: every bucket, count, sum and total is the recorded value times the same growing factor, so histograms
stay consistent. The gauges that a picker reads change. Labels and the start time stay. No page of the sequence equals
the one before, neither in its bytes nor in its readings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

_SAMPLE: Final = re.compile(rb"^([A-Za-z_:][\w:]*)(\{[^\n]*\})? ([^\s]+)$", re.MULTILINE)
_COUNTER_SUFFIXES: Final = ("_bucket", "_count", "_sum", "_total")
_STEP: Final = 0.04  # growth of the factor per step: one more request of the recorded 25
_GOLDEN_RATIO: Final = (math.sqrt(5) - 1) / 2  # its multiples fill an interval evenly
# Gauges that a picker reads, if above 0 in the recording: lowest and highest value, and whether integers only.
_GAUGES: Final = {
    "vllm:num_requests_running": (0.0, 5.0, True),
    "vllm:num_requests_waiting": (0.0, 120.0, True),
    "vllm:num_requests_waiting_by_reason": (0.0, 120.0, True),
    "vllm:kv_cache_usage_perc": (0.0, 1.0, False),
}


class MissingSample(Exception):
    """The recording lacks a sample that should change; the message names it."""


def sequence(page: bytes, steps: int) -> Iterator[bytes]:
    """`steps` pages, the first with the recorded counters. Raises MissingSample for a page that is not vLLM's."""
    fixed: list[bytes] = []
    varying: list[tuple[float, float, bool] | float] = []
    seen: set[str] = set()
    at = 0
    for sample in _SAMPLE.finditer(page):
        name, value = sample[1].decode(), float(sample[3])
        seen.add(name)
        if name in _GAUGES and value > 0:
            varying.append(_GAUGES[name])
        elif name.endswith(_COUNTER_SUFFIXES) and value > 0:
            varying.append(value)
        else:
            continue
        fixed.append(page[at : sample.start(3)])
        at = sample.end(3)
    if _GAUGES.keys() - seen:
        raise MissingSample(f"the page has no {', '.join(sorted(_GAUGES.keys() - seen))}")
    for step in range(steps):
        parts = []
        for before, source in zip(fixed, varying, strict=True):
            parts += [before, _value(source, step)]
        yield b"".join([*parts, page[at:]])


def _value(source: tuple[float, float, bool] | float, step: int) -> bytes:
    if isinstance(source, tuple):
        low, high, whole = source
        value = low + (high - low) * (step * _GOLDEN_RATIO % 1.0)
        return repr(float(math.floor(value)) if whole else value).encode()
    value = source * (1 + _STEP * step)
    return repr(float(math.floor(value)) if source.is_integer() else value).encode()
