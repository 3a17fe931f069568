"""A profile that is ready to pick, built from one as data (`agent.profiles`): names resolved, parameters checked."""

from __future__ import annotations

from typing import NamedTuple

from agent.pick.filters import FILTERS, Filter
from agent.pick.parameters import BadParameter
from agent.pick.scorers import SCORERS, scorer
from agent.pick.scoring import Weighted
from agent.profiles import PluginSpec, ProfileSpec


class BadProfile(ValueError):
    """A profile that cannot be built; `problems` are sentences that name the plugin and say what to write."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Profile(NamedTuple):
    """The rule of a pool: filters in order, then weighted scorers."""

    name: str
    filters: tuple[tuple[str, Filter], ...]
    scorers: tuple[Weighted, ...]


def build(spec: ProfileSpec) -> Profile:
    """The profile that `spec` describes; `BadProfile` lists every problem."""
    problems: list[str] = []
    filters: list[tuple[str, Filter]] = []
    scorers: list[Weighted] = []
    for plugin in spec.filters:
        make = FILTERS.get(plugin.type)
        if make is None:
            problems.append(_unknown(plugin, "filter", sorted(FILTERS)))
            continue
        try:
            filters.append((plugin.name, make(plugin.parameters)))
        except BadParameter as bad:
            problems.append(f"{plugin.name}: {bad}")
    for plugin, weight in spec.scorers:
        if plugin.type not in SCORERS:
            problems.append(_unknown(plugin, "scorer", sorted(SCORERS)))
            continue
        if not 0 <= weight < float("inf"):
            problems.append(f"{plugin.name}: weight is {weight!r}: write a number that is not negative")
            continue
        try:
            scorers.append(Weighted(scorer(plugin.type, plugin.parameters), weight))
        except BadParameter as bad:
            problems.append(f"{plugin.name}: {bad}")
    if not scorers and not problems:
        problems.append(f"profile {spec.name} has no scorer: write at least one of {', '.join(sorted(SCORERS))}")
    if problems:
        raise BadProfile(problems)
    return Profile(spec.name, tuple(filters), tuple(scorers))


def _unknown(plugin: PluginSpec, kind: str, valid: list[str]) -> str:
    return f"{plugin.name}: there is no {kind} of type {plugin.type!r}: it can be {', '.join(valid)}"
