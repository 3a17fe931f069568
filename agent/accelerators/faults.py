"""When a device is unhealthy: the table of faults.

A fault is a condition that a device does not recover from while it is in use. A device with unknown values is not
unhealthy: missing data is not a fault. Codes: NVIDIA's XID catalogue (XID Errors, r580). Codes that a program can cause
by itself (13, 31, 43, 45, 68 and others) are not hardware faults.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from agent.accelerators.device import Device
from agent.accelerators.table import ECC, HEALTHY, REMAP_FAILED

# Reasons of an endpoint's health.
FAULTS: Final[Mapping[str, str]] = {
    "accelerator_xid": "an accelerator of the endpoint had a fatal XID error",
    "accelerator_ecc": "an accelerator of the endpoint has uncorrected memory errors",
    "accelerator_row_remap": "an accelerator of the endpoint could not replace a bad memory row",
    "accelerator_unhealthy": "the exporter reports an accelerator of the endpoint as unhealthy",
}
FATAL_XIDS: Final[Mapping[int, str]] = {
    48: "double bit ECC error",
    63: "a bad memory row will be replaced at the next reset",
    64: "a bad memory row could not be replaced",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "the GPU's system processor does not respond",
    120: "the GPU's system processor failed",
}


class Fault(NamedTuple):
    """Why a device is unhealthy: a reason of FAULTS, the device's id, and a sentence."""

    reason: str
    device: str
    detail: str


def fault_of(device: Device, fatal_xids: Collection[int]) -> Fault | None:
    """The fault of the device, or None. The exporter's own verdict takes precedence over its count of memory errors."""
    fatal = [code for code in device.xids if code in fatal_xids]
    if fatal:
        meaning = FATAL_XIDS.get(fatal[0], "fatal by configuration")
        return Fault("accelerator_xid", device.id, f"XID {fatal[0]}: {meaning}")
    if device.values.get(REMAP_FAILED, 0.0) > 0:
        return Fault("accelerator_row_remap", device.id, "a bad memory row could not be replaced")
    healthy = device.values.get(HEALTHY)
    if healthy is not None:
        return Fault("accelerator_unhealthy", device.id, "reported by its exporter") if healthy < 1 else None
    errors = device.values.get(ECC, 0.0)
    return Fault("accelerator_ecc", device.id, f"{errors:g} uncorrected memory errors") if errors > 0 else None
