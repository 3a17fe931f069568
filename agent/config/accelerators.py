"""What a pool's `accelerators` entries may hold: where an exporter is, and lists of words and of codes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from agent.config.document import Items, Node, Scalar, as_number, is_null, kind_of
from agent.config.values import AsWritten, Wrong, meant, quote, shown, split_address

NODE: Final = "{node}"
_WORD: Final = re.compile(r"[\x21-\x7e]{1,128}")


def expand(template: str, node: str) -> str:
    """The address that a template stands for on a node, whose name or address (IPv6 without brackets) is given."""
    return template.replace(NODE, f"[{node}]" if ":" in node else node)


@dataclass(frozen=True, slots=True)
class AddressTemplate(AsWritten):
    """`HOST:PORT`, in which `{node}` stands for an endpoint's node."""

    name: str = "HOST:PORT with {node}"

    def read(self, node: Node) -> str:
        """The template."""
        if not isinstance(node, Scalar) or is_null(node):
            raise Wrong(f"{kind_of(node)} is no address; write HOST:PORT, such as '{NODE}:9400' (quoted)")
        host, port = split_address(node.text.replace(NODE, "node"))
        if not host or port == 0:
            raise Wrong(f"{quote(node.text)} leads nowhere; write HOST:PORT, such as '{NODE}:9400' (quoted)")
        return node.text


@dataclass(frozen=True, slots=True)
class Words:
    """A list of words; where `choices` are given, of those, each once."""

    choices: tuple[str, ...] = ()
    name: str = "list of words"

    def read(self, node: Node) -> tuple[str, ...]:
        """The words."""
        if not isinstance(node, Items):
            raise Wrong(f"{kind_of(node)} where a list is wanted; write it as [one, two]")
        for item in node.items:
            if not isinstance(item, Scalar) or is_null(item) or not _WORD.fullmatch(item.text):
                raise Wrong(f"{shown(item)} is no word; write letters, digits and signs without blanks")
            if self.choices and item.text not in self.choices:
                raise Wrong(f"{quote(item.text)} is not known here; {meant(item.text, self.choices)}")
        return tuple(item.text for item in node.items if isinstance(item, Scalar))

    def show(self, value: Any) -> str:
        """`[one, two]`, or `none`."""
        return f"[{', '.join(map(str, value))}]" if value else "none"


@dataclass(frozen=True, slots=True)
class Codes:
    """A list of whole numbers."""

    low: int
    high: int
    name: str = "list of numbers"

    def read(self, node: Node) -> tuple[int, ...]:
        """The numbers, in order."""
        if not isinstance(node, Items):
            raise Wrong(f"{kind_of(node)} where a list is wanted; write it as [48, 79]")
        found: set[int] = set()
        for item in node.items:
            number = as_number(item)
            if number is None or number != int(number) or not self.low <= number <= self.high:
                raise Wrong(f"{shown(item)} is no code; write whole numbers from {self.low} to {self.high}")
            found.add(int(number))
        return tuple(sorted(found))

    def show(self, value: Any) -> str:
        """`[48, 79]`."""
        return f"[{', '.join(map(str, value))}]"
