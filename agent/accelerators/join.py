"""Whose device is it? By pod, or by node where an endpoint has its machine for itself. Pure; nothing is guessed.

A device goes to the one endpoint that it fits. Where it fits several (two servers on one machine, several ports of one
pod), or none, it stays without one and is told as such: half a reading, or somebody else's, is worse than none. An
endpoint that names its devices takes those among what fits, which is how servers of one machine share its cards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from agent.accelerators.device import Device


class By(StrEnum):
    """What a device and an endpoint have in common."""

    NODE = "node"
    POD = "pod"


class Place(NamedTuple):
    """Where an endpoint runs; `devices` are the ids or numbers of its devices where it names them."""

    address: str
    node: str = ""
    pod: str = ""
    devices: frozenset[str] = frozenset()


class Joined(NamedTuple):
    """The devices of each endpoint (by address), those that fit none, and those that fit several."""

    devices: Mapping[str, tuple[Device, ...]]
    unmatched: tuple[Device, ...]
    ambiguous: tuple[Device, ...]


def join(devices: Iterable[Device], places: Sequence[Place], by: By) -> Joined:
    """Give each device to the one endpoint that it fits. An address counts once, however many pools have it."""
    at: dict[str, list[Place]] = {}
    for place in dict.fromkeys(places):
        key = _key(place.pod if by is By.POD else place.node)
        if key:
            at.setdefault(key, []).append(place)
    joined: dict[str, list[Device]] = {}
    unmatched: list[Device] = []
    ambiguous: list[Device] = []
    for device in devices:
        key = _key(device.pod if by is By.POD else device.node)
        found = {place.address for place in at.get(key, ()) if _fits(device, place)}
        if len(found) == 1:
            joined.setdefault(found.pop(), []).append(device)
        else:
            (ambiguous if found else unmatched).append(device)
    return Joined({address: tuple(each) for address, each in joined.items()}, tuple(unmatched), tuple(ambiguous))


def _fits(device: Device, place: Place) -> bool:
    if place.devices and not place.devices & {device.id, device.card, device.number}:
        return False
    # On a machine for itself an endpoint still has no claim to what its exporter says is another pod's.
    return not (device.pod and place.pod) or _key(device.pod) == _key(place.pod)


def _key(name: str) -> str:
    return name.lower()
