"""The values that the EPP part of a document sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent.config.nodes import Mark
from agent.engine_specs import ENGINE_LABELS, EngineSpec
from agent.profiles import ProfileSpec


class ImportedOption(NamedTuple):
    """A value for one of the agent's own options that the EPP part sets, with the key and the mark of its source."""

    value: Any
    mark: Mark
    key: str


@dataclass(slots=True)
class EppSettings:
    """The EPP part of a document: profiles and engines by name, values for the agent's own options by path (such as
    `prefixIndex.blockTokens`), the types of the entries of `plugins` by their names, and notes on what has no
    effect."""

    profiles: dict[str, ProfileSpec] = field(default_factory=dict)
    imported: dict[str, ImportedOption] = field(default_factory=dict)
    engines: dict[str, EngineSpec] = field(default_factory=dict)
    engine_labels: tuple[str, ...] = ENGINE_LABELS
    plugin_types: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
