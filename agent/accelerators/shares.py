"""Accelerators that several pods share, where the source does not say so.

What is measured for the whole is not known of a share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agent.accelerators.device import Device
from agent.accelerators.table import CARD_WIDE


def shared_by_pods(devices: Sequence[Device]) -> list[Device]:
    """The devices; one that several pods use has no value but those that hold for each of them."""
    users = Counter(device.id for device in devices)
    return [_share(device) if users[device.id] > 1 else device for device in devices]


def _share(device: Device) -> Device:
    held = {signal: value for signal, value in device.values.items() if signal in CARD_WIDE}
    return device._replace(values=held, share="several pods")
