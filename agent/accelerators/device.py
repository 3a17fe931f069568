"""One accelerator, or one part of it, as reported by its exporter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.signals import RefusedValue

XIDS: Final = "xids"  # NVIDIA's error codes, among what a page may not show of a device


class Device(NamedTuple):
    """A card, or a part of a partitioned card.

    `id` is unique; `number` is its number on its node; `card` is the hardware that it is, or is a part of; `part` is
    empty for a whole card. `pod` is the `NAMESPACE/POD` that uses it, `node` its machine, both as the exporter reports
    them, or empty. `values` are by signal of `agent.accelerators.table`; `xids` are NVIDIA's error codes, without 0.
    `at` is the time of the sample (monotonic seconds), None where that is the time of the request for its page.
    `share` says how a card is shared whose time or space several pods use: values of the card are then not in `values`.
    `unknown` are the signals with a verdict on the device, and XIDS, that its exporter can report and this page lacks.
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
    share: str = ""
    unknown: tuple[str, ...] = ()


class Devices(NamedTuple):
    """The content of one page: its devices, the signals of the exporter that no device has, and refused values."""

    devices: tuple[Device, ...]
    missing: tuple[str, ...] = ()
    refused: tuple[RefusedValue, ...] = ()
