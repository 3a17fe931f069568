"""The devices of one endpoint as one: what its gauges, its health and its picks are made of.

A value stands for all of the endpoint's devices or it is withheld: a sum without one of them is a wrong sum, and the
largest of those that are known need not be the largest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from agent.accelerators.device import Device
from agent.accelerators.faults import Fault, fault_of
from agent.accelerators.table import COMBINED, Combine
from agent.signals import Reading


class Accelerators(NamedTuple):
    """What one source says of the devices of one endpoint.

    `exporter` is the address or the name of who said it. `readings` are by signal; `withheld` says of the other
    signals why they have none: `not_reported` (by no device), `partial` (not by all), `no_accelerator` (no device is
    known to be the endpoint's) or `never_scraped` (nobody has said anything yet). A reading of age `stale_after` or
    more is not to be used. `picked_on`: a pick may look at it.
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
    """The devices of an endpoint, of which there is at least one, from a page that was asked for at `at`."""
    readings: dict[str, Reading] = {}
    withheld: dict[str, str] = {}
    for signal, how in COMBINED.items():
        known = [device.values[signal] for device in devices if signal in device.values]
        if len(known) == len(devices):
            oldest = min(at if device.at is None else device.at for device in devices)
            readings[signal] = Reading(float(max(known) if how is Combine.MAX else sum(known)), oldest)
        else:
            withheld[signal] = "partial" if known else "not_reported"
    found = [fault_of(device, fatal_xids) for device in devices]
    faults = tuple(fault for fault in found if fault is not None)
    return Accelerators(source, exporter, tuple(devices), readings, withheld, faults, at, stale_after, picked_on)


def nothing(source: str, why: str, stale_after: float, *, picked_on: bool = True) -> Accelerators:
    """What is said of an endpoint of which the source knows no device: nothing, and why."""
    withheld = dict.fromkeys(COMBINED, why)
    return Accelerators(source, "", (), {}, withheld, (), float("-inf"), stale_after, picked_on)
