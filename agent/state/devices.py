"""The last pages of the accelerator exporters, joined with the endpoints of all pools.

A page is joined when it is read, and when the endpoints change, never during a pick. The result is delivered to each
pool whose endpoint it changes. A failed scrape of an exporter changes nothing: readings go stale by themselves, and the
device faults of its last page stay, because a missing page shows neither a fault nor its end.

Nor does a missing device. An endpoint keeps the devices that it was seen with: one that leaves the page, or that is on
it without its pod, is lost. Its faults stay, and no sum is complete without it. It is forgotten when the page assigns
it to another pod, or when the endpoint has as many other devices as it is known to have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from agent.accelerators.combine import Accelerators, DeviceSet, combine, no_devices
from agent.accelerators.device import Device, Devices
from agent.accelerators.faults import Acknowledgement, EndedFault, Fault, Faults, standing, updated
from agent.accelerators.join import EndpointLocation, Joined, JoinKey, join
from agent.accelerators.xids import Remedy
from agent.events import Hook, ignore
from agent.events.accelerators import DeviceHealthChanged, DeviceLost, DevicesFailed, DevicesRead
from agent.state.freshness import is_fresh


class ExporterKey(NamedTuple):
    """One exporter: its source (kind) and address; `path` and `prefix` distinguish two at one address."""

    source: str
    address: str
    path: str = ""
    prefix: str = ""


class Want(NamedTuple):
    """How a pool uses one exporter. `node` is the machine for which it is configured, empty where none is.

    `known` is False where no exporter was ever found there; the address is then empty.

    A reading of age `stale_after` (seconds) is stale. `picked_on`: picks may use its readings. `expected` is the number
    of devices of each endpoint (0: as many as it was seen with), `acknowledged` are faults without effect.
    """

    key: ExporterKey
    by: JoinKey
    stale_after: float
    fatal_xids: frozenset[int]
    node: str = ""
    picked_on: bool = True
    expected: int = 0
    acknowledged: frozenset[Acknowledgement] = frozenset()
    known: bool = True


class PoolDevices(NamedTuple):
    """A pool: the locations of its endpoints, and the exporters that report their devices."""

    pool: str
    places: tuple[EndpointLocation, ...]
    wants: tuple[Want, ...]


class ExporterView(NamedTuple):
    """An exporter as of its last page, requested at `page_at` (None: never one).

    `failures` counts the scrapes that failed since, `reason` is that of the last one. `joined` has the devices of each
    endpoint by address; `unmatched` devices belong to no endpoint, `ambiguous` ones to one of several; `lost` has the
    devices that left the page, by the endpoint that was seen with them; `faults` are those of unhealthy devices.
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
    lost: Mapping[str, tuple[Device, ...]] = {}

    def fresh(self, now: float) -> bool:
        """Whether its last page is fresh."""
        return self.page_at is not None and is_fresh(self.page_at, self.stale_after, now)


class _Exporter:
    __slots__ = ("devices", "failures", "faults", "page_at", "reason", "unhealthy")

    def __init__(self) -> None:
        self.devices: tuple[Device, ...] = ()
        self.page_at: float | None = None
        self.failures = 0
        self.reason = ""
        self.faults: dict[str, Faults] = {}  # of each device, those without effect among them
        self.unhealthy: dict[str, Fault] = {}  # the first fault in effect of each device


class _Owner(NamedTuple):
    """An endpoint of a pool, and the source that reports its devices."""

    pool: str
    address: str
    source: str


class _Member(NamedTuple):
    """A device that an endpoint was seen with, as last reported by an exporter."""

    exporter: ExporterKey
    device: Device


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
        self._members: dict[_Owner, dict[str, _Member]] = {}  # by device
        self._lost: dict[_Owner, dict[str, _Member]] = {}  # those of them that are not on the page
        self._restarts: dict[tuple[str, str], float] = {}  # the last one of each endpoint that was seen
        self._acknowledged: dict[tuple[ExporterKey, Acknowledgement], float] = {}  # since when

    def moved(self, old: ExporterKey, new: ExporterKey) -> None:
        """An exporter listens at another address, as a pod that was replaced: what it has reported stays. `set_pools`
        follows with the new key."""
        if old not in self._exporters or new in self._exporters:
            return
        self._exporters[new] = self._exporters.pop(old)
        for members in self._members.values():
            for name, each in members.items():
                if each.exporter == old:
                    members[name] = each._replace(exporter=new)
        self._acknowledged = {
            (new if key == old else key, entry): at for (key, entry), at in self._acknowledged.items()
        }

    def set_pools(self, pools: Sequence[PoolDevices], now: float) -> None:
        """Replace the pools. Exporters that stay keep their last page, which is joined again; endpoints that stay where
        they are keep the devices that they were seen with."""
        places = {(pool.pool, place) for pool in self._pools for place in pool.places}
        kept = {(pool.pool, place.address) for pool in pools for place in pool.places if (pool.pool, place) in places}
        self._pools = tuple(pools)
        wanted = dict.fromkeys(want.key for pool in pools for want in pool.wants if want.known)
        self._exporters = {key: self._exporters.get(key) or _Exporter() for key in wanted}
        self._members = {
            owner: left
            for owner, members in self._members.items()
            if (owner.pool, owner.address) in kept
            and (left := {name: each for name, each in members.items() if each.exporter in wanted})
        }
        self._restarts = {endpoint: at for endpoint, at in self._restarts.items() if endpoint in kept}
        entries = {(want.key, entry) for pool in pools for want in pool.wants for entry in want.acknowledged}
        self._acknowledged = {entry: self._acknowledged.get(entry, now) for entry in entries}
        self._delivered = {(pool.pool, place.address): () for pool in pools for place in pool.places}
        self._deliver_changes(now, to_all=True)

    def observed(self, key: ExporterKey, devices: Devices, at: float, took: float, size: int) -> None:
        """Apply an exporter's page that was requested at `at` and read `took` seconds later."""
        exporter = self._exporters.get(key)
        if exporter is None:
            return
        first = exporter.page_at is None
        exporter.devices = devices.devices
        exporter.page_at = at
        exporter.failures = 0
        exporter.reason = ""
        readings: dict[str, list[Device]] = {}
        for device in devices.devices:
            readings.setdefault(device.id, []).append(device)
        for name, each in readings.items():
            known = exporter.faults.get(name)
            exporter.faults[name] = updated(known or {}, each, at, first=first or known is None)
        self._hook(DevicesRead(key.source, key.address, at, took, size, devices.missing, devices.refused))
        self._deliver_changes(at + took)

    def restarted(self, pool: str, address: str, now: float) -> None:
        """Record a restart of the endpoint's server: it ends the faults whose remedy it is."""
        self._restarts[pool, address] = now
        if any(owner.pool == pool and owner.address == address for owner in self._members):
            self._deliver_changes(now)

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
        lost: dict[str, tuple[Device, ...]] = {}
        for owner, members in self._lost.items():
            found_lost = tuple(each.device for each in members.values() if each.exporter == key)
            if found_lost:
                lost[owner.address] = found_lost
        return ExporterView(
            key,
            stale_after,
            exporter.page_at,
            exporter.failures,
            exporter.reason,
            joined,
            unmatched,
            ambiguous,
            tuple(exporter.unhealthy.values()),
            lost,
        )

    def _deliver_changes(self, now: float, *, to_all: bool = False) -> None:
        """Deliver the accelerators of every endpoint for which they changed, or of all endpoints."""
        places = self._places()
        shown: dict[_Owner, list[tuple[Want, Sequence[Device]]]] = {}
        joins: dict[tuple[ExporterKey, JoinKey], Joined] = {}
        unread: set[tuple[str, str, str]] = set()  # pool, source and node of exporters without a page
        lacking: set[tuple[str, str, str]] = set()  # the same, of nodes without an exporter
        for pool in self._pools:
            own = {place.address for place in pool.places}
            for want in pool.wants:
                if not want.known:
                    lacking.add((pool.pool, want.key.source, want.node))
                    continue
                exporter = self._exporters[want.key]
                if exporter.page_at is None:
                    unread.add((pool.pool, want.key.source, want.node))
                    continue
                wants = [other for _, other in self._wants(want.key)]
                joined = join(_located(exporter.devices, wants, want), places, want.by)
                joins[want.key, want.by] = joined
                for address in joined.devices.keys() & own:
                    owner = _Owner(pool.pool, address, want.key.source)
                    shown.setdefault(owner, []).append((want, joined.devices[address]))
        found: dict[tuple[str, str], list[Accelerators]] = {}
        before, self._lost = self._lost, {}
        for pool in self._pools:
            for source in dict.fromkeys(want.key.source for want in pool.wants):
                of_source = [want for want in pool.wants if want.key.source == source]
                for place in pool.places:
                    owner = _Owner(pool.pool, place.address, source)
                    made = self._of_endpoint(owner, place, of_source, shown.get(owner, []), joins)
                    if not made:
                        unscraped = any((pool.pool, source, node) in unread for node in ("", place.node))
                        why = "never_scraped" if unscraped else "no_accelerator"
                        if (pool.pool, source, place.node) in lacking and not unscraped:
                            why = "no_exporter"
                        made = [
                            no_devices(source, why, limit, picked_on=picked_on)
                            for limit, picked_on in {(want.stale_after, want.picked_on) for want in of_source}
                        ]
                    found.setdefault((pool.pool, place.address), []).extend(made)
        self._report_lost(before)
        for key, exporter in self._exporters.items():
            self._report_faults(key, exporter)
        after = {key: tuple(sorted(each, key=lambda one: (one.source, one.exporter))) for key, each in found.items()}
        delivered, self._delivered = self._delivered, after
        for endpoint in delivered.keys() | after.keys():
            accelerators = after.get(endpoint, ())
            if to_all or accelerators != delivered.get(endpoint, ()):
                self._deliver(*endpoint, accelerators, now)

    def _of_endpoint(
        self,
        owner: _Owner,
        place: EndpointLocation,
        wants: Sequence[Want],
        shown: Sequence[tuple[Want, Sequence[Device]]],
        joins: Mapping[tuple[ExporterKey, JoinKey], Joined],
    ) -> list[Accelerators]:
        """The accelerators of one endpoint from one source: one entry for each exporter that reports some of them, or
        that did. Notes which of the devices that the endpoint was seen with are lost."""
        members = self._members.get(owner, {})
        current = {
            device.id: _Member(want.key, device._replace(pod=device.pod or place.pod))
            for want, devices in shown
            for device in devices
        }
        expected = max((want.expected for want in wants), default=0)
        lost = {
            name: each for name, each in members.items() if name not in current and not self._moved(each, place, joins)
        }
        if len(current) >= (expected or len(members)):
            lost = {}
        if current or lost:
            self._members[owner] = {**current, **lost}
        else:
            self._members.pop(owner, None)
        if lost:
            self._lost[owner] = lost
        missing = max(0, expected - len(current) - len(lost)) if current or lost else 0
        made: list[Accelerators] = []
        for want in dict.fromkeys([*(want for want, _ in shown), *self._wants_of(lost, wants)]):
            mine = [device for of_want, devices in shown if of_want is want for device in devices]
            gone = [each.device for each in lost.values() if each.exporter == want.key]
            exporter = self._exporters[want.key]
            in_effect, ended = self._by_effect(owner, want, exporter, [*mine, *gone])
            made.append(
                combine(
                    want.key.source,
                    want.key.address,
                    DeviceSet(tuple(mine), tuple(gone), missing),
                    float("-inf") if exporter.page_at is None else exporter.page_at,
                    want.stale_after,
                    in_effect,
                    ended,
                    picked_on=want.picked_on,
                )
            )
        return made

    @staticmethod
    def _wants_of(lost: Mapping[str, _Member], wants: Sequence[Want]) -> list[Want]:
        """How the pool uses the exporters of the lost devices."""
        keys = {each.exporter for each in lost.values()}
        return [want for want in wants if want.key in keys]

    def _moved(
        self, member: _Member, place: EndpointLocation, joins: Mapping[tuple[ExporterKey, JoinKey], Joined]
    ) -> bool:
        """Whether the exporter's page has the device as another endpoint's or another pod's, or as one of several
        endpoints: it is not lost then."""
        name = member.device.id
        for (key, _), joined in joins.items():
            if key == member.exporter:
                others = [each for address, each in joined.devices.items() if address != place.address]
                if any(device.id == name for devices in (*others, joined.ambiguous) for device in devices):
                    return True
        pod = member.device.pod.lower()
        exporter = self._exporters[member.exporter]
        return any(device.id == name and device.pod and device.pod.lower() != pod for device in exporter.devices)

    def _by_effect(
        self, owner: _Owner, want: Want, exporter: _Exporter, devices: Sequence[Device]
    ) -> tuple[list[Fault], list[EndedFault]]:
        """The faults of an endpoint's devices: those in effect, and those without effect."""
        in_effect: list[Fault] = []
        ended: list[EndedFault] = []
        for device in devices:
            for fault in exporter.faults.get(device.id, {}).values():
                if not standing(fault, want.fatal_xids):
                    continue
                end = self._acknowledgement(want, fault, device.card) or self._restart(owner, fault)
                if end is None:
                    in_effect.append(fault)
                else:
                    ended.append(end)
        return in_effect, ended

    def _restart(self, owner: _Owner, fault: Fault) -> EndedFault | None:
        at = self._restarts.get((owner.pool, owner.address))
        if fault.remedy != Remedy.RESTART_APPLICATION or at is None or at <= fault.since:
            return None
        return EndedFault(fault, "restarted", at)

    def _acknowledgement(self, want: Want, fault: Fault, card: str) -> EndedFault | None:
        """The acknowledgement of a fault. One that began after it is a new event."""
        for entry in want.acknowledged:
            at = self._acknowledged[want.key, entry]
            if entry.covers(fault, card) and not (fault.begun and fault.since > at):
                return EndedFault(fault, "acknowledged", at)
        return None

    def _report_lost(self, before: Mapping[_Owner, Mapping[str, _Member]]) -> None:
        """Emit an event for each device that an endpoint lost, or that is on the page again."""
        for owner in before.keys() | self._lost.keys():
            was, now = before.get(owner, {}), self._lost.get(owner, {})
            for name in sorted(now.keys() - was.keys()):
                self._hook(DeviceLost(owner.source, now[name].exporter.address, owner.pool, owner.address, name, True))
            for name in sorted(was.keys() - now.keys()):
                self._hook(DeviceLost(owner.source, was[name].exporter.address, owner.pool, owner.address, name, False))

    def _report_faults(self, key: ExporterKey, exporter: _Exporter) -> None:
        """Note which devices are unhealthy, and emit an event for each that became so or recovered.

        A device is unhealthy by its first fault that is in effect for an endpoint that uses it, or for nobody's. Faults
        of a device that left the page are only kept as long as an endpoint is known to lack it.
        """
        wants = [want for _, want in self._wants(key)]
        fatal: frozenset[int] = frozenset().union(*(want.fatal_xids for want in wants))
        present = {device.id: device.card for device in exporter.devices}
        lost = {
            name: each.device.card
            for members in self._lost.values()
            for name, each in members.items()
            if each.exporter == key
        }
        exporter.faults = {name: found for name, found in exporter.faults.items() if name in present or name in lost}
        cards = {**lost, **present}
        unhealthy: dict[str, Fault] = {}
        for name, faults in exporter.faults.items():
            owners = [owner for owner, members in self._members.items() if name in members]
            for fault in faults.values():
                acknowledged = any(self._acknowledgement(want, fault, cards[name]) for want in wants)
                restarted = bool(owners) and all(self._restart(owner, fault) for owner in owners)
                if standing(fault, fatal) and not acknowledged and not restarted:
                    unhealthy.setdefault(name, fault)
        for name in unhealthy.keys() - exporter.unhealthy.keys():
            fault = unhealthy[name]
            self._hook(DeviceHealthChanged(key.source, key.address, name, fault.reason, fault.detail))
        for name in exporter.unhealthy.keys() - unhealthy.keys():
            if name in exporter.faults:  # else it was forgotten, which is no recovery
                self._hook(DeviceHealthChanged(key.source, key.address, name, "", ""))
        exporter.unhealthy = unhealthy


def _located(devices: Sequence[Device], wants: Sequence[Want], want: Want) -> Sequence[Device]:
    """The devices with their node, where the exporter is configured for one machine. That takes precedence over the
    node on its page, which may be the name of the exporter's own pod."""
    nodes = {other.node for other in wants}
    if want.by is JoinKey.NODE and len(nodes) == 1 and want.node:
        return [device._replace(node=want.node) for device in devices]
    return devices
