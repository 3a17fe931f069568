"""The sources of accelerator readings as one component: which there are, one scrape for each, and its endpoints.

An exporter is scraped once however many endpoints and pools use it, at the shortest interval that any of them sets.
Exporters that are pods are found by labels (`agent.kube.exporter_pods`) and joined with endpoints by node. One whose
pod is gone is not scraped, because another pod may have its address; what it has reported stays and goes stale.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from agent.accelerators import DEVICE_SOURCES, EXPORTERS, exporter
from agent.accelerators.combine import Accelerators as Readings
from agent.accelerators.device import Devices
from agent.accelerators.faults import Acknowledgement
from agent.accelerators.gke import Gke
from agent.accelerators.join import EndpointLocation, JoinKey
from agent.accelerators.mapping import DeviceReader
from agent.accelerators.nvml import Nvml
from agent.app.device_sources import DeviceSourcePoller, PolledSource
from agent.app.pool import Pool
from agent.app.tasks import Task, Tasks
from agent.clock import Clock
from agent.config.addresses import NODE_PLACEHOLDER, expand, split_address
from agent.config.config import Config
from agent.config.pools import AcceleratorConfig, EndpointConfig
from agent.events import Hook
from agent.kube.cluster import Cluster, own_namespace
from agent.kube.errors import NoCluster
from agent.kube.exporter_pods import ExporterPods, ExporterSelector
from agent.kube.pool_endpoints import API_UNAVAILABLE, NO_CLUSTER, NO_EXPORTER_POD, ObjectProblem
from agent.scrape.loop import ScrapeLoop
from agent.scrape.target import Target
from agent.state.devices import DeviceState, ExporterKey, ExporterView, PoolDevices, Want
from agent.state.store import RoutingStore

MAX_NODES_NAMED: Final = 3  # nodes without an exporter that a problem names

# A pool, and what is wrong with the exporters of its accelerators.
ReportExporters = Callable[[str, Sequence[ObjectProblem]], None]


class _NodeExporter(NamedTuple):
    """The exporter of a node, among the pods of a selector: `any_key` is its key without the address."""

    any_key: ExporterKey
    selector: ExporterSelector
    port: int
    node: str


class _Following(NamedTuple):
    """The pods of a selector, and the task that follows them."""

    pods: ExporterPods
    task: Task


class _Group:
    """The exporters of one kind, which differ in their address alone: the sink of their pages."""

    def __init__(self, state: DeviceState, any_key: ExporterKey) -> None:
        self._state = state
        self._any_key = any_key

    def observed(self, address: str, extraction: Devices, at: float, took: float, size: int) -> bool:
        """A page was read. An exporter that was replaced needs no reset."""
        self._state.observed(self._any_key._replace(address=address), extraction, at, took, size)
        return False

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        """A scrape failed."""
        self._state.failed(self._any_key._replace(address=address), reason, detail, at, took)

    def reader(self, target: Target) -> DeviceReader:
        """The reader of one exporter's pages."""
        return DeviceReader(exporter(self._any_key.source), self._any_key.prefix)


class AcceleratorScraping:
    """Scrapes exporters, calls device sources, and hands their readings to the pools. `pools` returns those by name.
    `report` is called after each refresh with what is wrong with the exporters of each pool that finds them by labels.
    """

    name = "accelerators"

    def __init__(
        self,
        config: Config,
        loop: ScrapeLoop,
        clock: Clock,
        tasks: Tasks,
        hook: Hook,
        pools: Callable[[], Mapping[str, Pool]],
        cluster: Cluster,
        report: ReportExporters,
    ) -> None:
        self._config = config
        self._loop = loop
        self._clock = clock
        self._pools = pools
        self._tasks = tasks
        self._cluster = cluster
        self._report = report
        self._following: dict[ExporterSelector, _Following] = {}
        self._node_exporters: dict[_NodeExporter, ExporterKey] = {}  # the last one of each node
        self._state = DeviceState(self._deliver, hook)
        self._poller = DeviceSourcePoller(self._state, clock, tasks)
        self._groups: set[ExporterKey] = set()
        self._limits: dict[ExporterKey, tuple[float, float]] = {}
        self._joined: set[str] = set()  # the pools that had sources in the last `refresh`
        self._watched: dict[str, RoutingStore] = {}  # the stores that report restarts here, by pool

    async def start(self) -> None:
        """Begin with the endpoints that are known; `refresh` brings the others."""
        self.refresh()

    async def apply(self, config: Config) -> None:
        """Other sources; pools that change their endpoints with it call `refresh` again."""
        self._config = config
        self.refresh()

    def readiness(self) -> list[str]:
        """Always ready: without readings of accelerators the agent picks by those of the servers."""
        return []

    async def stop(self, grace: float) -> None:
        """Call no device source any more; the scrape loop is a component of its own."""
        self._poller.stop()
        self._follow(frozenset())

    def refresh(self) -> None:
        """Join sources and endpoints again: the endpoints of a pool have changed."""
        config, known = self._config, self._pools()
        pools: list[PoolDevices] = []
        wanted: dict[ExporterKey, list[AcceleratorConfig]] = {}
        self._follow(frozenset(self._selectors(known)))
        used: set[_NodeExporter] = set()
        for pool in config.pools:
            if pool.name not in known:
                continue
            store = known[pool.name].store
            if self._watched.get(pool.name) is not store:
                self._watched[pool.name] = store
                store.on_restart.append(partial(self._state.restarted, pool.name))
            # A pool without sources has nothing to join, except that what it had before is withdrawn.
            joined = pool.accelerators or pool.name in self._joined
            endpoints = known[pool.name].endpoints.values() if joined else ()
            places = tuple(place_of(endpoint) for endpoint in endpoints)
            wants: list[Want] = []
            problems: list[ObjectProblem] = []
            for entry in pool.accelerators:
                if entry.selector:
                    wants += self._of_pods(pool.name, entry, places, used, wanted, problems)
                    continue
                for want in wants_of(entry, places):
                    wants.append(want)
                    wanted.setdefault(want.key, []).append(entry)
            self._report(pool.name, problems)
            pools.append(PoolDevices(pool.name, places, tuple(wants)))
        self._node_exporters = {each: key for each, key in self._node_exporters.items() if each in used}
        self._joined = {pool.name for pool in config.pools if pool.accelerators}
        self._state.set_pools(pools, self._clock.now())
        exporters = {key: each for key, each in wanted.items() if key.source in EXPORTERS}
        self._scrape(exporters, config.scrape.max_page_bytes)
        sources = {key: each for key, each in wanted.items() if key.source in DEVICE_SOURCES}
        limits = {key: _limits(entries) for key, entries in sources.items()}
        if limits != self._limits:  # a client that is replaced forgets what it has seen
            self._limits = limits
            self._poller.set_sources({key: _polled(key, entries) for key, entries in sources.items()})

    def exporters(self) -> list[ExporterView]:
        """Every exporter and its last readings."""
        return self._state.exporters()

    def _selectors(self, known: Mapping[str, Pool]) -> list[ExporterSelector]:
        """The selectors of all pools. One without a namespace outside a cluster has none."""
        entries = [entry for pool in self._config.pools if pool.name in known for entry in pool.accelerators]
        return [found for entry in entries if entry.selector and (found := self._selector(entry)) is not None]

    def _selector(self, entry: AcceleratorConfig) -> ExporterSelector | None:
        namespace = entry.namespace or self._config.kubernetes.namespace
        try:
            return ExporterSelector(namespace or own_namespace(), entry.selector)
        except NoCluster:
            return None

    def _follow(self, selectors: frozenset[ExporterSelector]) -> None:
        """Follow the pods of these selectors and of no others."""
        for selector in self._following.keys() - selectors:
            self._following.pop(selector).task.cancel()
        for selector in selectors - self._following.keys():
            pods = ExporterPods(selector, self._cluster, self.refresh)
            self._following[selector] = _Following(pods, self._tasks.run(f"accelerator-exporters/{selector}", pods.run))

    def _of_pods(
        self,
        pool: str,
        entry: AcceleratorConfig,
        places: Sequence[EndpointLocation],
        used: set[_NodeExporter],
        wanted: dict[ExporterKey, list[AcceleratorConfig]],
        problems: list[ObjectProblem],
    ) -> list[Want]:
        """The exporters of an entry with a selector: for each node of the endpoints the pod there."""
        selector = self._selector(entry)
        if selector is None:
            text = "the agent runs outside a cluster, so it has no namespace; set namespace of the accelerators"
            problems.append(ObjectProblem(NO_CLUSTER, f"pool {pool}: {text}"))
            return []
        pods = self._following[selector].pods
        addresses = pods.addresses(entry.port)
        any_key = ExporterKey(entry.source, "", entry.path, entry.prefix)
        wants: list[Want] = []
        without: list[str] = []
        for node in dict.fromkeys(place.node for place in places):
            which = _NodeExporter(any_key, selector, entry.port, node)
            used.add(which)
            before, address = self._node_exporters.get(which), addresses.get(node)
            key = before or any_key
            if address is not None:
                key = any_key._replace(address=address)
                if before is not None and before != key:
                    self._state.moved(before, key)
                self._node_exporters[which] = key
                wanted.setdefault(key, []).append(entry)
            elif pods.listed:
                without.append(node)
            if address is not None or before is not None or pods.listed:
                wants.append(_want(entry, key, node)._replace(known=bool(key.address)))
        if pods.failing:
            problems.append(ObjectProblem(API_UNAVAILABLE, f"pool {pool}: {selector}: {pods.failing}"))
        if without:
            more = f" and {len(without) - MAX_NODES_NAMED} more" if len(without) > MAX_NODES_NAMED else ""
            problems.append(
                ObjectProblem(
                    NO_EXPORTER_POD,
                    f"pool {pool}: none of the {selector} runs on node {', '.join(without[:MAX_NODES_NAMED])}{more}; "
                    f"readings of {entry.source} are withheld for the endpoints there; correct the selector, or run "
                    "the exporter on these nodes",
                )
            )
        return wants

    def _deliver(self, pool: str, address: str, accelerators: tuple[Readings, ...], now: float) -> None:
        pools = self._pools()
        if pool in pools:
            pools[pool].store.set_accelerators(address, accelerators, now)

    def _scrape(self, wanted: Mapping[ExporterKey, list[AcceleratorConfig]], max_page_bytes: int) -> None:
        groups: dict[ExporterKey, list[Target]] = {key: [] for key in self._groups}
        for key, entries in wanted.items():
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


def place_of(endpoint: EndpointConfig) -> EndpointLocation:
    """Where an endpoint runs: its `node`, by default the host of its address."""
    host, _ = split_address(endpoint.address)
    return EndpointLocation(endpoint.address, endpoint.node or host, endpoint.pod, frozenset(endpoint.devices))


def wants_of(entry: AcceleratorConfig, places: tuple[EndpointLocation, ...]) -> list[Want]:
    """The exporters of an entry, given the locations of the pool's endpoints."""
    if entry.source in DEVICE_SOURCES:
        return [_of_source(entry, places)]
    nodes = list(dict.fromkeys(place.node for place in places)) if NODE_PLACEHOLDER in entry.address else [""]
    return [
        _want(entry, ExporterKey(entry.source, expand(entry.address, node), entry.path, entry.prefix), node)
        for node in nodes
    ]


def _want(entry: AcceleratorConfig, key: ExporterKey, node: str) -> Want:
    return Want(
        key,
        JoinKey(entry.join),
        entry.stale_after,
        frozenset(entry.fatal_xids),
        node,
        expected=entry.devices_per_endpoint,
        acknowledged=_acknowledged(entry),
    )


def _acknowledged(entry: AcceleratorConfig) -> frozenset[Acknowledgement]:
    return frozenset(Acknowledgement(each.device, each.xid) for each in entry.acknowledged)


def _of_source(entry: AcceleratorConfig, places: tuple[EndpointLocation, ...]) -> Want:
    """The exporter of a source without a page: this machine (under the endpoints' name for it), or a cluster."""
    limits = (JoinKey(entry.join), entry.stale_after, frozenset(entry.fatal_xids))
    expected, acknowledged = entry.devices_per_endpoint, _acknowledged(entry)
    if entry.source == "gke":
        key = ExporterKey("gke", f"{entry.project}/{entry.location}/{entry.cluster}")
        return Want(key, *limits, picked_on=False, expected=expected, acknowledged=acknowledged)
    names = [socket.gethostname(), "localhost", "127.0.0.1", "::1"]
    node = next((place.node for place in places if place.node in names), names[0])
    return Want(ExporterKey("nvml", names[0]), *limits, node, expected=expected, acknowledged=acknowledged)


def _polled(key: ExporterKey, entries: list[AcceleratorConfig]) -> PolledSource:
    """The client of the library, polled at the shortest interval of all entries."""
    interval, timeout = _limits(entries)
    if key.source == "gke":
        entry = entries[0]
        return PolledSource(Gke(entry.project, entry.location, entry.cluster, timeout), interval, timeout)
    return PolledSource(Nvml(key.address), interval, timeout)


def _limits(entries: list[AcceleratorConfig]) -> tuple[float, float]:
    """The interval between two polls and the time-out of one (seconds)."""
    return min(entry.interval for entry in entries), min(entry.timeout for entry in entries)
