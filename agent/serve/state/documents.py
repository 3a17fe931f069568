"""The documents of the shared state endpoint: snapshots and gauge sets as JSON. Pure.

No document carries a raw monotonic time, which means nothing outside the process. A time is given twice: as an age in
seconds at the document's `as_of`, and `as_of` itself both as wall time, for people, and as `uptime_seconds`, seconds
since the agent's epoch began, for programs: on that line the documents of one epoch stand in true order and distance
even when somebody sets the wall clock. The `prefill_seconds` ahead are those at `as_of`; they shrink by a second a
second, down to 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from agent.scaling.gauges import age
from agent.scaling.rates import rate
from agent.scaling.rollup import Unknown, current, histogram
from agent.serve.state import accelerators as device_json
from agent.signals import HISTOGRAMS, PREFIX_HITS, SIGNALS, Value
from agent.state.counter_rates import RATES, Rate
from agent.state.snapshot import EndpointView, Snapshot
from exporters.catalog import CATALOG
from exporters.gauge import Gauge, GaugeSet, Withheld

Json = dict[str, Any]
# What `/v1/gauges?name=` takes.
GAUGE_NAMES: Final = tuple(
    name
    for row in CATALOG.values()
    if row.type == "gauge" and row.origin == "state"
    for name in (row.name, *(alias.name for alias in row.aliases))
)
_UNITS: Final = tuple((name, row.unit) for name, row in SIGNALS.items())


class Moment(NamedTuple):
    """An instant on three clocks: monotonic, wall (seconds since 1970), and seconds since the epoch began."""

    now: float
    wall: float
    uptime: float


def rfc3339(wall: float) -> str:
    """`2026-11-23T01:02:03.456789Z`."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def header(epoch: str, version: int, moment: Moment) -> Json:
    """What every document begins with."""
    return {
        "epoch": epoch,
        "version": version,
        "as_of": rfc3339(moment.wall),
        "uptime_seconds": moment.uptime,
    }


def state(epoch: str, version: int, snapshots: Sequence[Snapshot], moment: Moment) -> Json:
    """Every endpoint of these pools."""
    document = header(epoch, version, moment)
    document["pools"] = [
        {"pool": snapshot.pool, "endpoints": [endpoint(view, moment.now) for view in snapshot.endpoints]}
        for snapshot in snapshots
    ]
    return document


def endpoint(view: EndpointView, now: float) -> Json:
    """One endpoint: its health, the agent's own work there, and every signal, null with a reason where unknown."""
    work = view.work
    predicted, measured = view.prefix
    if isinstance(current(view, PREFIX_HITS, now), Unknown):
        measured = None
    return {
        "address": view.address,
        "engine": view.engine,
        "health": view.health.value,
        "reason": view.reason,
        "page_age_seconds": None if view.page_at is None else age(view.page_at, now),
        "failures": view.failures,
        "stale_after_seconds": view.stale_after,
        "work": {
            "requests": work.requests,
            "prefill_seconds": work.prefill_seconds(now),
            "prefill_tokens": work.prefill_tokens(now),
            "rate_tokens_per_second": work.rate,
            "rate_source": work.rate_source,
            "corrected": work.corrected,
        },
        "prefix": {
            "predicted_hit_tokens": predicted,
            "measured_hit_tokens": measured,
            "gap_tokens": None if measured is None else predicted - measured,
        },
        "signals": {name: _signal(view, name, unit, now) for name, unit in _UNITS},
        "histograms": {name: _histogram(view, name, now) for name in view.histograms},
        "rates": {row.name: _rate(view, row, now) for row in RATES.values()},
        "accelerators": device_json.of_endpoint(view.accelerators, now),
    }


def _signal(view: EndpointView, name: str, unit: str, now: float) -> Json:
    reading = view.reading(name)
    known_age = None if reading is None else age(reading.at, now)
    found = current(view, name, now)
    if isinstance(found, Unknown):
        return {"value": None, "unit": unit, "age_seconds": known_age, "fresh": False, "reason": found.reason}
    return {"value": _plain(found.value), "unit": unit, "age_seconds": known_age, "fresh": True}


def _histogram(view: EndpointView, name: str, now: float) -> Json:
    told = histogram(view, name, now)
    unit = HISTOGRAMS[name].unit
    if isinstance(told, Unknown):
        return {"value": None, "unit": unit, "age_seconds": None, "fresh": False, "reason": told.reason}
    bounds, counts, total, whole = told.value
    value = {"buckets": list(map(list, zip(bounds, counts, strict=True))), "count": total, "sum": whole}
    return {"value": value, "unit": unit, "age_seconds": age(told.at, now), "fresh": True}


def _rate(view: EndpointView, row: Rate, now: float) -> Json:
    found = rate(view, row.name, now)
    if isinstance(found, Unknown):
        return {"value": None, "unit": row.unit, "age_seconds": None, "fresh": False, "reason": found.reason}
    return {"value": found.value, "unit": row.unit, "age_seconds": age(found.at, now), "fresh": True}


def _plain(value: Value) -> float | list[str]:
    return sorted(map(printable, value)) if isinstance(value, frozenset) else value


def printable(text: str) -> str:
    """Text that JSON in UTF-8 can carry: half of a surrogate pair becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class Change(NamedTuple):
    """What became of one pool between two documents: views that are new or different, and addresses that are gone."""

    pool: str
    changed: Sequence[EndpointView]
    removed: Sequence[str]


def differences(
    before: Mapping[str, Mapping[str, EndpointView]], after: Mapping[str, Mapping[str, EndpointView]]
) -> tuple[list[Change], list[str]]:
    """The pools in which something changed, and the pools that are gone; both arguments are pool -> address -> view.

    Views are equal when everything in them is; the same object, which is the common case, costs no comparison.
    """
    changes = []
    for pool, views in after.items():
        known = before.get(pool, {})
        changed = [view for address, view in views.items() if known.get(address) != view]
        removed = sorted(known.keys() - views.keys())
        if changed or removed or pool not in before:
            changes.append(Change(pool, changed, removed))
    return changes, sorted(before.keys() - after.keys())


def change(
    epoch: str, since: int, version: int, changes: Sequence[Change], gone: Sequence[str], moment: Moment
) -> Json:
    """What makes the state at `version` of a state at `since` or later: whole endpoints, never parts of one."""
    document = header(epoch, version, moment)
    document["since"] = since
    document["pools"] = [
        {
            "pool": each.pool,
            "changed": [endpoint(view, moment.now) for view in each.changed],
            "removed": list(each.removed),
        }
        for each in changes
    ]
    document["removed_pools"] = list(gone)
    return document


def gauges(found: GaugeSet, moment: Moment, name: str = "") -> Json:
    """Every gauge that an autoscaler could read, or why it is withheld; only those called `name` if one is given."""
    rows = [_gauge(gauge, moment) for gauge in found.gauges if _wanted(gauge, name)]
    rows += [_withheld(gauge) for gauge in found.withheld if _wanted(gauge, name)]
    return {"as_of": rfc3339(moment.wall), "gauges": rows}


def _wanted(gauge: Gauge | Withheld, name: str) -> bool:
    metric = gauge.metric
    return metric.type == "gauge" and (
        not name or name == metric.name or any(name == each.name for each in metric.aliases)
    )


def _described(gauge: Gauge | Withheld) -> Json:
    metric = gauge.metric
    return {
        "name": metric.name,
        "aliases": [alias.name for alias in metric.aliases],
        "labels": dict(zip(metric.labels, map(printable, gauge.labels), strict=True)),
        "unit": metric.unit,
    }


def _gauge(gauge: Gauge, moment: Moment) -> Json:
    old = age(gauge.at, moment.now)
    return _described(gauge) | {
        "value": gauge.value,
        "sample_time": rfc3339(moment.wall - old),
        "age_seconds": old,
    }


def _withheld(gauge: Withheld) -> Json:
    return _described(gauge) | {"value": None, "withheld": gauge.reason}
