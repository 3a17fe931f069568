"""When a device is unhealthy: the table of faults, and when each begins and ends.

A fault is a condition that a device does not recover from while it is in use. A device with unknown values is not
unhealthy: missing data is not a fault. Nor is it a recovery: a fault ends when a page shows that what it was read from
is well, and a quantity that a page does not show is as it was last known.

An XID error is an event. It ends when a page reports that there is no error; a later error does not end it. One whose
remedy is a restart of the application has no effect on an endpoint that restarted after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from agent.accelerators.device import XIDS, Device
from agent.accelerators.table import ECC, HEALTHY, REMAP_FAILED
from agent.accelerators.xids import Remedy, meaning_of, remedy_of

# Reasons of an endpoint's health.
FAULTS: Final[Mapping[str, str]] = {
    "accelerator_xid": "an accelerator of the endpoint had a fatal XID error",
    "accelerator_ecc": "an accelerator of the endpoint has uncorrected memory errors",
    "accelerator_row_remap": "an accelerator of the endpoint could not replace a bad memory row",
    "accelerator_unhealthy": "the exporter reports an accelerator of the endpoint as unhealthy",
}
# What each fault is read from.
_READ_FROM: Final[Mapping[str, str]] = {
    "accelerator_xid": XIDS,
    "accelerator_ecc": ECC,
    "accelerator_row_remap": REMAP_FAILED,
    "accelerator_unhealthy": HEALTHY,
}
# Why a fault that is still on the page, or was not seen to end, has no effect.
ENDS: Final[Mapping[str, str]] = {
    "restarted": "its remedy is a restart of the application, and the endpoint restarted after it",
    "acknowledged": "the configuration acknowledges it",
}


class Fault(NamedTuple):
    """Why a device is unhealthy: a reason of FAULTS, the device's id, and a sentence.

    `xid` is the error code, 0 for another fault; `remedy` is one of `Remedy`, empty where none is known. `level` is the
    number behind it: more of it is a new event. `since` is the time of the page on which it was first seen (monotonic
    seconds); `begun`: a page before that one showed the device without it.
    """

    reason: str
    device: str
    detail: str
    xid: int = 0
    remedy: str = ""
    level: float = 0.0
    since: float = float("-inf")
    begun: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """What distinguishes it from the other faults of its device."""
        return self.reason, self.xid


class EndedFault(NamedTuple):
    """A fault without effect: why (a key of ENDS), and since when (monotonic seconds)."""

    fault: Fault
    why: str
    at: float


class Acknowledgement(NamedTuple):
    """A fault that the configuration acknowledges: the device or its card, and the error code; 0: any other fault."""

    device: str
    xid: int

    def covers(self, fault: Fault, card: str) -> bool:
        """Whether this is about the fault, of a device on this card."""
        return self.device in {fault.device, card} and self.xid == fault.xid


Faults = Mapping[tuple[str, int], Fault]


def faults_of(device: Device) -> list[Fault]:
    """The faults that one reading of a device shows, errors of every code among them. The exporter's own verdict takes
    precedence over its count of memory errors."""
    found = [
        Fault("accelerator_xid", device.id, f"XID {code}: {meaning_of(code)}; remedy: {remedy}", code, remedy)
        for code in device.xids
        for remedy in [remedy_of(code)]
    ]
    failed = device.values.get(REMAP_FAILED, 0.0)
    if failed > 0:
        detail = "a bad memory row could not be replaced"
        found.append(Fault("accelerator_row_remap", device.id, detail, 0, Remedy.SUPPORT, failed))
    healthy = device.values.get(HEALTHY)
    errors = device.values.get(ECC, 0.0)
    if healthy is not None:
        if healthy < 1:
            found.append(Fault("accelerator_unhealthy", device.id, "reported by its exporter"))
    elif errors > 0:
        detail = f"{errors:g} uncorrected memory errors"
        found.append(Fault("accelerator_ecc", device.id, detail, 0, Remedy.RESET_GPU, errors))
    return found


def updated(known: Faults, readings: Sequence[Device], at: float, *, first: bool) -> Faults:
    """The faults of one device after a page that was requested at `at` with these readings of it: one, or one for each
    pod that shares it. `known` are those before; `first`: no page before showed the device."""
    found: dict[tuple[str, int], Fault] = {}
    for device in readings:
        for fault in faults_of(device):
            before = known.get(fault.key)
            if before is not None and fault.level <= before.level:
                found[fault.key] = fault._replace(since=before.since, begun=before.begun, level=before.level)
            else:
                found[fault.key] = fault._replace(since=at, begun=not first)
    shown = [{*_READ_FROM.values()} - {*device.unknown} for device in readings]
    for key, fault in known.items():
        if key in found:
            continue
        well = any(_READ_FROM[fault.reason] in quantities for quantities in shown)
        if not well or (fault.xid and any(device.xids for device in readings)):
            found[key] = fault
    return found


def standing(fault: Fault, fatal_xids: frozenset[int]) -> bool:
    """Whether this fault makes a device unhealthy; an error does if its code is fatal."""
    return not fault.xid or fault.xid in fatal_xids
