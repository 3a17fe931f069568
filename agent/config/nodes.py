"""The nodes of a YAML document, with the line of each, and the problems that are reported with them.

Scalars keep their text: what it means is decided where the option's type is known, so that `1e3`, `on` or `12:30` never
turn into something else on the way. A node's mark is its line, or the name of the flag that it came from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

MAX_KEY: Final = 200  # characters of a key in a message

Mark = int | str


class Problem(NamedTuple):
    """One problem: its line (or the flag's name), its key, and what is wrong with what to write instead."""

    mark: Mark
    key: str
    what: str


class BadConfig(Exception):
    """A configuration that is refused; `problems` holds every problem, in the order of the file."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name = name
        self.problems = tuple(problems)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line for each problem: `FILE:LINE: key: what is wrong; what to write`, or `--flag: what`."""
        return [self._line(problem) for problem in self.problems]

    def _line(self, problem: Problem) -> str:
        if isinstance(problem.mark, str):
            return f"{problem.mark}: {problem.what}"
        place = f"{self.name}:{problem.mark}" if problem.mark else self.name
        key = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in problem.key[:MAX_KEY])
        return f"{place}: {key}: {problem.what}" if key else f"{place}: {problem.what}"


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A single value as text; a `quoted` one is never a number, a truth value or null."""

    mark: Mark
    text: str
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """A list."""

    mark: Mark
    items: list[Node]


@dataclass(frozen=True, slots=True)
class MappingNode:
    """A mapping; `marks` holds the mark of each key."""

    mark: Mark
    entries: dict[str, Node]
    marks: dict[str, Mark]


Node = ScalarNode | SequenceNode | MappingNode

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NUMBER: Final = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def is_null(node: Node) -> bool:
    """True for an empty value."""
    return isinstance(node, ScalarNode) and not node.quoted and node.text in _NULL


def as_bool(node: Node) -> bool | None:
    """The truth value of an unquoted scalar, or None."""
    return _BOOL.get(node.text) if isinstance(node, ScalarNode) and not node.quoted else None


def as_number(node: Node) -> float | None:
    """The finite number of an unquoted scalar, or None."""
    if not isinstance(node, ScalarNode) or node.quoted or len(node.text) > 64 or not _NUMBER.fullmatch(node.text):
        return None
    value = float(node.text)
    return value if value - value == 0 else None


def kind_of(node: Node) -> str:
    """What a node is, for a message: `a mapping`, `a list`, `empty`, `a truth value`, `a number` or `text`."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    if is_null(node):
        return "empty"
    if as_bool(node) is not None:
        return "a truth value"
    return "a number" if as_number(node) is not None else "text"


def plain(node: Node) -> Any:
    """The node as plain Python values: dict, list, str, float, bool or None."""
    if isinstance(node, MappingNode):
        return {key: plain(value) for key, value in node.entries.items()}
    if isinstance(node, SequenceNode):
        return [plain(item) for item in node.items]
    if is_null(node):
        return None
    truth, number = as_bool(node), as_number(node)
    return truth if truth is not None else number if number is not None else node.text
