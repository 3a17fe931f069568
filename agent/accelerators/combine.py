"""The devices of one endpoint combined: the values that its gauges, its health and picking use.

A value represents all of the endpoint's devices, or it is withheld: a sum without one of them is wrong, and the maximum
of the known ones may not be the maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agent.accelerators.device import Device
from agent.accelerators.faults import EndedFault, Fault
from agent.accelerators.table import CARD_WIDE, COMBINED, DeviceCombination
from agent.signals import Reading


class DeviceSet(NamedTuple):
    """The devices of an endpoint: those on the last page, those that left it (as last known), and how many others are
    missing to the configured number."""

    devices: Sequence[Device]
    lost: Sequence[Device] = ()
    missing: int = 0

    @property
    def complete(self) -> bool:
        """Whether no device is known to be missing."""
        return not self.lost and self.missing <= 0


class Accelerators(NamedTuple):
    """The devices of one endpoint, as reported by one source.

    `exporter` is the address or name of the exporter. `readings` are by signal; `withheld` is the reason for each other
    signal: `not_reported` (by no device), `partial` (not by all, or a device is lost), `share` (a device is a share of
    a card, and the value is measured for the card), `no_accelerator` (no device is matched to the endpoint),
    `no_exporter` (none runs on its node) or `never_scraped`. A reading of age `stale_after` or more must not be used.
    `picked_on`: picking may use it.

    `faults` are those in effect, `ended` those that are on the page, or were not seen to end, and have no effect.
    `lost` are devices that left the page, as last known; `missing` further ones are missing to the configured number.
    """

    source: str
    exporter: str
    devices: tuple[Device, ...]
    readings: Mapping[str, Reading]
    withheld: Mapping[str, str]
    faults: tuple[Fault, ...]
    at: float
    stale_after: float
    picked_on: bool = True
    lost: tuple[Device, ...] = ()
    missing: int = 0
    ended: tuple[EndedFault, ...] = ()


def combine(
    source: str,
    exporter: str,
    found: DeviceSet,
    at: float,
    stale_after: float,
    faults: Sequence[Fault] = (),
    ended: Sequence[EndedFault] = (),
    *,
    picked_on: bool = True,
) -> Accelerators:
    """Combine the devices of an endpoint from a page that was requested at `at`."""
    readings: dict[str, Reading] = {}
    withheld: dict[str, str] = {}
    devices = found.devices
    for signal, how in COMBINED.items():
        known = [device.values[signal] for device in devices if signal in device.values]
        if known and len(known) == len(devices) and found.complete:
            oldest = min(at if device.at is None else device.at for device in devices)
            readings[signal] = Reading(float(max(known) if how is DeviceCombination.MAX else sum(known)), oldest)
        elif signal not in CARD_WIDE and any(device.share for device in devices):
            withheld[signal] = "share"
        else:
            withheld[signal] = "partial" if known or not found.complete else "not_reported"
    return Accelerators(
        source,
        exporter,
        tuple(devices),
        readings,
        withheld,
        tuple(faults),
        at,
        stale_after,
        picked_on,
        tuple(found.lost),
        max(0, found.missing),
        tuple(ended),
    )


def no_devices(source: str, why: str, stale_after: float, *, picked_on: bool = True) -> Accelerators:
    """The result for an endpoint without known devices: every signal is withheld for this reason."""
    withheld = dict.fromkeys(COMBINED, why)
    return Accelerators(source, "", (), {}, withheld, (), float("-inf"), stale_after, picked_on)
