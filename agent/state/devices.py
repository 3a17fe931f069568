"""What the accelerator exporters said last, and whose devices they spoke of: one for all pools, beside their stores.

An exporter has its own page, its own time and its own silence. Its page is joined with the endpoints of all pools when
it comes in, and when the endpoints change, never when somebody picks; what changes for an endpoint is handed to its
pool. An exporter that is silent changes nothing: readings grow old by themselves, and an endpoint is as well, or as
sick, as the exporter's last word was, because neither a fault nor its end shows in silence. Pure: `now` is handed in.
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


class ExporterKey(NamedTuple):
    """One exporter: which kind, and where; `path` and `prefix` tell two at one address apart."""

    source: str
    address: str
    path: str = ""
    prefix: str = ""


class Want(NamedTuple):
    """What a pool wants of one exporter. `node` is the machine that it was asked for, empty where it names none.

    A reading of age `stale_after` (seconds) is withheld. `picked_on`: picks may look at its readings.
    """

    key: ExporterKey
    by: JoinKey
    stale_after: float
    fatal_xids: frozenset[int]
    node: str = ""
    picked_on: bool = True


class PoolDevices(NamedTuple):
    """A pool: where its endpoints run, and which exporters tell of their devices."""

    pool: str
    places: tuple[EndpointLocation, ...]
    wants: tuple[Want, ...]


class ExporterView(NamedTuple):
    """An exporter as of its last page: `page_at` is when that was asked for (None: never one), `failures` since then
    and the `reason` of the last; `joined` says which device is which endpoint's, `faults` which of them are sick."""

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
        """Whether its last page is young enough to be acted on."""
        return self.page_at is not None and now - self.page_at < self.stale_after


class _Exporter:
    __slots__ = ("devices", "failures", "faults", "page_at", "reason")

    def __init__(self) -> None:
        self.devices: tuple[Device, ...] = ()
        self.page_at: float | None = None
        self.failures = 0
        self.reason = ""
        self.faults: dict[str, Fault] = {}


# Pool, address, what its devices are from now on, and the time.
Deliver = Callable[[str, str, tuple[Accelerators, ...], float], None]


class DeviceState:
    """The last word of every exporter. `deliver` is called for each endpoint for which something changed."""

    def __init__(self, deliver: Deliver, hook: Hook = ignore) -> None:
        self._deliver = deliver
        self._hook = hook
        self._pools: Sequence[PoolDevices] = ()
        self._exporters: dict[ExporterKey, _Exporter] = {}
        self._told: dict[tuple[str, str], tuple[Accelerators, ...]] = {}

    def set_pools(self, pools: Sequence[PoolDevices], now: float) -> None:
        """The pools from now on; what is known of exporters that stay is joined anew."""
        self._pools = tuple(pools)
        wanted = dict.fromkeys(want.key for pool in pools for want in pool.wants)
        self._exporters = {key: self._exporters.get(key) or _Exporter() for key in wanted}
        self._told = {(pool.pool, place.address): () for pool in pools for place in pool.places}
        self._tell(now, anew=True)

    def observed(self, key: ExporterKey, devices: Devices, at: float, took: float, size: int) -> None:
        """A page of an exporter that was asked for at `at` and was here `took` seconds later."""
        exporter = self._exporters.get(key)
        if exporter is None:
            return
        exporter.devices = devices.devices
        exporter.page_at = at
        exporter.failures = 0
        exporter.reason = ""
        self._hook(DevicesRead(key.source, key.address, at, took, size, devices.missing, devices.refused))
        self._note_faults(key, exporter)
        self._tell(at + took)

    def failed(self, key: ExporterKey, reason: str, detail: str, at: float, took: float) -> None:
        """A scrape of an exporter that brought nothing."""
        exporter = self._exporters.get(key)
        if exporter is not None:
            exporter.failures += 1
            exporter.reason = reason
            self._hook(DevicesFailed(key.source, key.address, at, took, reason, detail))

    def exporters(self) -> list[ExporterView]:
        """Every exporter, in the order of their keys."""
        return [self._view(key, exporter) for key, exporter in sorted(self._exporters.items())]

    # -- within --------------------------------------------------------------------------------------------------

    def _wants(self, key: ExporterKey) -> list[tuple[PoolDevices, Want]]:
        return [(pool, want) for pool in self._pools for want in pool.wants if want.key == key]

    def _places(self) -> list[EndpointLocation]:
        """Where every endpoint of every pool runs: a device is nobody's for certain while another may have it."""
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

    def _tell(self, now: float, *, anew: bool = False) -> None:
        """Hand every endpoint what its devices are now, where that is not what they were; `anew`: to all of them."""
        places = self._places()
        found: dict[tuple[str, str], list[Accelerators]] = {}
        for pool in self._pools:
            mine = {place.address for place in pool.places}
            blind: set[tuple[str, str]] = set()  # source and node of which no page has come
            for want in pool.wants:
                exporter = self._exporters[want.key]
                if exporter.page_at is None:
                    blind.add((want.key.source, want.node))
                    continue
                wants = [other for _, other in self._wants(want.key)]
                joined = join(_located(exporter.devices, wants, want), places, want.by).devices
                for address in joined.keys() & mine:
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
                    told_of = found.setdefault((pool.pool, place.address), [])
                    if not any(one.source == source for one in told_of):
                        unasked = not blind.isdisjoint({(source, ""), (source, place.node)})
                        why = "never_scraped" if unasked else "no_accelerator"
                        told_of.append(no_devices(source, why, limit, picked_on=picked_on))
        told = {key: tuple(sorted(each, key=lambda one: (one.source, one.exporter))) for key, each in found.items()}
        before, self._told = self._told, told
        for key in before.keys() | told.keys():
            now_his = told.get(key, ())
            if anew or now_his != before.get(key, ()):
                self._deliver(*key, now_his, now)

    def _note_faults(self, key: ExporterKey, exporter: _Exporter) -> None:
        """Tell of devices that fell sick or recovered, once each."""
        fatal: Collection[int] = frozenset().union(*(want.fatal_xids for _, want in self._wants(key)))
        faults = {fault.device: fault for device in exporter.devices if (fault := fault_of(device, fatal)) is not None}
        for device in faults.keys() - exporter.faults.keys():
            fault = faults[device]
            self._hook(DeviceHealthChanged(key.source, key.address, device, fault.reason, fault.detail))
        for device in exporter.faults.keys() - faults.keys():
            self._hook(DeviceHealthChanged(key.source, key.address, device, "", ""))
        exporter.faults = faults


def _located(devices: Sequence[Device], wants: Sequence[Want], want: Want) -> Sequence[Device]:
    """The devices with their machine, where the exporter was asked for as that of one machine: that goes before what
    its page says, which may be the name of the exporter's own pod."""
    nodes = {other.node for other in wants}
    if want.by is JoinKey.NODE and len(nodes) == 1 and want.node:
        return [device._replace(node=want.node) for device in devices]
    return devices
