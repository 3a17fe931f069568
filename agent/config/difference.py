"""The difference of two configurations: what a reload changes, and what cannot change without a restart."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from agent.config.addresses import split_address
from agent.config.config import Config
from agent.config.options import Option, Section, SectionList, rows


class NeedsRestart(Exception):
    """A change that a running agent cannot make; the text has the change and what to do."""


def differences(old: Config, new: Config) -> list[str]:
    """The changes in words, such as `pools[chat].profile blend -> affinity`. Raises `NeedsRestart`."""
    found = _Differences()
    found.section(Config, "", old, new)
    found.named("profiles", old.profiles, new.profiles)
    found.named("engines", *({spec.name: spec for spec in config.engines} for config in (old, new)))
    found.refused += _taken_ports(old, new)
    if found.refused:
        raise NeedsRestart(
            f"needs a restart: {', '.join(sorted(found.refused))}; "
            "nothing was changed: restart the agent, or undo this change"
        )
    return found.live


def _taken_ports(old: Config, new: Config) -> list[str]:
    """New pools that listen where a removed pool still does."""
    before, after = {pool.name: pool for pool in old.pools}, {pool.name: pool for pool in new.pools}
    removed, added = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    return [
        f"pools[{name}].extProcAddress is that of the removed pool {gone}"
        for gone, name in product(removed, added)
        if (address := after[name].ext_proc_address) == before[gone].ext_proc_address and split_address(address)[1] != 0
    ]


class _Differences:
    """The changes that were found: those that a reload makes, and those that it refuses."""

    def __init__(self) -> None:
        self.live: list[str] = []
        self.refused: list[str] = []

    def section(self, type_: type, path: str, old: Any, new: Any) -> None:
        """Compare two sections of a type."""
        for row in rows(type_):
            before, after = getattr(old, row.field), getattr(new, row.field)
            here = f"{path}.{row.key}" if path else row.key
            if before == after:
                continue
            if isinstance(row, Option):
                changes = self.live if row.live else self.refused
                changes.append(f"{here} {row.show(before)} -> {row.show(after)}")
            elif isinstance(row, Section):
                self.section(row.type, here, before, after)
            else:
                self._list(row, here, before, after)

    def _list(self, row: SectionList, path: str, old: tuple[Any, ...], new: tuple[Any, ...]) -> None:
        if not row.identity:
            self.live.append(f"{path} changed")
            return
        before = {getattr(entry, row.identity): entry for entry in old}
        after = {getattr(entry, row.identity): entry for entry in new}
        moved = [f"+{name}" for name in after if name not in before] + [
            f"-{name}" for name in before if name not in after
        ]
        if moved:
            self.live.append(f"{path} {' '.join(moved)}")
        for name, entry in after.items():
            if name in before:
                self.section(row.type, f"{path}[{name}]", before[name], entry)

    def named(self, what: str, old: Mapping[str, object], new: Mapping[str, object]) -> None:
        """Compare definitions by name."""
        self.live += [f"{what} -{name}" for name in old if name not in new]
        self.live += [f"{what} +{name}" for name in new if name not in old]
        self.live += [f"{what}[{name}] changed" for name, spec in new.items() if name in old and old[name] != spec]
