"""An accelerator exporter: the table of its metrics; and the device signals, which are independent of the vendor.

A page has one series per device and quantity. So the table has the labels that identify a device, its pod and its node,
and the samples of each signal. Physical quantities belong to a card; a card may be divided into parts (MIG
instances, partitions), each of which is a device of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from agent.signals import Signal, SignalKind

UTILIZATION: Final = "accelerator_utilization_ratio"
MEMORY_USED: Final = "accelerator_memory_used_bytes"
MEMORY_TOTAL: Final = "accelerator_memory_total_bytes"
POWER: Final = "accelerator_power_watts"
TEMPERATURE: Final = "accelerator_temperature_celsius"
ECC: Final = "accelerator_uncorrected_ecc_errors"
REMAP_FAILED: Final = "accelerator_row_remap_failed"
HEALTHY: Final = "accelerator_healthy"

_BYTES_MAX: Final = 2.0**50
_ROWS: Final = (
    Signal(UTILIZATION, "ratio", SignalKind.GAUGE, 0, 1, "fraction of the time in which any kernel ran, not its load"),
    Signal(
        MEMORY_USED, "bytes", SignalKind.GAUGE, 0, _BYTES_MAX, "device memory in use; servers allocate most at start"
    ),
    Signal(MEMORY_TOTAL, "bytes", SignalKind.GAUGE, 1, _BYTES_MAX, "device memory in total"),
    Signal(POWER, "watts", SignalKind.GAUGE, 0, 1e4, "power draw"),
    Signal(TEMPERATURE, "celsius", SignalKind.GAUGE, -50, 250, "temperature of the chip"),
    Signal(ECC, "errors", SignalKind.GAUGE, 0, 2.0**63, "uncorrected memory errors since the driver was loaded"),
    Signal(REMAP_FAILED, "boolean", SignalKind.GAUGE, 0, 2.0**31, "above 0: a bad memory row could not be replaced"),
    Signal(HEALTHY, "boolean", SignalKind.GAUGE, 0, 1, "the exporter's own verdict on the device, 1 is healthy"),
)
DEVICE_SIGNALS: Final[Mapping[str, Signal]] = {row.name: row for row in _ROWS}


class DeviceCombination(StrEnum):
    """How the values of an endpoint's devices are combined."""

    MAX = "maximum"
    SUM = "sum"


# Ranks of one server run in lockstep, so the busiest device is the server's utilization. Temperatures have no sum.
COMBINED: Final[Mapping[str, DeviceCombination]] = {
    UTILIZATION: DeviceCombination.MAX,
    MEMORY_USED: DeviceCombination.SUM,
    MEMORY_TOTAL: DeviceCombination.SUM,
    POWER: DeviceCombination.SUM,
    TEMPERATURE: DeviceCombination.MAX,
    ECC: DeviceCombination.SUM,
}
# Signals of a card that hold for each of its parts, with the function that selects the worse of the card's and the
# part's value (None: the part's value is used).
CARD_WIDE: Final[Mapping[str, Callable[[float, float], float] | None]] = {
    TEMPERATURE: None,
    ECC: max,
    REMAP_FAILED: max,
    HEALTHY: min,
}

# Why a value on a good page is refused.
REFUSALS: Final[Mapping[str, str]] = {
    "not_finite": "the value is NaN or infinite",
    "out_of_range": "the value is outside the valid range of the signal",
    "bad_line": "one of its series cannot be parsed",
    "duplicate_series": "one of its series is on the page twice",
    "cut_off": "the page may be cut off after this signal's last series",
}


@dataclass(frozen=True, slots=True)
class FieldSource:
    """Samples whose sum, times `scale` and divided by `per`, is the signal; all of them must be on the page.

    `whole_card`: measured for whole cards only, so that a part has no such value.
    """

    samples: tuple[str, ...]
    scale: float = 1.0
    per: float = 1.0
    whole_card: bool = False


@dataclass(frozen=True, slots=True)
class PodLabels:
    """The labels with the pod that uses a device."""

    namespace: str
    pod: str
    container: str


@dataclass(frozen=True, slots=True)
class AcceleratorExporter:
    """One kind of accelerator exporter.

    `sources`: of each signal, in the order of preference. `silent`: why a signal without a source has none, where there
    is more to say than that the exporter does not report it. The labels `id` together identify a device; of the labels
    `card`, `model` and `node` the first one present is used, of `pods` the first whose pod label is present. The label
    `part` identifies a part of a card; a part in `whole_parts` is the whole card if it has no other part. A label of
    `cut` says how a card is cut, and with which texts (in lower case) it is not. A label of `shares` identifies one of
    several users of the same card or part: its values are measured for all of them. `xids` are
    samples with the code of the last error as their value, `xid_counts` those that count errors of the code in a label.
    `blanks` are ranges of numbers that stand for "not measured". `any_case`: releases differ in the case of labels.
    `prefixes`: names on every page of the exporter begin with one of them.
    """

    name: str
    prefixes: tuple[str, ...]
    port: int
    sources: Mapping[str, tuple[FieldSource, ...]]
    id: tuple[str, ...]
    card: tuple[str, ...]
    model: tuple[str, ...]
    node: tuple[str, ...]
    pods: tuple[PodLabels, ...]
    silent: Mapping[str, str] = field(default_factory=dict)
    number: str = ""
    part: str = ""
    whole_parts: frozenset[str] = frozenset({""})
    cut: Mapping[str, frozenset[str]] = field(default_factory=dict)
    shares: tuple[str, ...] = ()
    xids: tuple[str, ...] = ()
    xid_counts: Mapping[str, str] = field(default_factory=dict)
    blanks: tuple[tuple[float, float], ...] = ()
    any_case: bool = False

    def names(self) -> list[str]:
        """Every sample name that is read, once each."""
        found = [name for sources in self.sources.values() for source in sources for name in source.samples]
        return list(dict.fromkeys([*found, *self.xids, *self.xid_counts]))

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The signals of this exporter that say whether a device is well."""
        return tuple(signal for signal in (ECC, REMAP_FAILED, HEALTHY) if signal in self.sources)

    def blank(self, value: float) -> bool:
        """Whether this number means "not measured"."""
        return any(low <= value <= high for low, high in self.blanks)

    def why_silent(self, signal: str) -> str:
        """Why its page has no such signal; empty where it has one."""
        return "" if signal in self.sources else self.silent.get(signal, f"{self.name} does not report it")
