"""From snapshots, gauge sets and exporters to the JSON documents of the admin address.

No document contains a raw monotonic time, which means nothing in another process. A reading is dated by its age at the
document's `as_of`. That instant is given twice: `as_of` is wall time, for people; `uptime_seconds`, seconds since the
agent's epoch began, is for programs: it orders the documents of one epoch even when the wall clock is set.
`prefill_seconds` is the backlog at `as_of`; it decreases by one second per second, down to 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from agent.accelerators.combine import Accelerators
from agent.accelerators.device import Device
from agent.accelerators.faults import EndedFault, Fault
from agent.accelerators.table import COMBINED, DEVICE_SIGNALS
from agent.scaling.accelerators import oldest, reading
from agent.scaling.gauges import age
from agent.scaling.rates import rate
from agent.scaling.rollup import Unknown, count_by_health, current, histogram
from agent.serve.state.flow_documents import changed_flow
from agent.serve.state.moment import Moment, printable, rfc3339
from agent.serve.state.schema import (
    AcceleratorsJson,
    ChangedPoolJson,
    ChangeJson,
    DeviceJson,
    EndedFaultJson,
    EndpointDeviceJson,
    EndpointJson,
    ErrorsJson,
    ExporterJson,
    ExportersJson,
    GaugeJson,
    GaugesJson,
    HeaderJson,
    HistogramJson,
    HistogramValueJson,
    PeerJson,
    PoolFlowJson,
    PoolJson,
    PrefixJson,
    ReplicasJson,
    RewriteJson,
    RewriteTargetJson,
    SignalValueJson,
    SourceJson,
    SourceProblemJson,
    StateJson,
    WorkJson,
)
from agent.signals import HISTOGRAMS, PREFIX_HITS, SIGNALS
from agent.state.counter_rates import RATES, Rate
from agent.state.devices import ExporterView
from agent.state.outliers import Errors
from agent.state.replicas import ReplicasView
from agent.state.snapshot import EndpointView, Snapshot
from agent.state.source import SourceStatus
from exporters.catalog import CATALOG
from exporters.gauge import Gauge, GaugeSet, Withheld

# The values of `/v1/gauges?name=`.
GAUGE_NAMES: Final = tuple(
    name
    for row in CATALOG.values()
    if row.type == "gauge" and row.origin == "state"
    for name in (row.name, *(alias.name for alias in row.aliases))
)
_UNITS: Final = tuple((name, row.unit) for name, row in SIGNALS.items())

NO_FLOWS: Final[Mapping[str, PoolFlowJson]] = {}
encode: Final = msgspec.json.Encoder().encode


# -- state and its changes ---------------------------------------------------------------------------------------------


def header(epoch: str, version: int, moment: Moment) -> HeaderJson:
    """The version of a state and its time."""
    return HeaderJson(epoch, version, rfc3339(moment.wall), moment.uptime)


def state(
    epoch: str,
    version: int,
    snapshots: Sequence[Snapshot],
    moment: Moment,
    flows: Mapping[str, PoolFlowJson] = NO_FLOWS,
) -> StateJson:
    """Every endpoint of these pools; `flows` is their flow control by pool."""
    pools = [
        PoolJson(
            each.pool,
            _source(each.source, moment.now),
            _objectives(each.source),
            _rewrites(each.source),
            {health.value: count for health, count in count_by_health(each.endpoints).items()},
            flows.get(each.pool),
            [endpoint(view, moment) for view in each.endpoints],
        )
        for each in snapshots
    ]
    return StateJson(epoch, version, rfc3339(moment.wall), moment.uptime, pools)


class PoolDifference(NamedTuple):
    """How one pool differs between two states: views that are new or different, and addresses that were removed.
    `source` is that of the later state. `flow` is flow control there, with only the rooms that differ; UNSET where it
    is as before."""

    pool: str
    changed: Sequence[EndpointView]
    removed: Sequence[str]
    source: SourceStatus | None = None
    flow: PoolFlowJson | UnsetType | None = UNSET


def differences(
    before: Mapping[str, Mapping[str, EndpointView]], after: Mapping[str, Mapping[str, EndpointView]]
) -> tuple[list[PoolDifference], list[str]]:
    """The pools that changed, and the pools that were removed; both arguments are pool -> address -> view.

    Views are equal when all their fields are; the same object, which is the common case, needs no comparison.
    """
    changes = []
    for pool, views in after.items():
        known = before.get(pool, {})
        changed = [view for address, view in views.items() if known.get(address) != view]
        removed = sorted(known.keys() - views.keys())
        if changed or removed or pool not in before:
            changes.append(PoolDifference(pool, changed, removed))
    return changes, sorted(before.keys() - after.keys())


def with_sources(
    changes: Sequence[PoolDifference],
    before: Mapping[str, SourceStatus | None],
    after: Mapping[str, SourceStatus | None],
) -> list[PoolDifference]:
    """The differences with the later sources, and one more for each pool of which the source alone has changed."""
    known = {each.pool for each in changes}
    found = [each._replace(source=after[each.pool]) for each in changes]
    for pool, source in after.items():
        if pool not in known and source != before.get(pool):
            found.append(PoolDifference(pool, (), (), source))
    return found


def with_flows(
    changes: Sequence[PoolDifference],
    before: Mapping[str, PoolFlowJson],
    after: Mapping[str, PoolFlowJson],
    sources: Mapping[str, SourceStatus | None],
) -> list[PoolDifference]:
    """The differences with the later flow control where it is another one, and one more for each pool of which flow
    control alone has changed. `sources` are those of the later state."""
    differ = {
        pool: changed_flow(before.get(pool), after.get(pool))
        for pool in before.keys() | after.keys()
        if pool in sources and before.get(pool) != after.get(pool)
    }
    known = {each.pool for each in changes}
    found = [each._replace(flow=differ[each.pool]) if each.pool in differ else each for each in changes]
    alone = [PoolDifference(pool, (), (), sources[pool], flow) for pool, flow in differ.items() if pool not in known]
    return found + alone


def change(
    epoch: str,
    since: int,
    version: int,
    changes: Sequence[PoolDifference],
    removed_pools: Sequence[str],
    moment: Moment,
) -> ChangeJson:
    """What turns the state at `since` or later into the state at `version`: complete endpoints, never parts of one."""
    pools = [
        ChangedPoolJson(
            each.pool,
            _source(each.source, moment.now),
            _objectives(each.source),
            _rewrites(each.source),
            [endpoint(view, moment) for view in each.changed],
            list(each.removed),
            each.flow,
        )
        for each in changes
    ]
    return ChangeJson(epoch, version, rfc3339(moment.wall), moment.uptime, since, pools, list(removed_pools))


def _source(source: SourceStatus | None, now: float) -> SourceJson | None:
    if source is None:
        return None
    problems = [SourceProblemJson(each.reason, printable(each.message)) for each in source.problems]
    return SourceJson(printable(source.source), source.current, source.age(now), problems)


def _objectives(source: SourceStatus | None) -> dict[str, int] | None:
    if source is None or source.objectives is None:
        return None
    return {printable(name): priority for name, priority in sorted(source.objectives.priorities.items())}


def _rewrites(source: SourceStatus | None) -> list[RewriteJson] | None:
    if source is None or source.objectives is None:
        return None
    return [
        RewriteJson(
            sorted(map(printable, rule.models)),
            [RewriteTargetJson(printable(target.model), target.weight) for target in rule.targets],
            "/".join(rule.source),
        )
        for rule in source.objectives.rewrites
    ]


# -- an endpoint -------------------------------------------------------------------------------------------------------


def endpoint(view: EndpointView, moment: Moment) -> EndpointJson:
    """One endpoint: its health, the work there, and every signal, null with a reason where unknown."""
    now = moment.now
    work = view.work
    predicted, measured = view.prefix
    if isinstance(current(view, PREFIX_HITS, now), Unknown):
        measured = None
    return EndpointJson(
        view.address,
        view.engine,
        view.health,
        view.reason,
        None if view.page_at is None else age(view.page_at, now),
        view.failures,
        view.stale_after,
        view.identity.namespace,
        view.identity.pod_name,
        view.identity.node,
        WorkJson(
            work.requests,
            work.of_peers,
            work.foreign,
            work.prefill_seconds(now),
            work.queue_seconds,
            work.prefill_tokens(now),
            work.rate,
            work.rate_source,
            work.corrected,
        ),
        PrefixJson(predicted, measured, None if measured is None else predicted - measured),
        {name: _signal(view, name, unit, now) for name, unit in _UNITS},
        {name: _histogram(view, name, now) for name in view.histograms},
        {name: _rate(view, row, now) for name, row in RATES.items()},
        [_accelerators(each, moment) for each in view.accelerators],
        _errors(view.errors, now),
    )


def _errors(errors: Errors | None, now: float) -> ErrorsJson | None:
    if errors is None:
        return None
    trial_at = errors.trial_at
    return ErrorsJson(
        errors.consecutive,
        errors.ratio,
        errors.requests,
        errors.last,
        age(errors.at, now),
        trial_at is not None,
        errors.ejections,
        None if trial_at is None else max(0.0, trial_at - now),
    )


def _signal(view: EndpointView, name: str, unit: str, now: float) -> SignalValueJson:
    found = current(view, name, now)
    if isinstance(found, Unknown):
        last = view.reading(name)
        return SignalValueJson(None, unit, None if last is None else age(last.at, now), False, found.reason)
    value = found.value
    plain = sorted(map(printable, value)) if isinstance(value, frozenset) else value
    return SignalValueJson(plain, unit, age(found.at, now), True)


def _histogram(view: EndpointView, name: str, now: float) -> HistogramValueJson:
    found = histogram(view, name, now)
    unit = HISTOGRAMS[name].unit
    if isinstance(found, Unknown):
        return HistogramValueJson(None, unit, None, False, found.reason)
    bounds, counts, count, total = found.value
    value = HistogramJson(list(zip(bounds, counts, strict=True)), count, total)
    return HistogramValueJson(value, unit, age(found.at, now), True)


def _rate(view: EndpointView, row: Rate, now: float) -> SignalValueJson:
    found = rate(view, row.name, now)
    if isinstance(found, Unknown):
        return SignalValueJson(None, row.unit, None, False, found.reason)
    return SignalValueJson(found.value, row.unit, age(found.at, now), True)


# -- accelerators ------------------------------------------------------------------------------------------------------


def _accelerators(accelerators: Accelerators, moment: Moment) -> AcceleratorsJson:
    faults: dict[str, Fault] = {}
    for fault in accelerators.faults:
        faults.setdefault(fault.device, fault)
    now = moment.now
    return AcceleratorsJson(
        accelerators.source,
        accelerators.exporter,
        age(oldest(accelerators), now) if accelerators.devices else None,
        accelerators.stale_after,
        accelerators.picked_on,
        [
            *(_endpoint_device(device, faults.get(device.id), now, lost=False) for device in accelerators.devices),
            *(_endpoint_device(device, faults.get(device.id), now, lost=True) for device in accelerators.lost),
        ],
        accelerators.missing,
        [_ended(each, moment) for each in accelerators.ended],
        {signal: _device_signal(accelerators, signal, now) for signal in COMBINED},
    )


def _ended(ended: EndedFault, moment: Moment) -> EndedFaultJson:
    fault, why, at = ended
    return EndedFaultJson(
        fault.device,
        fault.reason,
        fault.detail,
        age(fault.since, moment.now),
        why,
        rfc3339(moment.wall - age(at, moment.now)),
    )


def _device(device: Device) -> DeviceJson:
    return DeviceJson(
        device.id,
        device.number,
        device.part,
        device.model,
        device.node,
        device.pod,
        device.container,
        device.share,
    )


def _endpoint_device(device: Device, fault: Fault | None, now: float, *, lost: bool) -> EndpointDeviceJson:
    return EndpointDeviceJson(
        device.id,
        device.number,
        device.part,
        device.model,
        device.node,
        device.pod,
        device.container,
        device.share,
        "" if fault is None else fault.reason,
        "" if fault is None else fault.detail,
        None if fault is None else age(fault.since, now),
        lost,
    )


def _device_signal(accelerators: Accelerators, signal: str, now: float) -> SignalValueJson:
    unit = DEVICE_SIGNALS[signal].unit
    found = reading(accelerators, signal, now)
    if isinstance(found, Unknown):
        last = accelerators.readings.get(signal)
        return SignalValueJson(None, unit, None if last is None else age(last.at, now), False, found.reason)
    value = found.value
    return SignalValueJson(None if isinstance(value, frozenset) else value, unit, age(found.at, now), True)


def exporters(views: Sequence[ExporterView], moment: Moment) -> ExportersJson:
    """Every exporter: its health, and which endpoint its devices belong to."""
    return ExportersJson(rfc3339(moment.wall), [_exporter(view, moment.now) for view in views])


def _exporter(view: ExporterView, now: float) -> ExporterJson:
    return ExporterJson(
        view.key.source,
        view.key.address,
        view.key.path,
        view.fresh(now),
        None if view.page_at is None else age(view.page_at, now),
        view.stale_after,
        view.failures,
        view.reason,
        {address: [_device(device) for device in devices] for address, devices in view.joined.items()},
        [_device(device) for device in view.unmatched],
        [_device(device) for device in view.ambiguous],
        {address: [_device(device) for device in devices] for address, devices in view.lost.items()},
        {fault.device: f"{fault.reason}: {fault.detail}" for fault in view.faults},
    )


# -- replicas ----------------------------------------------------------------------------------------------------------


def replicas(view: ReplicasView | None, moment: Moment) -> ReplicasJson:
    """What this replica is, and its peers; empty where there are none."""
    as_of = rfc3339(moment.wall)
    if view is None:
        return ReplicasJson(as_of, False, "", "", "", True, [], [])
    peers = [
        PeerJson(
            each.address,
            each.state,
            each.reason,
            printable(each.detail),
            each.instance,
            printable(each.name),
            printable(each.software),
            None if each.reported_at is None else age(each.reported_at, moment.now),
            dict(each.in_flight) if each.in_flight is not None else None,
        )
        for each in view.peers
    ]
    unknown = [printable(each) for each in view.unknown]
    return ReplicasJson(as_of, True, view.instance, view.name, view.address, not unknown, unknown, peers)


# -- gauges ------------------------------------------------------------------------------------------------------------


def gauges(found: GaugeSet, moment: Moment, name: str = "") -> GaugesJson:
    """Every gauge that an autoscaler could read, or why it is withheld; only those named `name` unless it is empty."""
    rows = [_gauge(gauge, moment) for gauge in found.gauges if _selected(gauge, name)]
    rows += [_withheld(gauge) for gauge in found.withheld if _selected(gauge, name)]
    return GaugesJson(rfc3339(moment.wall), rows)


def _selected(gauge: Gauge | Withheld, name: str) -> bool:
    metric = gauge.metric
    return metric.type == "gauge" and (
        not name or name == metric.name or any(name == each.name for each in metric.aliases)
    )


def _gauge(gauge: Gauge, moment: Moment) -> GaugeJson:
    metric = gauge.metric
    gauge_age = age(gauge.at, moment.now)
    return GaugeJson(
        metric.name,
        [alias.name for alias in metric.aliases],
        _labels(gauge),
        metric.unit,
        gauge.value,
        rfc3339(moment.wall - gauge_age),
        gauge_age,
    )


def _withheld(gauge: Withheld) -> GaugeJson:
    metric = gauge.metric
    aliases = [alias.name for alias in metric.aliases]
    detail = printable(gauge.detail) if gauge.detail else UNSET
    return GaugeJson(metric.name, aliases, _labels(gauge), metric.unit, None, withheld=gauge.reason, detail=detail)


def _labels(gauge: Gauge | Withheld) -> dict[str, str]:
    return dict(zip(gauge.metric.labels, map(printable, gauge.labels), strict=True))
