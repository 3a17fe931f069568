"""NVIDIA's XID errors: what each means, and its remedy.

Source: NVIDIA's Xid catalogue (docs.nvidia.com/deploy/xid-errors, "Resolution Bucket (Immediate Action)"). Buckets that
are work flows (45, 48, 74) end, where their first steps do not help, in the remedy that is written here.

Exporters report the last error of a card, or count errors for a while. Neither is a state: an error stays on the page
when its remedy was applied, and leaves it when a later error, however harmless, takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final


class Remedy(StrEnum):
    """What ends the consequences of an error."""

    RESTART_APPLICATION = "restart the application"
    RESET_GPU = "reset the GPU"
    REBOOT = "reboot the machine"
    SUPPORT = "drain the machine and contact NVIDIA"
    NONE = "none needed"


def _remedies(rows: Iterable[tuple[Remedy, Iterable[int]]]) -> dict[int, Remedy]:
    return {code: remedy for remedy, codes in rows for code in codes}


REMEDIES: Final[Mapping[int, Remedy]] = _remedies(
    (
        (
            Remedy.RESTART_APPLICATION,
            (8, 11, 13, 25, 31, 32, 39, 40, 41, 60, *range(68, 73), 75, 76, 77, 80, *range(82, 87), 88, 89, 94),
        ),
        (Remedy.RESTART_APPLICATION, (*range(96, 106), *range(126, 136), 139)),
        (Remedy.RESET_GPU, (46, 48, 62, 64, 74, 95, 109, 110, 119, 120, 136, 140, 143)),
        (Remedy.REBOOT, (79,)),
        (Remedy.NONE, (14, 37, 38, 43, 44, 45, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141)),
    )
)
# Errors of the hardware after which a card cannot serve: unhealthy by default. Codes that a program can cause by itself
# (13, 31, 43, 45, 68 and others) are not. Neither is 63: the bad row is out of use, and the catalogue ignores it.
FATAL_XIDS: Final[Mapping[int, str]] = {
    48: "double bit ECC error",
    64: "a bad memory row could not be replaced",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "the GPU's system processor does not respond",
    120: "the GPU's system processor failed",
}


def remedy_of(code: int) -> Remedy:
    """The remedy of an error; for a code that is not in the catalogue, or that it does not explain, support."""
    return REMEDIES.get(code, Remedy.SUPPORT)


def meaning_of(code: int) -> str:
    """What a fatal error means."""
    return FATAL_XIDS.get(code, "fatal by configuration")
