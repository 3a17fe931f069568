"""Match devices to endpoints, by pod, or by node where an endpoint has a node to itself. Pure.

A device is matched to the one endpoint that fits. A device that fits several endpoints (two servers on one node,
several ports of one pod) or none stays unmatched and is reported as such: a partial reading, or another endpoint's, is
worse than none. An endpoint that lists its devices only fits these, so that servers on one node can share its cards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from agent.accelerators.device import Device


class JoinKey(StrEnum):
    """The property by which devices are matched to endpoints."""

    NODE = "node"
    POD = "pod"


class EndpointLocation(NamedTuple):
    """Where an endpoint runs; `devices` are the ids or numbers of its devices, if it lists them."""

    address: str
    node: str = ""
    pod: str = ""
    devices: frozenset[str] = frozenset()


class Joined(NamedTuple):
    """The devices of each endpoint (by address), those that fit none, and those that fit several."""

    devices: Mapping[str, tuple[Device, ...]]
    unmatched: tuple[Device, ...]
    ambiguous: tuple[Device, ...]


def join(devices: Iterable[Device], places: Sequence[EndpointLocation], by: JoinKey) -> Joined:
    """Match each device to the one endpoint that fits. An address in several pools counts once."""
    at: dict[str, list[EndpointLocation]] = {}
    for place in dict.fromkeys(places):
        key = _key(place.pod if by is JoinKey.POD else place.node)
        if key:
            at.setdefault(key, []).append(place)
    joined: dict[str, list[Device]] = {}
    unmatched: list[Device] = []
    ambiguous: list[Device] = []
    for device in devices:
        key = _key(device.pod if by is JoinKey.POD else device.node)
        found = {place.address for place in at.get(key, ()) if _fits(device, place)}
        if len(found) == 1:
            joined.setdefault(found.pop(), []).append(device)
        else:
            (ambiguous if found else unmatched).append(device)
    return Joined({address: tuple(each) for address, each in joined.items()}, tuple(unmatched), tuple(ambiguous))


def _fits(device: Device, place: EndpointLocation) -> bool:
    if place.devices and not place.devices & {device.id, device.card, device.number}:
        return False
    # A device that the exporter assigns to another pod does not fit, even on a node with one endpoint.
    return not (device.pod and place.pod) or _key(device.pod) == _key(place.pod)


def _key(name: str) -> str:
    return name.lower()
