"""How the page of an accelerator exporter becomes devices.

A DeviceReader reads the pages of one exporter. What depends on names and labels alone (which devices there are, whose
they are, where each value stands) is worked out once for each layout of the page; a page that is laid out like the last
one costs its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agent.accelerators.device import Device, Devices
from agent.accelerators.table import DEVICE_SIGNALS, OF_THE_CARD, Exporter, PodLabels, Source
from agent.exposition.page import Layout, PageRefused, Scanner, Series, is_metrics
from agent.signals import Refusal


class _Option(NamedTuple):
    """One way to a value: for each sample that is summed, the places of its series (of which the largest counts)."""

    places: tuple[tuple[int, ...], ...]
    scale: float
    per: float


class _Plan(NamedTuple):
    """One device, and where its values stand; those of its hardware where that is not its own. `codes` are places of
    error codes, `counts` of errors of a code."""

    device: Device
    options: Mapping[str, tuple[_Option, ...]]
    of_card: Mapping[str, tuple[_Option, ...]]
    codes: tuple[int, ...]
    counts: tuple[tuple[int, int], ...]


class _Hardware(NamedTuple):
    """What the labels of a series say of the device, whoever uses it."""

    id: tuple[str, ...]
    card: str
    part: str


class DeviceReader:
    """Reads the pages of one exporter; `prefix` stands in front of every name there."""

    __slots__ = ("_exporter", "_layout", "_plans", "_prefix", "_refused", "_scanner", "_whole")

    def __init__(self, exporter: Exporter, prefix: str = "") -> None:
        self._exporter = exporter
        self._prefix = prefix
        self._scanner = Scanner([prefix + name for name in exporter.names()])
        self._layout: Layout | None = None
        self._whole = False
        self._plans: tuple[_Plan, ...] = ()
        self._refused: tuple[Refusal, ...] = ()

    def extract(self, page: bytes, *, whole: bool = False) -> Devices:
        """The page's devices; PageRefused when it cannot be a page of this exporter.

        `whole`: the transport has shown that nothing is missing at the end. A machine whose accelerators nobody uses
        has a good page without a device.
        """
        layout, values = self._scanner.read(page)
        if layout is not self._layout or whole is not self._whole:
            self._learn(page, layout, whole=whole)
            self._layout, self._whole = layout, whole
        refused = list(self._refused)
        devices = tuple(self._device(plan, values, refused) for plan in self._plans)
        told = {signal for device in devices for signal in device.values}
        missing = tuple(signal for signal in self._exporter.sources if signal not in told) if devices else ()
        return Devices(devices, missing, tuple(refused))

    # -- numbers ---------------------------------------------------------------------------------------------------

    def _device(self, plan: _Plan, values: Sequence[float], refused: list[Refusal]) -> Device:
        made: dict[str, float] = {}
        for signal, options in plan.options.items():
            self._let_in(signal, plan.device.id, self._first(options, values), made, refused)
        for signal, options in plan.of_card.items():
            value, own, worse = self._first(options, values), made.get(signal), OF_THE_CARD[signal]
            if own is None:
                self._let_in(signal, plan.device.card, value, made, refused)
            elif worse is not None and value is not None and value - value == 0:
                made[signal] = worse(own, value)
        xids = {self._code(values[place]) for place in plan.codes}
        xids |= {code for place, code in plan.counts if values[place] > 0 and not self._exporter.blank(values[place])}
        return plan.device._replace(values=made, xids=tuple(sorted(xids - {0})))

    def _let_in(
        self, signal: str, whose: str, value: float | None, made: dict[str, float], refused: list[Refusal]
    ) -> None:
        row = DEVICE_SIGNALS[signal]
        if value is None:
            return
        if row.low <= value <= row.high:
            made[signal] = value
        else:
            reason = "out_of_range" if value - value == 0 else "not_finite"
            refused.append(Refusal(signal, reason, f"{value!r} of {whose}"))

    def _first(self, options: Sequence[_Option], values: Sequence[float]) -> float | None:
        """The value by the first option that was measured."""
        return next((value for option in options if (value := self._sum(option, values)) is not None), None)

    def _sum(self, option: _Option, values: Sequence[float]) -> float | None:
        """The option's value, or None where part of it was not measured."""
        total = 0.0
        for places in option.places:
            known = [values[place] for place in places if not self._exporter.blank(values[place])]
            if not known:
                return None
            broken = [value for value in known if value - value != 0]
            total += broken[0] if broken else max(known)
        return total * option.scale / option.per

    def _code(self, value: float) -> int:
        return int(value) if 0 < value < 2**31 and not self._exporter.blank(value) else 0

    # -- names and labels ------------------------------------------------------------------------------------------

    def _learn(self, page: bytes, layout: Layout, *, whole: bool) -> None:
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
            raise PageRefused("truncated", f"the page ends among the series of {layout.last}: which devices follow?")
        self._plans = self._devices(good)
        self._refused = tuple(
            Refusal(signal, *spoilt[name])
            for signal, sources in exporter.sources.items()
            for name in dict.fromkeys(name for source in sources for name in self._prefixed(source.samples))
            if name in spoilt
        )

    def _check(self, page: bytes) -> None:
        """Refuse a page without any wanted sample, unless it is an idle machine's."""
        marks = [(self._prefix + mark).encode() for mark in self._exporter.marks]
        if any(page.startswith(mark) or b"\n" + mark in page for mark in marks):
            return
        if not is_metrics(page):
            raise PageRefused("not_metrics", "no line of the page is in the Prometheus text format")
        names = ", ".join(f"{self._prefix}{mark}..." for mark in self._exporter.marks)
        raise PageRefused("wrong_engine", f"the page has none of the metrics of {self._exporter.name} ({names})")

    def _devices(self, series: Sequence[tuple[int, Series]]) -> tuple[_Plan, ...]:
        rows: dict[_Hardware, list[tuple[int, Series]]] = {}
        for place, one in series:
            hardware = self._hardware(one.labels)
            if hardware is not None:
                rows.setdefault(hardware, []).append((place, one))
        parts: dict[str, set[str]] = {}
        for hardware in rows:
            parts.setdefault(hardware.card, set()).add(hardware.part)
        plans: list[_Plan] = []
        for hardware, mine in rows.items():
            cut = bool(parts[hardware.card] - self._exporter.whole_parts) or len(parts[hardware.card]) > 1
            if cut and not hardware.part:
                continue  # the card itself: its parts are what there is to run on
            whole = [
                row for other, its in rows.items() if other.card == hardware.card and not other.part for row in its
            ]
            plans += self._users(hardware, mine, whole if cut else [], cut=cut)
        return tuple(plans)

    def _hardware(self, labels: Mapping[str, str]) -> _Hardware | None:
        """Which device a series speaks of, or None where it speaks of none, such as a switch."""
        card = _first(labels, self._exporter.card)
        part = labels.get(self._exporter.part, "") if self._exporter.part else ""
        return _Hardware(tuple(labels.get(name, "") for name in self._exporter.id), card, part) if card else None

    def _users(
        self, hardware: _Hardware, mine: Sequence[tuple[int, Series]], card: Sequence[tuple[int, Series]], *, cut: bool
    ) -> list[_Plan]:
        """A device for each pod that uses this hardware; series that name no pod are every pod's."""
        exporter = self._exporter
        pods = {_pod(one.labels, exporter.pods)[0]: _pod(one.labels, exporter.pods)[1] for _, one in mine}
        if len(pods) > 1:
            pods.pop("", None)
        any_labels = mine[0][1].labels
        if cut or len(pods) > 1:
            card = [*mine, *card]  # what ails the hardware ails everybody on it
        plans: list[_Plan] = []
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
            )
            plans.append(self._plan(device, rows, card, cut=cut))
        return plans

    def _plan(
        self, device: Device, rows: Sequence[tuple[int, Series]], card: Sequence[tuple[int, Series]], *, cut: bool
    ) -> _Plan:
        own, of_card = _places(rows), _places(card)
        options: dict[str, tuple[_Option, ...]] = {}
        options_of_card: dict[str, tuple[_Option, ...]] = {}
        for signal, sources in self._exporter.sources.items():
            options[signal] = self._options([source for source in sources if not (cut and source.whole)], own)
            if card and signal in OF_THE_CARD:
                options_of_card[signal] = self._options(sources, of_card)
        both = card or rows
        codes = tuple(place for place, one in both if one.name in self._prefixed(self._exporter.xids))
        counted = {self._prefix + name: label for name, label in self._exporter.xid_counts.items()}
        counts = tuple(
            (place, int(code))
            for place, one in both
            if one.name in counted and (code := one.labels.get(counted[one.name], "")).isdecimal() and len(code) < 6
        )
        return _Plan(device, options, options_of_card, codes, counts)

    def _options(self, sources: Sequence[Source], places: Mapping[str, tuple[int, ...]]) -> tuple[_Option, ...]:
        found = [self._option(source, places) for source in sources]
        return tuple(option for option in found if option is not None)

    def _option(self, source: Source, places: Mapping[str, tuple[int, ...]]) -> _Option | None:
        found = [places.get(name) for name in self._prefixed(source.samples)]
        there = tuple(each for each in found if each is not None)
        return _Option(there, source.scale, source.per) if len(there) == len(found) else None

    def _prefixed(self, names: Sequence[str]) -> list[str]:
        return [self._prefix + name for name in names]


def _places(rows: Sequence[tuple[int, Series]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for place, one in rows:
        found[one.name] = (*found.get(one.name, ()), place)
    return found


def _first(labels: Mapping[str, str], names: Sequence[str]) -> str:
    """The first of these labels that is there and not empty."""
    return next((labels[name] for name in names if labels.get(name)), "")


def _pod(labels: Mapping[str, str], choices: Sequence[PodLabels]) -> tuple[str, str]:
    """`NAMESPACE/POD` and the container, by the first of the choices whose pod label is there; empty where none is."""
    for choice in choices:
        if choice.pod in labels:
            pod, namespace = labels[choice.pod], labels.get(choice.namespace, "")
            return (f"{namespace}/{pod}", labels.get(choice.container, "")) if pod else ("", "")
    return "", ""
