"""YAML text -> nodes. The only reader of YAML.

A configuration file is plain data: no tags, no aliases (nested aliases expand exponentially), no second document, no
duplicate key, and limits on size and depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import yaml

from agent.config.nodes import MappingNode, Node, Problem, ScalarNode, SequenceNode, kind_of

MAX_BYTES: Final = 256 * 1024  # a thousand endpoints are 30 kB
MAX_DEPTH: Final = 32


def compose(text: str, problems: list[Problem]) -> MappingNode | None:
    """The document's top mapping, or None when there is none; problems are appended to `problems`."""
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
        # A character that YAML forbids, or an escape or a version number out of Python's range.
        problems.append(Problem(0, "", f"not YAML: {str(error).splitlines()[0]}"))
        return None
    except _Unreadable as stop:
        problems.append(Problem(stop.line, "", stop.what))
        return None
    if root is None:
        problems.append(Problem(0, "", "the file is empty; write an EndpointPickerConfig document"))
        return None
    if not isinstance(root, MappingNode):
        problems.append(Problem(root.mark, "", f"the file is {kind_of(root)}; write a mapping of keys"))
        return None
    return root


class _Unreadable(Exception):
    """A construct after which the rest of the file cannot be interpreted."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


class _OpenNode:
    """A list or mapping whose end event has not been read."""

    __slots__ = ("key", "node")

    def __init__(self, node: SequenceNode | MappingNode) -> None:
        self.node = node
        self.key: ScalarNode | None = None


def _compose(events: Iterator[Any], problems: list[Problem]) -> Node | None:
    root: Node | None = None
    stack: list[_OpenNode] = []
    documents = 0
    for event in events:
        line: int = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _Unreadable(line, "a second document begins here; write one document per file")
            continue
        if isinstance(event, yaml.AliasEvent):
            raise _Unreadable(line, f"aliases are not supported; write out the value of *{event.anchor}")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _Unreadable(line, f"tags are not supported; remove {tag}")
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            value: str = event.value
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise _Unreadable(line, "a lone surrogate; write the character itself")
            node = ScalarNode(line, value, event.style is not None)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = SequenceNode(line, [])
        elif isinstance(event, yaml.MappingStartEvent):
            node = MappingNode(line, {}, {})
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            stack.pop()
            continue
        else:
            continue
        if stack:
            _add(stack[-1], node, problems)
        else:
            root = node
        if not isinstance(node, ScalarNode):
            if len(stack) == MAX_DEPTH:
                raise _Unreadable(line, f"more than {MAX_DEPTH} levels deep; no option is that deep")
            stack.append(_OpenNode(node))
    return root


def _add(parent: _OpenNode, node: Node, problems: list[Problem]) -> None:
    """Add a node to the innermost open list or mapping."""
    if isinstance(parent.node, SequenceNode):
        parent.node.items.append(node)
    elif parent.key is None:
        if not isinstance(node, ScalarNode):
            raise _Unreadable(int(node.mark), f"{kind_of(node)} is used as a key; write a name")
        parent.key = node
    else:
        key, parent.key = parent.key, None
        if key.text in parent.node.entries:
            first = parent.node.marks[key.text]
            problems.append(Problem(key.mark, key.text, f"duplicate key; the first is on line {first}; keep one"))
            return
        parent.node.entries[key.text] = node
        parent.node.marks[key.text] = key.mark
