"""The fault that one reading of a device shows."""

from __future__ import annotations

from collections.abc import Collection

from agent.accelerators.device import Device
from agent.accelerators.faults import Fault, faults_of, standing
from agent.accelerators.xids import FATAL_XIDS


def fault_of(device: Device, fatal_xids: Collection[int] = FATAL_XIDS) -> Fault | None:
    """The first fault that makes the device unhealthy, or None."""
    return next((fault for fault in faults_of(device) if standing(fault, frozenset(fatal_xids))), None)
