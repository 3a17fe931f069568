"""The devices of one endpoint combined: the values that its gauges, its health and picking use.

A value represents all of the endpoint's devices, or it is withheld: a sum without one of them is wrong, and the maximum
of the known ones may not be the maximum.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from agent.accelerators.device import Device
from agent.accelerators.faults import Fault, fault_of
from agent.accelerators.table import COMBINED, DeviceCombination
from agent.signals import Reading


class Accelerators(NamedTuple):
    """The devices of one endpoint, as reported by one source.

    `exporter` is the address or name of the exporter. `readings` are by signal; `withheld` is the reason for each other
    signal: `not_reported` (by no device), `partial` (not by all), `no_accelerator` (no device is matched to the
    endpoint) or `never_scraped`. A reading of age `stale_after` or more must not be used. `picked_on`: picking may use
    it.
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


def combine(
    source: str,
    exporter: str,
    devices: Sequence[Device],
    at: float,
    stale_after: float,
    fatal_xids: Collection[int],
    *,
    picked_on: bool = True,
) -> Accelerators:
    """Combine the devices of an endpoint (at least one) from a page that was requested at `at`."""
    readings: dict[str, Reading] = {}
    withheld: dict[str, str] = {}
    for signal, how in COMBINED.items():
        known = [device.values[signal] for device in devices if signal in device.values]
        if len(known) == len(devices):
            oldest = min(at if device.at is None else device.at for device in devices)
            readings[signal] = Reading(float(max(known) if how is DeviceCombination.MAX else sum(known)), oldest)
        else:
            withheld[signal] = "partial" if known else "not_reported"
    found = [fault_of(device, fatal_xids) for device in devices]
    faults = tuple(fault for fault in found if fault is not None)
    return Accelerators(source, exporter, tuple(devices), readings, withheld, faults, at, stale_after, picked_on)


def no_devices(source: str, why: str, stale_after: float, *, picked_on: bool = True) -> Accelerators:
    """The result for an endpoint without known devices: every signal is withheld for this reason."""
    withheld = dict.fromkeys(COMBINED, why)
    return Accelerators(source, "", (), {}, withheld, (), float("-inf"), stale_after, picked_on)
