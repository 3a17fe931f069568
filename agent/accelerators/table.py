"""What an accelerator exporter is: a table, and what is read of a device whatever its maker calls it.

A page has one series per device and quantity, so a table says which labels tell one device from another, which name
its pod and its node, and which samples make each signal. What is physical belongs to a card; a card may be cut into
parts (MIG instances, partitions), each of which is a device of its own to whoever runs on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from agent.signals import Kind, Signal

UTILIZATION: Final = "accelerator_utilization_ratio"
MEMORY_USED: Final = "accelerator_memory_used_bytes"
MEMORY_TOTAL: Final = "accelerator_memory_total_bytes"
POWER: Final = "accelerator_power_watts"
TEMPERATURE: Final = "accelerator_temperature_celsius"
ECC: Final = "accelerator_uncorrected_ecc_errors"
REMAP_FAILED: Final = "accelerator_row_remap_failed"
WELL: Final = "accelerator_well"

_BYTES_MAX: Final = 2.0**50
_ROWS: Final = (
    Signal(UTILIZATION, "ratio", Kind.GAUGE, 0, 1, "part of the time in which anything ran: busy, not how busy"),
    Signal(MEMORY_USED, "bytes", Kind.GAUGE, 0, _BYTES_MAX, "device memory in use; servers take most of it at start"),
    Signal(MEMORY_TOTAL, "bytes", Kind.GAUGE, 1, _BYTES_MAX, "device memory that there is"),
    Signal(POWER, "watts", Kind.GAUGE, 0, 1e4, "power drawn"),
    Signal(TEMPERATURE, "celsius", Kind.GAUGE, -50, 250, "temperature of the chip"),
    Signal(ECC, "errors", Kind.GAUGE, 0, 2.0**63, "uncorrected memory errors since the driver was loaded"),
    Signal(REMAP_FAILED, "boolean", Kind.GAUGE, 0, 2.0**31, "above 0: a bad memory row could not be replaced"),
    Signal(WELL, "boolean", Kind.GAUGE, 0, 1, "the exporter's own verdict on the device, 1 is well"),
)
DEVICE_SIGNALS: Final[Mapping[str, Signal]] = {row.name: row for row in _ROWS}


class Combine(StrEnum):
    """How the devices of one endpoint make one value."""

    MAX = "the largest"
    SUM = "the sum"


# Ranks of one server work in step, so the busiest device says how busy the server is; heat has no sum either.
COMBINED: Final[Mapping[str, Combine]] = {
    UTILIZATION: Combine.MAX,
    MEMORY_USED: Combine.SUM,
    MEMORY_TOTAL: Combine.SUM,
    POWER: Combine.SUM,
    TEMPERATURE: Combine.MAX,
    ECC: Combine.SUM,
}
# What holds for every part of a card when it holds for the card; of two values the worse counts, where one is worse.
OF_THE_CARD: Final[Mapping[str, Callable[[float, float], float] | None]] = {
    TEMPERATURE: None,
    ECC: max,
    REMAP_FAILED: max,
    WELL: min,
}

# Why a value on a good page is not let in, one word each.
REFUSALS: Final[Mapping[str, str]] = {
    "not_finite": "the value is NaN or infinite",
    "out_of_range": "the value cannot be true for this signal",
    "bad_line": "a series of it cannot be read",
    "duplicate_series": "a series of it stands on the page twice",
    "cut_off": "more series of it may have followed the page's last line",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Samples whose sum, times `scale` and over `per`, is the signal; all of them must be there. `whole`: true of a
    whole card only, so that a part has no such value."""

    samples: tuple[str, ...]
    scale: float = 1.0
    per: float = 1.0
    whole: bool = False


@dataclass(frozen=True, slots=True)
class PodLabels:
    """The labels that name who uses a device."""

    namespace: str
    pod: str
    container: str


@dataclass(frozen=True, slots=True)
class Exporter:
    """One kind of accelerator exporter.

    `sources` say of each signal which samples it may come from, the best first, and `silent` why there is none. `id`
    are the labels that tell devices apart; of `card`, `model` and `node` the first label that is there counts, and of
    `pods` the first whose pod label is there. `part` names a part of a card; parts called as in `whole_parts` are the
    whole card where it has no other. `xids` are samples whose value is the last error code, `xid_counts` those that
    count the errors of the code in a label. `blanks` are ranges of numbers that stand for "not measured".
    `any_case`: releases differ in the case of labels. `marks` begin lines of every such page.
    """

    name: str
    marks: tuple[str, ...]
    port: int
    sources: Mapping[str, tuple[Source, ...]]
    silent: Mapping[str, str]
    id: tuple[str, ...]
    card: tuple[str, ...]
    model: tuple[str, ...]
    node: tuple[str, ...]
    pods: tuple[PodLabels, ...]
    number: str = ""
    part: str = ""
    whole_parts: frozenset[str] = frozenset({""})
    xids: tuple[str, ...] = ()
    xid_counts: Mapping[str, str] = field(default_factory=dict)
    blanks: tuple[tuple[float, float], ...] = ()
    any_case: bool = False

    def names(self) -> list[str]:
        """Every sample that is read, once each."""
        found = [name for sources in self.sources.values() for source in sources for name in source.samples]
        return list(dict.fromkeys([*found, *self.xids, *self.xid_counts]))

    def blank(self, value: float) -> bool:
        """Whether this number stands for "not measured"."""
        return any(low <= value <= high for low, high in self.blanks)
