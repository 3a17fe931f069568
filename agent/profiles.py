"""Profiles as data: which filters, weighted scorers and picker decide, by their types; three of them ready made.

A profile says what decides, not how: `agent.pick.profile` turns it into something that picks, and refuses a type or a
parameter that it does not know. The configuration file makes the same values from its own `schedulingProfiles`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """One plugin of a profile: its type, the name given to it (the type when none was), and its parameters."""

    type: str
    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """A profile: filters in order, scorers with their weights; the highest weighted sum is picked."""

    name: str
    filters: tuple[PluginSpec, ...]
    scorers: tuple[tuple[PluginSpec, float], ...]


def plugin(type_: str, **parameters: object) -> PluginSpec:
    """A plugin spec that is named after its type."""
    return PluginSpec(type_, type_, parameters)


LEAST_COST: Final = ProfileSpec(
    "least-cost",
    (),
    ((plugin("least-cost-scorer"), 1.0), (plugin("lora-affinity-scorer"), 1.0)),
)
AFFINITY: Final = ProfileSpec(
    "affinity",
    (plugin("prefix-cache-affinity-filter", affinityThreshold=0.8, maxTTFTPenaltyMs=5000),),
    ((plugin("token-load-scorer"), 1.0), (plugin("lora-affinity-scorer"), 1.0)),
)
BLEND: Final = ProfileSpec(
    "blend",
    (),
    (
        (plugin("queue-scorer"), 2.0),
        (plugin("kv-cache-utilization-scorer"), 2.0),
        (plugin("prefix-cache-scorer"), 3.0),
        (plugin("lora-affinity-scorer"), 1.0),
    ),
)
DEFAULT_PROFILE: Final = "least-cost"
PRESETS: Final[Mapping[str, ProfileSpec]] = {spec.name: spec for spec in (AFFINITY, BLEND, LEAST_COST)}
