"""Accelerators in the documents of the admin address: under their endpoint, and by exporter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.accelerators.combine import Accelerators
from agent.accelerators.device import Device
from agent.accelerators.table import COMBINED, DEVICE_SIGNALS
from agent.scaling.accelerators import oldest, reading
from agent.scaling.gauges import age
from agent.scaling.rollup import Unknown
from agent.state.devices import ExporterView

Json = dict[str, Any]


def of_endpoint(accelerators: Sequence[Accelerators], now: float) -> list[Json]:
    """What each source says of an endpoint's devices."""
    return [_source(each, now) for each in accelerators]


def _source(accelerators: Accelerators, now: float) -> Json:
    faults = {fault.device: fault for fault in accelerators.faults}
    return {
        "source": accelerators.source,
        "exporter": accelerators.exporter,
        "age_seconds": age(oldest(accelerators), now) if accelerators.devices else None,
        "stale_after_seconds": accelerators.stale_after,
        "picked_on": accelerators.picked_on,
        "devices": [
            {
                **_device(device),
                "fault": faults[device.id].reason if device.id in faults else "",
                "detail": faults[device.id].detail if device.id in faults else "",
            }
            for device in accelerators.devices
        ],
        "signals": {signal: _signal(accelerators, signal, now) for signal in COMBINED},
    }


def _device(device: Device) -> Json:
    return {
        "id": device.id,
        "number": device.number,
        "part": device.part,
        "model": device.model,
        "node": device.node,
        "pod": device.pod,
        "container": device.container,
    }


def _signal(accelerators: Accelerators, signal: str, now: float) -> Json:
    known = accelerators.readings.get(signal)
    found = reading(accelerators, signal, now)
    shown: Json = {
        "value": None if isinstance(found, Unknown) else found.value,
        "unit": DEVICE_SIGNALS[signal].unit,
        "age_seconds": None if known is None else age(known.at, now),
        "fresh": not isinstance(found, Unknown),
    }
    return shown | {"reason": found.reason} if isinstance(found, Unknown) else shown


def exporters(views: Sequence[ExporterView], now: float, header: Json) -> Json:
    """Every exporter: how it is, and whose its devices are."""
    return header | {
        "exporters": [
            {
                "source": view.key.source,
                "address": view.key.address,
                "path": view.key.path,
                "fresh": view.fresh(now),
                "page_age_seconds": None if view.page_at is None else age(view.page_at, now),
                "stale_after_seconds": view.stale_after,
                "failures": view.failures,
                "reason": view.reason,
                "joined": {
                    address: [_device(device) for device in devices] for address, devices in view.joined.items()
                },
                "unmatched": [_device(device) for device in view.unmatched],
                "ambiguous": [_device(device) for device in view.ambiguous],
                "sick": {fault.device: f"{fault.reason}: {fault.detail}" for fault in view.faults},
            }
            for view in views
        ]
    }
