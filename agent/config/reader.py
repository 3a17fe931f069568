"""Reading a document against the table of options: unknown keys, invalid values and missing ones become problems."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields as fields_of
from difflib import get_close_matches
from typing import Any

from agent.config.epp_settings import EppSettings
from agent.config.nodes import MappingNode, Mark, Node, Problem, SequenceNode, is_null, kind_of
from agent.config.options import MISSING, Option, Scope, Section, SectionList, options, rows
from agent.config.values import InvalidValue, OptionType, suggestion


class DocumentReader:
    """Collects problems, and records the mark of each key for checks that come later. `other_keys` are keys of sections
    that are valid and read elsewhere, by the path of the section; that of the top is empty."""

    def __init__(self, problems: list[Problem], other_keys: Mapping[str, Collection[str]] | None = None) -> None:
        self.problems = problems
        self.other_keys = other_keys or {}
        self.marks: dict[str, Mark] = {}
        # Of lists with entries that are left out: the places of the others in the document.
        self._kept: dict[str, list[int]] = {}

    # -- problems ----------------------------------------------------------------------------------------------------

    def problem(self, mark: Mark, key: str, what: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(mark, key, what))

    def problem_at(self, key: str, what: str, *, place: str = "") -> None:
        """Add a problem with the mark of `place` (default: `key`), or of the innermost key around it that was read."""
        key = self.as_written(key)
        place = self.as_written(place) if place else key
        while place and place not in self.marks:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        self.problem(self.marks.get(place, 0), key, what)

    def as_written(self, key: str) -> str:
        """The key in the document of a key in the configuration, where invalid entries of lists are left out."""
        if not self._kept:
            return key
        written = ""
        for part in re.split(r"(\[\d+\])", key):
            if part.startswith("[") and written in self._kept:
                part = f"[{self._kept[written][int(part[1:-1])]}]"
            written += part
        return written

    def is_written(self, key: str) -> bool:
        """Whether the document has this key."""
        return self.as_written(key) in self.marks

    def spelling(self, key: str) -> str:
        """The key as the user wrote it: the name of the flag that it came from, if any."""
        mark = self.marks.get(key)
        return mark if isinstance(mark, str) else key

    # -- nodes -------------------------------------------------------------------------------------------------------

    def mapping(self, node: Node | None, key: str) -> MappingNode | None:
        """The node if it is a mapping; None when it is absent, empty or something else, which is a problem."""
        if node is None or is_null(node):
            return None
        if isinstance(node, MappingNode):
            return node
        self.problem(
            node.mark, key, f"{kind_of(node)} where a mapping is expected; write its options below it, indented"
        )
        return None

    def items(self, node: Node | None, key: str) -> Iterator[tuple[str, Node]]:
        """The entries of a list, each with its key; none when it is absent or empty."""
        if node is None or is_null(node):
            return
        if not isinstance(node, SequenceNode):
            self.problem(node.mark, key, f"{kind_of(node)} where a list is expected; begin each entry with '- '")
            return
        for place, item in enumerate(node.items):
            path = f"{key}[{place}]"
            self.marks[path] = item.mark
            if is_null(item):
                what = "the comma" if isinstance(item.mark, str) else "its '-'"
                self.problem(item.mark, path, f"an empty entry; write its value, or remove {what}")
            else:
                yield path, item

    def known(self, table: MappingNode, key: str, valid: Collection[str]) -> None:
        """Record the marks of the mapping's keys; one that is not among `valid` is a problem."""
        for found, mark in table.marks.items():
            path = join(key, found)
            self.marks[path] = mark
            if found not in valid:
                self.problem(mark, path, f"unknown key; {suggested_key(found, valid)}")

    def value(self, table: MappingNode, key: str, name: str, type_: OptionType) -> Any:
        """The value of an option, or None when it is absent or invalid."""
        node = table.entries.get(name)
        if node is None:
            return None
        path = join(key, name)
        self.marks[path] = table.marks[name]
        try:
            return type_.read(node)
        except InvalidValue as invalid:
            self.problem(node.mark, path, str(invalid))
            return None

    # -- sections ----------------------------------------------------------------------------------------------------

    def section(
        self,
        type_: type,
        node: Node | None,
        key: str,
        epp: EppSettings,
        outer: Scope | None = None,
    ) -> dict[str, Any]:
        """The fields of a section, defaults and nested sections included; a required option that is missing or invalid
        is left out."""
        table = self.mapping(node, key)
        if table is None:
            table = MappingNode(self.marks.get(key, 0), {}, {})
        else:
            if key:
                self.marks.setdefault(key, table.mark)
            self.known(table, key, [*(row.key for row in rows(type_)), *self.other_keys.get(key, ())])
        fields: dict[str, Any] = {}
        scope = Scope(fields, outer, epp)
        dependent: list[Option] = []
        for option in options(type_):
            path = join(key, option.key)
            if option.required and option.key not in table.entries:
                self.problem(table.mark, path, f"missing; {option.required}")
            value = self._option(option, table, key, epp)
            if value is not None:
                fields[option.field] = value
            elif option.default_from is not None:
                dependent.append(option)
            elif option.default is not MISSING:
                fields[option.field] = option.default
        for option in dependent:
            try:
                fields[option.field] = option.default_from(scope) if option.default_from else option.default
            except InvalidValue as invalid:
                self.problem(table.mark, join(key, option.key), str(invalid))
                fields[option.field] = option.default
        for row in rows(type_):
            path, child = join(key, row.key), table.entries.get(row.key)
            if isinstance(row, SectionList):
                if row.required and child is None:
                    self.problem(table.mark, path, f"missing; {row.required}")
                fields[row.field] = tuple(self._entries(row, child, path, scope))
            elif isinstance(row, Section):
                fields[row.field] = row.type(**self.section(row.type, child, path, epp, scope))
        return fields

    def _option(self, option: Option, table: MappingNode, key: str, epp: EppSettings) -> Any:
        """The value that the document gives an option, in its section or in the EPP part; None for neither.

        For an option of a list's entries the EPP part sets a default; any other must not be set in both places.
        """
        path = join(key, option.key)
        value = self.value(table, key, option.key, option.type)
        imported = epp.imported.get(re.sub(r"\[\d+\]", "[]", path))
        if imported is None:
            return value
        if value is None:
            self.marks[path] = imported.mark
            return imported.value
        if "[" not in path:
            self.problem_at(path, f"also set by {imported.key} on line {imported.mark}; keep one of them")
        return value

    def _entries(self, row: SectionList, node: Node | None, key: str, scope: Scope) -> Iterator[Any]:
        """The sections of a list; an entry without a valid value for a required option is left out."""
        kept: list[int] = []
        for path, item in self.items(node, key):
            entry = item
            if row.shorthand and not isinstance(item, MappingNode):
                entry = MappingNode(item.mark, {row.shorthand: item}, {row.shorthand: item.mark})
            if self.mapping(entry, path) is None:
                continue
            fields = self.section(row.type, entry, path, scope.epp, scope)
            if complete(row.type, fields):
                kept.append(int(path[path.rindex("[") + 1 : -1]))
                yield row.type(**fields)
        if kept != list(range(len(kept))):
            self._kept[key] = kept


def join(key: str, name: str) -> str:
    """The path of a name within the section `key`, which is empty at the top."""
    return f"{key}.{name}" if key else name


def complete(type_: type, fields: Mapping[str, Any]) -> bool:
    """Whether every field without a default is there."""
    return all(
        field.name in fields
        for field in fields_of(type_)
        if field.default is MISSING and field.default_factory is MISSING
    )


def suggested_key(word: str, valid: Collection[str]) -> str:
    """`did you mean 'x'?`, or the list of valid keys, or that there are none."""
    near = get_close_matches(word.replace("_", "").replace("-", "").lower(), [name.lower() for name in valid], 1, 0.7)
    for name in valid:
        if near and name.lower() == near[0]:
            return f"did you mean '{name}'?"
    return suggestion(word, sorted(valid)) if valid else "no key is valid here; remove it"
