"""Profiles as data: filters and weighted scorers by type. Three profiles are built in.

`agent.pick.profile` builds a profile that can pick, and refuses unknown types and parameters. The configuration turns
`schedulingProfiles` into the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """A plugin of a profile: its type, its name (by default the type), and its parameters."""

    type: str
    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """A profile: filters in order, and weighted scorers. The endpoint with the highest weighted sum is picked."""

    name: str
    filters: tuple[PluginSpec, ...]
    scorers: tuple[tuple[PluginSpec, float], ...]


def plugin(type_: str, **parameters: object) -> PluginSpec:
    """A plugin whose name is its type."""
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
