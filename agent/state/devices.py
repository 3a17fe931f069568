"""The last pages of the accelerator exporters, joined with the endpoints of all pools.

A page is joined when it is read, and when the endpoints change, never during a pick. The result is delivered to each
pool whose endpoint it changes. A failed scrape of an exporter changes nothing: readings go stale by themselves, and the
device faults of its last page stay, because a missing page shows neither a fault nor its end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from agent.accelerators.combine import Accelerators, combine, no_devices
from agent.accelerators.device import Device, Devices
from agent.accelerators.faults import Fault, fault_of
from agent.accelerators.join import EndpointLocation, JoinKey, join
from agent.events import Hook, ignore
from agent.events.accelerators import DeviceHealthChanged, DevicesFailed, DevicesRead
from agent.state.freshness import is_fresh


class ExporterKey(NamedTuple):
    """One exporter: its source (kind) and address; `path` and `prefix` distinguish two at one address."""

    source: str
    address: str
    path: str = ""
    prefix: str = ""


class Want(NamedTuple):
    """How a pool uses one exporter. `node` is the machine for which it is configured, empty where none is.

    A reading of age `stale_after` (seconds) is stale. `picked_on`: picks may use its readings.
    """

    key: ExporterKey
    by: JoinKey
    stale_after: float
    fatal_xids: frozenset[int]
    node: str = ""
    picked_on: bool = True


class PoolDevices(NamedTuple):
    """A pool: the locations of its endpoints, and the exporters that report their devices."""

    pool: str
    places: tuple[EndpointLocation, ...]
    wants: tuple[Want, ...]


class ExporterView(NamedTuple):
    """An exporter as of its last page, requested at `page_at` (None: never one).

    `failures` counts the scrapes that failed since, `reason` is that of the last one. `joined` has the devices of each
    endpoint by address; `unmatched` devices belong to no endpoint, `ambiguous` ones to one of several; `faults` are
    those of unhealthy devices.
    """

    key: ExporterKey
    stale_after: float
    page_at: float | None
    failures: int
    reason: str
    joined: Mapping[str, tuple[Device, ...]]
    unmatched: tuple[Device, ...]
    ambiguous: tuple[Device, ...]
    faults: tuple[Fault, ...]

    def fresh(self, now: float) -> bool:
        """Whether its last page is fresh."""
        return self.page_at is not None and is_fresh(self.page_at, self.stale_after, now)


class _Exporter:
    __slots__ = ("devices", "failures", "faults", "page_at", "reason")

    def __init__(self) -> None:
        self.devices: tuple[Device, ...] = ()
        self.page_at: float | None = None
        self.failures = 0
        self.reason = ""
        self.faults: dict[str, Fault] = {}


# Pool, address, the endpoint's new accelerators, and the time.
Deliver = Callable[[str, str, tuple[Accelerators, ...], float], None]


class DeviceState:
    """The last page of every exporter. `deliver` is called for each endpoint whose accelerators change."""

    def __init__(self, deliver: Deliver, hook: Hook = ignore) -> None:
        self._deliver = deliver
        self._hook = hook
        self._pools: Sequence[PoolDevices] = ()
        self._exporters: dict[ExporterKey, _Exporter] = {}
        self._delivered: dict[tuple[str, str], tuple[Accelerators, ...]] = {}

    def set_pools(self, pools: Sequence[PoolDevices], now: float) -> None:
        """Replace the pools. Exporters that stay keep their last page, which is joined again."""
        self._pools = tuple(pools)
        wanted = dict.fromkeys(want.key for pool in pools for want in pool.wants)
        self._exporters = {key: self._exporters.get(key) or _Exporter() for key in wanted}
        self._delivered = {(pool.pool, place.address): () for pool in pools for place in pool.places}
        self._deliver_changes(now, to_all=True)

    def observed(self, key: ExporterKey, devices: Devices, at: float, took: float, size: int) -> None:
        """Apply an exporter's page that was requested at `at` and read `took` seconds later."""
        exporter = self._exporters.get(key)
        if exporter is None:
            return
        exporter.devices = devices.devices
        exporter.page_at = at
        exporter.failures = 0
        exporter.reason = ""
        self._hook(DevicesRead(key.source, key.address, at, took, size, devices.missing, devices.refused))
        self._note_faults(key, exporter)
        self._deliver_changes(at + took)

    def failed(self, key: ExporterKey, reason: str, detail: str, at: float, took: float) -> None:
        """Record a scrape of an exporter that brought no page."""
        exporter = self._exporters.get(key)
        if exporter is not None:
            exporter.failures += 1
            exporter.reason = reason
            self._hook(DevicesFailed(key.source, key.address, at, took, reason, detail))

    def exporters(self) -> list[ExporterView]:
        """Every exporter, ordered by key."""
        return [self._view(key, exporter) for key, exporter in sorted(self._exporters.items())]

    # -- within --------------------------------------------------------------------------------------------------

    def _wants(self, key: ExporterKey) -> list[tuple[PoolDevices, Want]]:
        return [(pool, want) for pool in self._pools for want in pool.wants if want.key == key]

    def _places(self) -> list[EndpointLocation]:
        """The locations of all endpoints of all pools: a device that several of them may own is ambiguous."""
        return [place for pool in self._pools for place in pool.places]

    def _view(self, key: ExporterKey, exporter: _Exporter) -> ExporterView:
        wants = [want for _, want in self._wants(key)]
        joined: dict[str, tuple[Device, ...]] = {}
        unmatched: tuple[Device, ...] = exporter.devices
        ambiguous: tuple[Device, ...] = ()
        places = self._places()
        for want in wants:  # two pools may join one exporter in two ways
            found = join(_located(exporter.devices, wants, want), places, want.by)
            joined |= found.devices
            ids = {(device.id, device.pod) for device in found.unmatched}
            unmatched = tuple(device for device in unmatched if (device.id, device.pod) in ids)
            ambiguous = (*ambiguous, *(device for device in found.ambiguous if device not in ambiguous))
        stale_after = min(want.stale_after for want in wants)
        return ExporterView(
            key,
            stale_after,
            exporter.page_at,
            exporter.failures,
            exporter.reason,
            joined,
            unmatched,
            ambiguous,
            tuple(exporter.faults.values()),
        )

    def _deliver_changes(self, now: float, *, to_all: bool = False) -> None:
        """Deliver the accelerators of every endpoint for which they changed, or of all endpoints."""
        places = self._places()
        found: dict[tuple[str, str], list[Accelerators]] = {}
        for pool in self._pools:
            own = {place.address for place in pool.places}
            unread: set[tuple[str, str]] = set()  # source and node of exporters without a page
            for want in pool.wants:
                exporter = self._exporters[want.key]
                if exporter.page_at is None:
                    unread.add((want.key.source, want.node))
                    continue
                wants = [other for _, other in self._wants(want.key)]
                joined = join(_located(exporter.devices, wants, want), places, want.by).devices
                for address in joined.keys() & own:
                    made = combine(
                        want.key.source,
                        want.key.address,
                        joined[address],
                        exporter.page_at,
                        want.stale_after,
                        want.fatal_xids,
                        picked_on=want.picked_on,
                    )
                    found.setdefault((pool.pool, address), []).append(made)
            for source, limit, picked_on in {
                (want.key.source, want.stale_after, want.picked_on) for want in pool.wants
            }:
                for place in pool.places:
                    of_endpoint = found.setdefault((pool.pool, place.address), [])
                    if not any(one.source == source for one in of_endpoint):
                        unscraped = not unread.isdisjoint({(source, ""), (source, place.node)})
                        why = "never_scraped" if unscraped else "no_accelerator"
                        of_endpoint.append(no_devices(source, why, limit, picked_on=picked_on))
        after = {key: tuple(sorted(each, key=lambda one: (one.source, one.exporter))) for key, each in found.items()}
        before, self._delivered = self._delivered, after
        for key in before.keys() | after.keys():
            accelerators = after.get(key, ())
            if to_all or accelerators != before.get(key, ()):
                self._deliver(*key, accelerators, now)

    def _note_faults(self, key: ExporterKey, exporter: _Exporter) -> None:
        """Emit an event for each device that became unhealthy or recovered."""
        fatal: Collection[int] = frozenset().union(*(want.fatal_xids for _, want in self._wants(key)))
        faults = {fault.device: fault for device in exporter.devices if (fault := fault_of(device, fatal)) is not None}
        for device in faults.keys() - exporter.faults.keys():
            fault = faults[device]
            self._hook(DeviceHealthChanged(key.source, key.address, device, fault.reason, fault.detail))
        for device in exporter.faults.keys() - faults.keys():
            self._hook(DeviceHealthChanged(key.source, key.address, device, "", ""))
        exporter.faults = faults


def _located(devices: Sequence[Device], wants: Sequence[Want], want: Want) -> Sequence[Device]:
    """The devices with their node, where the exporter is configured for one machine. That takes precedence over the
    node on its page, which may be the name of the exporter's own pod."""
    nodes = {other.node for other in wants}
    if want.by is JoinKey.NODE and len(nodes) == 1 and want.node:
        return [device._replace(node=want.node) for device in devices]
    return devices
