"""Devices from the pages of one accelerator exporter.

Everything that depends on names and labels alone (which devices there are, which pod uses them, where their values are)
is computed once per layout of a page; another page with the same layout only costs its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agent.accelerators.device import XIDS, Device, Devices
from agent.accelerators.table import CARD_WIDE, DEVICE_SIGNALS, AcceleratorExporter, FieldSource, PodLabels
from agent.exposition.page import NO_SAMPLES, Layout, PageRefused, Scanner, Series, describes, has_samples, is_metrics
from agent.signals import RefusedValue


class _Alternative(NamedTuple):
    """A source on this page: for each sample of the sum, the places of its series (the largest value is used)."""

    places: tuple[tuple[int, ...], ...]
    scale: float
    per: float


class _DevicePlan(NamedTuple):
    """One device, and the places of its values; `of_card` are those of its card, if it is a part. `codes` are the
    places of error codes, `counts` those of error counts, with the code; `errors`: the exporter reports errors at all.
    """

    device: Device
    alternatives: Mapping[str, tuple[_Alternative, ...]]
    of_card: Mapping[str, tuple[_Alternative, ...]]
    codes: tuple[int, ...]
    counts: tuple[tuple[int, int], ...]
    errors: bool


class _Hardware(NamedTuple):
    """The device in the labels of a series, without the pod that uses it. `share`: which of several users it is."""

    id: tuple[str, ...]
    card: str
    part: str
    share: str


class DeviceReader:
    """Reads the pages of one exporter; `prefix` precedes all metric names there."""

    __slots__ = ("_exporter", "_layout", "_plans", "_prefix", "_refused", "_scanner", "_whole")

    def __init__(self, exporter: AcceleratorExporter, prefix: str = "") -> None:
        self._exporter = exporter
        self._prefix = prefix
        self._scanner = Scanner([prefix + name for name in exporter.names()])
        self._layout: Layout | None = None
        self._whole = False
        self._plans: tuple[_DevicePlan, ...] = ()
        self._refused: tuple[RefusedValue, ...] = ()

    def extract(self, page: bytes, *, whole: bool = False) -> Devices:
        """The page's devices; PageRefused when it is not a page of this exporter.

        `whole`: the transport showed that the page is complete. The page of a node without accelerators in use is valid
        and has no device.
        """
        layout, values = self._scanner.read(page)
        if layout is not self._layout or whole is not self._whole:
            self._make_plans(page, layout, whole=whole)
            self._layout, self._whole = layout, whole
        refused = list(self._refused)
        devices = tuple(self._device(plan, values, refused) for plan in self._plans)
        reported = {signal for device in devices for signal in device.values}
        missing = tuple(signal for signal in self._exporter.sources if signal not in reported) if devices else ()
        return Devices(devices, missing, tuple(refused))

    # -- numbers ---------------------------------------------------------------------------------------------------

    def _device(self, plan: _DevicePlan, values: Sequence[float], refused: list[RefusedValue]) -> Device:
        made: dict[str, float] = {}
        for signal, alternatives in plan.alternatives.items():
            self._add_value(signal, plan.device.id, self._first(alternatives, values), made, refused)
        for signal, alternatives in plan.of_card.items():
            value, own, worse = self._first(alternatives, values), made.get(signal), CARD_WIDE[signal]
            if own is None:
                self._add_value(signal, plan.device.card, value, made, refused)
            elif worse is not None and value is not None and value - value == 0:
                made[signal] = worse(own, value)
        xids = {self._code(values[place]) for place in plan.codes}
        xids |= {code for place, code in plan.counts if values[place] > 0 and not self._exporter.blank(values[place])}
        unknown = [signal for signal in self._exporter.verdicts if signal not in made]
        if plan.errors and not any(values[place] == 0 for place in plan.codes) and not xids - {0}:
            unknown.append(XIDS)
        return plan.device._replace(values=made, xids=tuple(sorted(xids - {0})), unknown=tuple(unknown))

    def _add_value(
        self, signal: str, owner: str, value: float | None, made: dict[str, float], refused: list[RefusedValue]
    ) -> None:
        row = DEVICE_SIGNALS[signal]
        if value is None:
            return
        if row.low <= value <= row.high:
            made[signal] = value
        else:
            reason = "out_of_range" if value - value == 0 else "not_finite"
            refused.append(RefusedValue(signal, reason, f"{value!r} of {owner}"))

    def _first(self, alternatives: Sequence[_Alternative], values: Sequence[float]) -> float | None:
        """The value of the first alternative that was measured."""
        return next((value for each in alternatives if (value := self._sum(each, values)) is not None), None)

    def _sum(self, alternative: _Alternative, values: Sequence[float]) -> float | None:
        """The alternative's value, or None where a part of it was not measured."""
        total = 0.0
        for places in alternative.places:
            known = [values[place] for place in places if not self._exporter.blank(values[place])]
            if not known:
                return None
            broken = [value for value in known if value - value != 0]
            total += broken[0] if broken else max(known)
        return total * alternative.scale / alternative.per

    def _code(self, value: float) -> int:
        return int(value) if 0 < value < 2**31 and not self._exporter.blank(value) else 0

    # -- names and labels ------------------------------------------------------------------------------------------

    def _make_plans(self, page: bytes, layout: Layout, *, whole: bool) -> None:
        self._plans, self._refused = (), ()
        exporter = self._exporter
        if not layout.series and not layout.bad:
            self._check(page)
            return
        spoilt = {line.name: ("bad_line", line.text) for line in layout.bad}
        if not whole and layout.last:
            spoilt.setdefault(layout.last, ("cut_off", layout.last))
        seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        for series in layout.series:
            key = series.name, frozenset(series.labels.items())
            if key in seen:
                spoilt.setdefault(series.name, ("duplicate_series", series.text))
            seen.add(key)
        good: list[tuple[int, Series]] = []
        for place, series in enumerate(layout.series):
            if series.name not in spoilt:
                labels = {name.lower(): text for name, text in series.labels.items()} if exporter.any_case else None
                good.append((place, series if labels is None else series._replace(labels=labels)))
        if not good and not whole:
            raise PageRefused("truncated", f"the page may be cut off after a series of {layout.last}")
        self._plans = self._devices(good)
        self._refused = tuple(
            RefusedValue(signal, *spoilt[name])
            for signal, sources in exporter.sources.items()
            for name in dict.fromkeys(name for source in sources for name in self._prefixed(source.samples))
            if name in spoilt
        )

    def _check(self, page: bytes) -> None:
        """Refuse a page without wanted samples, unless it is that of an idle node."""
        beginnings = [(self._prefix + prefix).encode() for prefix in self._exporter.prefixes]
        if any(page.startswith(beginning) or b"\n" + beginning in page for beginning in beginnings):
            return
        if not is_metrics(page):
            raise PageRefused("not_metrics", "no line of the page is in the Prometheus text format")
        if not has_samples(page) or describes(page, [self._prefix + prefix for prefix in self._exporter.prefixes]):
            raise PageRefused("empty", NO_SAMPLES)
        names = ", ".join(f"{self._prefix}{prefix}..." for prefix in self._exporter.prefixes)
        raise PageRefused("wrong_engine", f"the page has no metrics of {self._exporter.name} ({names})")

    def _devices(self, series: Sequence[tuple[int, Series]]) -> tuple[_DevicePlan, ...]:
        rows: dict[_Hardware, list[tuple[int, Series]]] = {}
        for place, one in series:
            hardware = self._hardware(one.labels)
            if hardware is not None:
                rows.setdefault(hardware, []).append((place, one))
        parts: dict[str, set[str]] = {}
        for hardware in rows:
            parts.setdefault(hardware.card, set()).add(hardware.part)
        plans: list[_DevicePlan] = []
        for hardware, mine in rows.items():
            several = bool(parts[hardware.card] - self._exporter.whole_parts) or len(parts[hardware.card]) > 1
            if several and not hardware.part:
                continue  # the card itself: only its parts are devices
            cut = several or self._cut_by_label(mine[0][1].labels)
            whole = [
                row
                for other, its in rows.items()
                if other.card == hardware.card and other.part in {"", hardware.part}
                for row in its
            ]
            plans += self._users(hardware, mine, whole if cut or hardware.share else [], cut=cut)
        return tuple(plans)

    def _hardware(self, labels: Mapping[str, str]) -> _Hardware | None:
        """The device of a series, or None where it is not of a device, such as that of a switch."""
        card = _first(labels, self._exporter.card)
        part = labels.get(self._exporter.part, "") if self._exporter.part else ""
        share = _first(labels, self._exporter.shares)
        return _Hardware(tuple(labels.get(name, "") for name in self._exporter.id), card, part, share) if card else None

    def _cut_by_label(self, labels: Mapping[str, str]) -> bool:
        """Whether a label says that the device is a part of its card."""
        return any(labels.get(name, "").lower() not in whole for name, whole in self._exporter.cut.items())

    def _users(
        self, hardware: _Hardware, mine: Sequence[tuple[int, Series]], card: Sequence[tuple[int, Series]], *, cut: bool
    ) -> list[_DevicePlan]:
        """One device for each pod that uses this hardware; series without a pod belong to all of them. What several
        users share is measured for all of them together."""
        exporter = self._exporter
        pods = {_pod(one.labels, exporter.pods)[0]: _pod(one.labels, exporter.pods)[1] for _, one in mine}
        if len(pods) > 1:
            pods.pop("", None)
        any_labels = mine[0][1].labels
        share = f"share {hardware.share}" if hardware.share else "several pods" if len(pods) > 1 else ""
        if cut or share:
            card = [*mine, *card]  # a fault of the hardware affects all its users
        plans: list[_DevicePlan] = []
        for pod, container in pods.items():
            rows = [row for row in mine if _pod(row[1].labels, exporter.pods)[0] in {"", pod}]
            device = Device(
                "/".join(text for text in hardware.id if text),
                hardware.card,
                {},
                number=any_labels.get(exporter.number, "") if exporter.number else "",
                part=hardware.part if cut else "",
                model=_first(any_labels, exporter.model),
                node=_first(any_labels, exporter.node),
                pod=pod,
                container=container,
                share=share,
            )
            plans.append(self._plan(device, rows, card, cut=cut))
        return plans

    def _plan(
        self, device: Device, rows: Sequence[tuple[int, Series]], card: Sequence[tuple[int, Series]], *, cut: bool
    ) -> _DevicePlan:
        own, of_card = _places(rows), _places(card)
        alternatives: dict[str, tuple[_Alternative, ...]] = {}
        of_card_alternatives: dict[str, tuple[_Alternative, ...]] = {}
        for signal, sources in self._exporter.sources.items():
            possible = [source for source in sources if not (cut and source.whole_card)]
            if not device.share or signal in CARD_WIDE:
                alternatives[signal] = self._alternatives(possible, own)
            if card and signal in CARD_WIDE:
                of_card_alternatives[signal] = self._alternatives(sources, of_card)
        both = card or rows
        codes = tuple(place for place, one in both if one.name in self._prefixed(self._exporter.xids))
        counted = {self._prefix + name: label for name, label in self._exporter.xid_counts.items()}
        counts = tuple(
            (place, int(code))
            for place, one in both
            if one.name in counted and (code := one.labels.get(counted[one.name], "")).isdecimal() and len(code) < 6
        )
        errors = bool(self._exporter.xids or self._exporter.xid_counts)
        return _DevicePlan(device, alternatives, of_card_alternatives, codes, counts, errors)

    def _alternatives(
        self, sources: Sequence[FieldSource], places: Mapping[str, tuple[int, ...]]
    ) -> tuple[_Alternative, ...]:
        found = [self._alternative(source, places) for source in sources]
        return tuple(each for each in found if each is not None)

    def _alternative(self, source: FieldSource, places: Mapping[str, tuple[int, ...]]) -> _Alternative | None:
        found = [places.get(name) for name in self._prefixed(source.samples)]
        there = tuple(each for each in found if each is not None)
        return _Alternative(there, source.scale, source.per) if len(there) == len(found) else None

    def _prefixed(self, names: Sequence[str]) -> list[str]:
        return [self._prefix + name for name in names]


def _places(rows: Sequence[tuple[int, Series]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for place, one in rows:
        found[one.name] = (*found.get(one.name, ()), place)
    return found


def _first(labels: Mapping[str, str], names: Sequence[str]) -> str:
    """The value of the first of these labels that is present and not empty."""
    return next((labels[name] for name in names if labels.get(name)), "")


def _pod(labels: Mapping[str, str], choices: Sequence[PodLabels]) -> tuple[str, str]:
    """`NAMESPACE/POD` and the container, by the first choice whose pod label is present; empty where none is."""
    for choice in choices:
        if choice.pod in labels:
            pod, namespace = labels[choice.pod], labels.get(choice.namespace, "")
            return (f"{namespace}/{pod}", labels.get(choice.container, "")) if pod else ("", "")
    return "", ""
