"""What Kubernetes says of an endpoint, written by hand: its labels, its pod, its node.

The bounds are those of Kubernetes: a label's key is an optional DNS prefix and a name, its value at most 63 characters;
names of pods, nodes and namespaces are DNS names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from agent.config.document import Node, Scalar, Table, is_null, kind_of
from agent.config.values import AsWritten, Wrong, quote, shown, text_of

LabelPairs = tuple[tuple[str, str], ...]

_WORD: Final = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY: Final = re.compile(rf"(?:[a-z0-9](?:[a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_WORD}")
_VALUE: Final = re.compile(rf"(?:{_WORD})?")
_DNS: Final = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
_POD: Final = re.compile(rf"{_DNS}/{_DNS}")
# Nodes are also machines that Kubernetes does not know: a host name in any case, or an address.
_NODE: Final = re.compile(r"[A-Za-z0-9:](?:[A-Za-z0-9.:_-]{0,251}[A-Za-z0-9:])?")


def is_label_key(text: str) -> bool:
    """Whether Kubernetes would take this as the key of a label."""
    return _KEY.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Labels:
    """A mapping of label keys to values, kept as pairs in the order of the keys."""

    name: str = "labels"

    def read(self, node: Node) -> LabelPairs:
        """The pairs."""
        if not isinstance(node, Table):
            raise Wrong(f"{kind_of(node)} where labels are wanted; write a mapping, such as {{app: chat}}")
        pairs: list[tuple[str, str]] = []
        for key, value in node.entries.items():
            if not is_label_key(key):
                raise Wrong(f"{quote(key)} is no label key; write a name, or PREFIX/NAME with a DNS name as the prefix")
            if not isinstance(value, Scalar):
                raise Wrong(f"the value of {quote(key)} is {kind_of(value)}; write a word")
            text = "" if is_null(value) else value.text
            if not _VALUE.fullmatch(text):
                raise Wrong(
                    f"{quote(text)}, the value of {quote(key)}, is no label value; "
                    "write letters, digits, '-', '_' and '.', at most 63 of them"
                )
            pairs.append((key, text))
        return tuple(sorted(pairs))

    def show(self, value: Any) -> str:
        """`{a: b, c: d}`."""
        return "{" + ", ".join(f"{key}: {text}" for key, text in value) + "}"


@dataclass(frozen=True, slots=True)
class PodName(AsWritten):
    """`NAMESPACE/POD`: the name of a pod alone does not tell it from another namespace's."""

    name: str = "NAMESPACE/POD"

    def read(self, node: Node) -> str:
        """The name with its namespace."""
        text = text_of(node)
        if not _POD.fullmatch(text):
            raise Wrong(f"{shown(node)} is no pod; write NAMESPACE/POD, such as default/vllm-0")
        return text


@dataclass(frozen=True, slots=True)
class NodeName(AsWritten):
    """The name or the address of a machine."""

    name: str = "node"

    def read(self, node: Node) -> str:
        """The name."""
        text = text_of(node)
        if not _NODE.fullmatch(text):
            raise Wrong(f"{shown(node)} is no node; write the name or the address of a machine")
        return text
