"""When a device is sick: the one table of faults.

What counts is what a device does not recover from while somebody runs on it. A device whose values are unknown is not
sick: silence is no fault. Codes: NVIDIA's XID catalogue (XID Errors, r580); those that a program causes by itself (13,
31, 43, 45, 68 and others) say nothing of the hardware.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from agent.accelerators.device import Device
from agent.accelerators.table import ECC, REMAP_FAILED, WELL

# One word each: they are reasons of health.
FAULTS: Final[Mapping[str, str]] = {
    "accelerator_xid": "an accelerator of the endpoint had a fatal XID error",
    "accelerator_ecc": "an accelerator of the endpoint has uncorrected memory errors",
    "accelerator_row_remap": "an accelerator of the endpoint could not replace a bad memory row",
    "accelerator_unwell": "the exporter calls an accelerator of the endpoint unhealthy",
}
FATAL_XIDS: Final[Mapping[int, str]] = {
    48: "double bit ECC error",
    63: "a bad memory row is to be replaced at the next reset",
    64: "a bad memory row could not be replaced",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "the GPU's system processor does not answer",
    120: "the GPU's system processor failed",
}


class Fault(NamedTuple):
    """Why a device is sick: a word of FAULTS, whose device it is, and a sentence."""

    reason: str
    device: str
    detail: str


def fault_of(device: Device, fatal_xids: Collection[int]) -> Fault | None:
    """What the device suffers from, or None. An exporter's own verdict goes before its count of memory errors."""
    fatal = [code for code in device.xids if code in fatal_xids]
    if fatal:
        words = FATAL_XIDS.get(fatal[0], "fatal by configuration")
        return Fault("accelerator_xid", device.id, f"XID {fatal[0]}: {words}")
    if device.values.get(REMAP_FAILED, 0.0) > 0:
        return Fault("accelerator_row_remap", device.id, "a bad memory row could not be replaced")
    well = device.values.get(WELL)
    if well is not None:
        return Fault("accelerator_unwell", device.id, "its exporter says so") if well < 1 else None
    errors = device.values.get(ECC, 0.0)
    return Fault("accelerator_ecc", device.id, f"{errors:g} uncorrected memory errors") if errors > 0 else None
