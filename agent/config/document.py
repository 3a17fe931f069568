"""YAML text -> nodes that know where they stand. The only reader of YAML.

A configuration file is plain data: no tags, no aliases (an alias of an alias is how a page of text becomes gigabytes),
no second document, no key twice, and bounds on size and depth. Scalars keep their text; what they mean is decided
where it is known what is wanted, so that `1e3`, `on` or `12:30` never turn into something else on the way. A node's
mark is the line on which it begins, or the name of the flag that it came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import yaml

MAX_BYTES: Final = 256 * 1024  # a thousand endpoints are 30 kB
MAX_DEPTH: Final = 32
MAX_KEY: Final = 200  # characters of a key in a message

Mark = int | str


class Problem(NamedTuple):
    """One thing that is wrong: where (a line, or a flag's name), at which key, and what, with what to write instead."""

    mark: Mark
    key: str
    what: str


class BadConfig(Exception):
    """A configuration that is refused; `problems` holds all that is wrong with it, in the order of the file."""

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
class Scalar:
    """A single value as it was written; `quoted` when it can only be text."""

    mark: Mark
    text: str
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    mark: Mark
    items: list[Node]


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping; `marks` says where each key stands."""

    mark: Mark
    entries: dict[str, Node]
    marks: dict[str, Mark]


Node = Scalar | Items | Table

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NUMBER: Final = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def is_null(node: Node) -> bool:
    """True for a value that was left empty."""
    return isinstance(node, Scalar) and not node.quoted and node.text in _NULL


def as_bool(node: Node) -> bool | None:
    """The truth value that an unquoted scalar stands for, or None."""
    return _BOOL.get(node.text) if isinstance(node, Scalar) and not node.quoted else None


def as_number(node: Node) -> float | None:
    """The number that an unquoted scalar stands for, or None. Neither NaN nor infinity is a number here."""
    if not isinstance(node, Scalar) or node.quoted or len(node.text) > 64 or not _NUMBER.fullmatch(node.text):
        return None
    value = float(node.text)
    return value if value - value == 0 else None


def kind_of(node: Node) -> str:
    """What a node is, in a word for a message."""
    if isinstance(node, Table):
        return "a mapping"
    if isinstance(node, Items):
        return "a list"
    if is_null(node):
        return "empty"
    if as_bool(node) is not None:
        return "a truth value"
    return "a number" if as_number(node) is not None else "text"


def plain(node: Node) -> Any:
    """The node as plain Python values: dict, list, str, float, bool or None."""
    if isinstance(node, Table):
        return {key: plain(value) for key, value in node.entries.items()}
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    if is_null(node):
        return None
    truth, number = as_bool(node), as_number(node)
    return truth if truth is not None else number if number is not None else node.text


class _Open:
    """A list or mapping whose end has not come yet."""

    __slots__ = ("key", "node")

    def __init__(self, node: Items | Table) -> None:
        self.node = node
        self.key: Scalar | None = None


def compose(text: str, problems: list[Problem]) -> Table | None:
    """The file's top mapping, or None when there is none; what is wrong is added to `problems`."""
    if len(text) > MAX_BYTES:
        problems.append(
            Problem(0, "", f"the file is larger than {MAX_BYTES // 1024} KiB; split the pools between agents")
        )
        return None
    try:
        root = _compose(yaml.parse(text, Loader=yaml.SafeLoader), problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        if r"'\t'" in what:
            what = "a tab; indent with spaces"
        problems.append(Problem(mark.line + 1 if mark else 0, "", f"not YAML: {what}"))
        return None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # A character that YAML does not allow, or an escape or a version number beyond what Python can hold.
        problems.append(Problem(0, "", f"not YAML: {str(error).splitlines()[0]}"))
        return None
    except _Stop as stop:
        problems.append(Problem(stop.line, "", stop.what))
        return None
    if root is None:
        problems.append(Problem(0, "", "the file is empty; write an EndpointPickerConfig document"))
        return None
    if not isinstance(root, Table):
        problems.append(Problem(root.mark, "", f"the file is {kind_of(root)}; write a mapping of keys"))
        return None
    return root


class _Stop(Exception):
    """Nothing after this point of the file can be trusted."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


def _compose(events: Iterator[Any], problems: list[Problem]) -> Node | None:
    root: Node | None = None
    stack: list[_Open] = []
    documents = 0
    for event in events:
        line: int = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _Stop(line, "a second document begins here; write one document to a file")
            continue
        if isinstance(event, yaml.AliasEvent):
            raise _Stop(line, f"aliases are not read; write the value of *{event.anchor} out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _Stop(line, f"tags are not read; remove {tag}")
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            value: str = event.value
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise _Stop(line, "half a character (a lone surrogate); write the character itself")
            node = Scalar(line, value, event.style is not None)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Items(line, [])
        elif isinstance(event, yaml.MappingStartEvent):
            node = Table(line, {}, {})
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            stack.pop()
            continue
        else:
            continue
        if stack:
            _place(stack, node, problems)
        else:
            root = node
        if not isinstance(node, Scalar):
            if len(stack) == MAX_DEPTH:
                raise _Stop(line, f"deeper than {MAX_DEPTH} levels; no option lies that deep")
            stack.append(_Open(node))
    return root


def _place(stack: list[_Open], node: Node, problems: list[Problem]) -> None:
    """Put a node where it belongs in the innermost open list or mapping."""
    top = stack[-1]
    if isinstance(top.node, Items):
        top.node.items.append(node)
    elif top.key is None:
        if not isinstance(node, Scalar):
            raise _Stop(int(node.mark), f"{kind_of(node)} is used as a key; write a name")
        top.key = node
    else:
        key, top.key = top.key, None
        if key.text in top.node.entries:
            first = top.node.marks[key.text]
            problems.append(
                Problem(
                    key.mark,
                    key.text,
                    f"the key stands here for the second time; the first is on line {first}; keep one",
                )
            )
            return
        top.node.entries[key.text] = node
        top.node.marks[key.text] = key.mark
