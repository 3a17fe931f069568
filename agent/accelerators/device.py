"""One accelerator, or one part of it, as one page of its exporter shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agent.signals import Refusal


class Device(NamedTuple):
    """What there is to run on: a card, or a part of a card that was cut up.

    `id` tells it from all others, `number` is its number on its machine; `card` is the hardware that it is or is part
    of; `part` is empty for a whole card. `pod` is `NAMESPACE/POD` of who uses it, `node` its machine, both as the
    exporter calls them and empty where it does not say. `values` are by signal of `agent.accelerators.table`; `xids`
    are NVIDIA's error codes, without 0. `at` is when the sample was taken where that is not when its page was asked
    for (monotonic seconds).
    """

    id: str
    card: str
    values: Mapping[str, float]
    number: str = ""
    part: str = ""
    model: str = ""
    node: str = ""
    pod: str = ""
    container: str = ""
    xids: tuple[int, ...] = ()
    at: float | None = None


class Devices(NamedTuple):
    """What one page says: its devices, the signals of its table that none of them has, and values not let in."""

    devices: tuple[Device, ...]
    missing: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
