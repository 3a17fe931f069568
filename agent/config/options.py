"""How a section of the file is declared: the fields of a frozen dataclass, each with its row of the table of options.

A field is an option (`option`), a nested section (`section`) or a list of sections (`sections`); sections nest to any
depth. The reader, the difference of two configurations, docs/reference/configuration.md and the JSON Schema walk these
rows. The field `stale_after` is the key `staleAfter`; a field without a row is not read from the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

from agent.config.epp_settings import EppSettings
from agent.config.values import OptionType

_ROW: Final = "row"
MISSING: Final = dataclasses.MISSING  # no default


class Scope(NamedTuple):
    """What the default of an option may depend on: the fields of its section that were read before it, those of the
    sections around it, and the EPP part of the document."""

    own: Mapping[str, Any]
    outer: Scope | None
    epp: EppSettings

    @property
    def around(self) -> Mapping[str, Any]:
        """The fields of the section around this one."""
        return self.outer.own if self.outer is not None else {}


# The default of an option that depends on others. Raises `InvalidValue` where the option is required after all.
DefaultFrom = Callable[[Scope], Any]


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a section. `required`: what to write where it is missing; `unset`: what a default that is
    not a value means; `vocabulary`: the field of `Vocabulary` that lists the valid names."""

    field: str
    type: OptionType
    meaning: str
    default: Any
    default_text: str
    default_from: DefaultFrom | None
    unset: str
    required: str
    live: bool
    vocabulary: str

    @property
    def key(self) -> str:
        """The option's key in the file."""
        return camel(self.field)

    def show(self, value: Any) -> str:
        """A value as text."""
        return self.unset if self.unset and value == self.default else self.type.show(value)

    def default_in_words(self) -> str:
        """The default for the documentation, in Markdown."""
        if self.required:
            return "required"
        return self.default_text or self.unset or f"`{self.type.show(self.default)}`"


@dataclass(frozen=True, slots=True)
class Section:
    """A section within a section."""

    field: str
    type: type
    meaning: str

    @property
    def key(self) -> str:
        """The section's key in the file."""
        return camel(self.field)


@dataclass(frozen=True, slots=True)
class SectionList:
    """A list of sections. `identity` is the field that identifies an entry (empty: its place); an entry that is not a
    mapping is the value of the option `shorthand`; `required` says what to write where the list is missing."""

    field: str
    type: type
    meaning: str
    identity: str
    shorthand: str
    required: str

    @property
    def key(self) -> str:
        """The list's key in the file."""
        return camel(self.field)


Row = Option | Section | SectionList


def option(
    type_: OptionType,
    meaning: str,
    default: Any = MISSING,
    *,
    default_text: str = "",
    default_from: DefaultFrom | None = None,
    unset: str = "",
    required: str = "",
    live: bool = True,
    vocabulary: str = "",
) -> Any:
    """A field that is an option. `live`: a reload can change it; `default_text`: the default where it depends on other
    options, in Markdown; the rest as in `Option`."""
    row = Option("", type_, meaning, default, default_text, default_from, unset, required, live, vocabulary)
    return dataclasses.field(metadata={_ROW: row}, **({} if default is MISSING else {"default": default}))


def section(type_: type, meaning: str) -> Any:
    """A field that is a nested section; its options have defaults."""
    return dataclasses.field(default_factory=type_, metadata={_ROW: Section("", type_, meaning)})


def sections(type_: type, meaning: str, *, identity: str = "", shorthand: str = "", required: str = "") -> Any:
    """A field that is a list of sections, a tuple; empty by default."""
    row = SectionList("", type_, meaning, identity, shorthand, required)
    return dataclasses.field(default=(), metadata={_ROW: row})


@cache
def rows(section_type: type) -> tuple[Row, ...]:
    """The rows of a section: its options, then what is nested in it."""
    found: list[Row] = [
        dataclasses.replace(field.metadata[_ROW], field=field.name)
        for field in dataclasses.fields(section_type)
        if _ROW in field.metadata
    ]
    return tuple(sorted(found, key=lambda row: not isinstance(row, Option)))


def options(section_type: type) -> tuple[Option, ...]:
    """The options of a section, without those of nested sections."""
    return tuple(row for row in rows(section_type) if isinstance(row, Option))


def all_options(section_type: type, path: str = "") -> Iterator[tuple[str, Option]]:
    """Every option of a section and of those nested in it, with its path, such as `pools[].endpoints[].address`."""
    for row in rows(section_type):
        here = f"{path}.{row.key}" if path else row.key
        if isinstance(row, Option):
            yield here, row
        else:
            yield from all_options(row.type, here if isinstance(row, Section) else f"{here}[]")


def camel(field: str) -> str:
    """`stale_after` -> `staleAfter`, `default_request_ttl` -> `defaultRequestTTL`."""
    first, *rest = field.split("_")
    return first + "".join("TTL" if word == "ttl" else word.capitalize() for word in rest)
