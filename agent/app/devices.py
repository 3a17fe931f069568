"""The accelerators of all pools at work: which exporters there are, one scrape for each, and who is told.

However many endpoints and pools hang on an exporter, it is asked once: at the shortest interval that any of them wants.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from agent.accelerators import EXPORTERS, PROBES, exporter
from agent.accelerators.device import Devices
from agent.accelerators.gke import Gke
from agent.accelerators.join import By, Place
from agent.accelerators.mapping import DeviceReader
from agent.accelerators.nvml import Nvml
from agent.app.probes import Asked, Probes
from agent.clock import Clock
from agent.config import Accelerators, Config, Endpoint
from agent.config.accelerators import NODE, expand
from agent.config.values import split_address
from agent.events import Hook
from agent.scrape.loop import ScrapeLoop, Target
from agent.state.devices import Deliver, DeviceState, ExporterKey, ExporterView, PoolDevices, Want


class _Group:
    """The exporters of one kind, which differ in their address alone: what the scrape loop tells of their pages."""

    def __init__(self, state: DeviceState, any_key: ExporterKey) -> None:
        self._state = state
        self._any_key = any_key

    def observed(self, address: str, extraction: Devices, at: float, took: float, size: int) -> bool:
        """A page was read; whose it is, is all the same."""
        self._state.observed(self._any_key._replace(address=address), extraction, at, took, size)
        return False

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        """No page came."""
        self._state.failed(self._any_key._replace(address=address), reason, detail, at, took)

    def reader(self, target: Target) -> DeviceReader:
        """What reads the pages of one of them."""
        return DeviceReader(exporter(self._any_key.source), self._any_key.prefix)


class DevicesAtWork:
    """Asks exporters and hands what they say to the pools, by `deliver`."""

    def __init__(self, loop: ScrapeLoop, clock: Clock, hook: Hook, deliver: Deliver) -> None:
        self._loop = loop
        self._clock = clock
        self._state = DeviceState(deliver, hook)
        self._probes = Probes(self._state, clock)
        self._groups: set[ExporterKey] = set()
        self._asked: dict[ExporterKey, list[Accelerators]] = {}

    def set_pools(self, config: Config, endpoints: Mapping[str, Mapping[str, Endpoint]]) -> None:
        """The pools from now on, with their endpoints (pool -> address -> endpoint)."""
        pools: list[PoolDevices] = []
        asked: dict[ExporterKey, list[Accelerators]] = {}
        for pool in config.pools:
            places = tuple(place_of(endpoint) for endpoint in endpoints[pool.name].values())
            wants: list[Want] = []
            for entry in pool.accelerators:
                for want in wants_of(entry, places):
                    wants.append(want)
                    asked.setdefault(want.key, []).append(entry)
            pools.append(PoolDevices(pool.name, places, tuple(wants)))
        self._state.set_pools(pools, self._clock.now())
        self._ask({key: each for key, each in asked.items() if key.source in EXPORTERS}, config.scrape.max_page_bytes)
        probes = {key: each for key, each in asked.items() if key.source in PROBES}
        if probes != self._asked:
            self._asked = probes
            self._probes.set_probes({key: _probe(key, entries) for key, entries in probes.items()})

    async def stop(self) -> None:
        """Ask no library any more; the scrape loop is stopped by who owns it."""
        await self._probes.stop()

    def exporters(self) -> list[ExporterView]:
        """Every exporter and what it said last."""
        return self._state.exporters()

    def _ask(self, asked: Mapping[ExporterKey, list[Accelerators]], max_page_bytes: int) -> None:
        groups: dict[ExporterKey, list[Target]] = {key: [] for key in self._groups}
        for key, entries in asked.items():
            target = Target(
                key.address,
                "",
                path=key.path,
                interval=min(entry.interval for entry in entries),
                timeout=min(entry.timeout for entry in entries),
                max_page_bytes=max_page_bytes,
            )
            groups.setdefault(key._replace(address=""), []).append(target)
        for any_key, targets in groups.items():
            group = _Group(self._state, any_key)
            self._loop.set_exporters(f"{any_key.source} {any_key.path} {any_key.prefix}", targets, group, group.reader)
        self._groups = {any_key for any_key, targets in groups.items() if targets}


def place_of(endpoint: Endpoint) -> Place:
    """Where an endpoint runs; on the host of its address where it does not say."""
    host, _ = split_address(endpoint.address)
    return Place(endpoint.address, endpoint.node or host, endpoint.pod, frozenset(endpoint.devices))


def wants_of(entry: Accelerators, places: tuple[Place, ...]) -> list[Want]:
    """The exporters that an entry stands for, given where the pool's endpoints run."""
    if entry.source in PROBES:
        return [_of_probe(entry, places)]
    nodes = list(dict.fromkeys(place.node for place in places)) if NODE in entry.address else [""]
    return [
        Want(
            ExporterKey(entry.source, expand(entry.address, node), entry.path, entry.prefix),
            By(entry.join),
            entry.stale_after,
            frozenset(entry.fatal_xids),
            node,
        )
        for node in nodes
    ]


def _of_probe(entry: Accelerators, places: tuple[Place, ...]) -> Want:
    """What an entry without a page stands for: this machine, by the name that endpoints have for it, or a cluster."""
    limits = (By(entry.join), entry.stale_after, frozenset(entry.fatal_xids))
    if entry.source == "gke":
        return Want(ExporterKey("gke", f"{entry.project}/{entry.location}/{entry.cluster}"), *limits, picked_on=False)
    names = [socket.gethostname(), "localhost", "127.0.0.1", "::1"]
    node = next((place.node for place in places if place.node in names), names[0])
    return Want(ExporterKey("nvml", names[0]), *limits, node)


def _probe(key: ExporterKey, entries: list[Accelerators]) -> Asked:
    """What asks the library, at the shortest interval that anybody wants."""
    interval, timeout = min(entry.interval for entry in entries), min(entry.timeout for entry in entries)
    if key.source == "gke":
        entry = entries[0]
        return Asked(Gke(entry.project, entry.location, entry.cluster, timeout), interval, timeout)
    return Asked(Nvml(key.address), interval, timeout)
