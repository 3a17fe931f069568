"""The types of options: how a value is read from a node, written back, and described as JSON Schema.

A type reads a node into a value or raises `InvalidValue`, whose text ends in what to write. Durations and sizes carry
their unit in the file; as values they are seconds and bytes.

The schema of a type accepts everything that `read` accepts. It also accepts some values that `read` refuses: a schema
cannot limit the range of a duration or of a size with a unit.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from agent.config.nodes import MappingNode, Node, ScalarNode, SequenceNode, as_bool, as_number, is_null, kind_of

LabelPairs = tuple[tuple[str, str], ...]

NO_HEALTH_PATH: Final = "none"


class InvalidValue(Exception):
    """A refused value; the text says what is wrong; what to write."""


class OptionType(ABC):
    """The type of an option's value."""

    __slots__ = ()

    @abstractmethod
    def holds(self) -> str:
        """The type in a word for the documentation."""

    @abstractmethod
    def read(self, node: Node) -> Any:
        """The node's value. Raises `InvalidValue`."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of what the file may hold."""

    def show(self, value: Any) -> str:
        """A value as text of the file."""
        return str(value)

    def written(self, value: Any) -> Any:
        """A value as JSON data that the schema accepts."""
        return self.show(value)


def suggestion(word: str, valid: Sequence[str]) -> str:
    """`did you mean 'x'?` when a valid value is similar, else the list of valid values."""
    near = get_close_matches(word, valid, 1, 0.6) or get_close_matches(word.lower(), valid, 1, 0.6)
    return f"did you mean '{near[0]}'?" if near else f"valid values: {', '.join(valid)}"


def quote(text: str) -> str:
    """Text of the file, shortened for a message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def text_of(node: Node) -> str:
    """The text of a scalar; empty for null and for other nodes."""
    return node.text if isinstance(node, ScalarNode) and not is_null(node) else ""


def describe(node: Node) -> str:
    """A node for a message: its quoted text, or its kind."""
    return quote(node.text) if isinstance(node, ScalarNode) and not is_null(node) else kind_of(node)


def text_schema(pattern: str, *others: str) -> dict[str, Any]:
    """The schema of a text; `others` are the types of unquoted scalars whose text is accepted as well."""
    return {"type": ["string", *others] if others else "string", "pattern": f"^(?:{pattern})$"}


# -- numbers -----------------------------------------------------------------------------------------------------------

_DURATION: Final = r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+"
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# The units of Kubernetes (resource.Quantity), and K and B besides.
_SIZE: Final = r"([0-9]+(?:\.[0-9]+)?(?:[eE][0-9]{1,2})?) ?(k|[KMGT]i?)?B?"
_BYTES: Final = {
    "": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_COUNT: Final = r"([0-9]{1,15}(?:[eE][0-9]{1,2})?)([kMG])?"
_ZERO: Final = r"0(?:\.0*)?[A-Za-z]{0,3}"
_MAX_QUANTITY: Final = 32  # characters of a duration or a size


def show_duration(seconds: float) -> str:
    """`0.5` -> `500ms`, `90` -> `90s`, `120` -> `2m`."""
    if seconds >= 3600 and seconds % 3600 == 0:
        return f"{seconds / 3600:g}h"
    if seconds >= 60 and seconds % 60 == 0:
        return f"{seconds / 60:g}m"
    return f"{seconds * 1000:g}ms" if 0 < seconds < 1 else f"{seconds:g}s"


@dataclass(frozen=True, slots=True)
class Duration(OptionType):
    """`50ms`, `1s`, `1m30s`; `low` and `high` are in seconds."""

    low: float
    high: float

    def holds(self) -> str:
        """`duration`."""
        return "duration"

    def read(self, node: Node) -> float:
        """Seconds."""
        if not isinstance(node, ScalarNode) or is_null(node):
            raise InvalidValue(f"{kind_of(node)} is not a duration; write a number with its unit, such as 500ms or 2m")
        if as_number(node) is not None:
            raise InvalidValue(
                f"{node.text} has no unit; write {node.text}s for seconds or {node.text}ms for milliseconds"
            )
        if len(node.text) > _MAX_QUANTITY or not re.fullmatch(_DURATION, node.text):
            raise InvalidValue(
                f"{quote(node.text)} is not a duration; write a number with its unit, such as 500ms or 2m"
            )
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(node.text))
        if seconds < self.low:
            raise InvalidValue(f"{node.text} is too short; write {show_duration(self.low)} or more")
        if seconds > self.high:
            raise InvalidValue(f"{node.text} is too long; write {show_duration(self.high)} or less")
        return seconds

    def schema(self) -> dict[str, Any]:
        """A pattern; the range is in the description."""
        span = f"From {show_duration(self.low)} to {show_duration(self.high)}."
        return {**text_schema(_DURATION), "maxLength": _MAX_QUANTITY, "description": span}

    def show(self, value: Any) -> str:
        """The duration with its unit."""
        return show_duration(value)


def show_size(size: float) -> str:
    """`16777216` -> `16MiB`; bytes where the size is not a whole number of KiB."""
    for unit in ("Gi", "Mi", "Ki"):
        if size >= _BYTES[unit] and size % _BYTES[unit] == 0:
            return f"{size / _BYTES[unit]:g}{unit}B"
    return f"{size:.0f}"


@dataclass(frozen=True, slots=True)
class Size(OptionType):
    """`16MiB`, `16Mi`, `500KB` or a plain number of bytes; `low` and `high` are in bytes."""

    low: int
    high: int

    def holds(self) -> str:
        """`size`."""
        return "size"

    def read(self, node: Node) -> int:
        """Bytes."""
        match = (
            re.fullmatch(_SIZE, node.text) if isinstance(node, ScalarNode) and len(node.text) <= _MAX_QUANTITY else None
        )
        if match is None or not isinstance(node, ScalarNode):
            raise InvalidValue(f"{describe(node)} is not a size; write a number with its unit, such as 512KiB or 16MiB")
        size = float(match[1]) * _BYTES[match[2] or ""]
        if size < self.low:
            raise InvalidValue(f"{node.text} is too small; write {show_size(self.low)} or more")
        if size > self.high:
            raise InvalidValue(f"{node.text} is too large; write {show_size(self.high)} or less")
        return int(size)

    def schema(self) -> dict[str, Any]:
        """A number of bytes with its range, or a pattern; the range is in the description."""
        return {
            **text_schema(_SIZE, "number"),
            "maxLength": _MAX_QUANTITY,
            "minimum": self.low,
            "maximum": self.high,
            "description": f"From {show_size(self.low)} to {show_size(self.high)}.",
        }

    def show(self, value: Any) -> str:
        """The size with its unit."""
        return show_size(value)


NO_BOUND: Final = "0 would let nothing wait, and is no bound in llm-d's router; leave it out, or write 1 or more"


@dataclass(frozen=True, slots=True)
class SizeBound(Size):
    """A size that bounds what may wait."""

    def read(self, node: Node) -> int:
        """Bytes."""
        if isinstance(node, ScalarNode) and re.fullmatch(_ZERO, node.text):
            raise InvalidValue(NO_BOUND)
        return Size.read(self, node)


@dataclass(frozen=True, slots=True)
class Bound(OptionType):
    """A whole number from `low` to `high` that bounds something: `5000` or `5k`, also as text, as Kubernetes has it."""

    low: int
    high: int

    def holds(self) -> str:
        """`number`."""
        return "number"

    def read(self, node: Node) -> int:
        """The number."""
        match = re.fullmatch(_COUNT, node.text) if isinstance(node, ScalarNode) else None
        if match is None:
            raise InvalidValue(f"{describe(node)} is not a whole number; write one from {self.low}, such as 500 or 5k")
        value = int(float(match[1])) * _BYTES[match[2] or ""]
        if value == 0:
            raise InvalidValue(NO_BOUND)
        if not self.low <= value <= self.high:
            raise InvalidValue(f"{describe(node)} is out of range; write a number from {self.low} to {self.high}")
        return value

    def schema(self) -> dict[str, Any]:
        """A number with its range, or a pattern."""
        return {**text_schema(_COUNT, "integer"), "minimum": self.low, "maximum": self.high}

    def written(self, value: Any) -> Any:
        """The number itself."""
        return value


@dataclass(frozen=True, slots=True)
class WaitLimit(Duration):
    """The longest time for which something may wait."""

    def read(self, node: Node) -> float:
        """Seconds."""
        if isinstance(node, ScalarNode) and re.fullmatch(_ZERO, node.text):
            raise InvalidValue(
                f"{node.text} would let nothing wait, and is no limit in llm-d's router; write the longest wait, from "
                f"{show_duration(self.low)} to {show_duration(self.high)}"
            )
        return Duration.read(self, node)


@dataclass(frozen=True, slots=True)
class Number(OptionType):
    """A number from `low` to `high`; `whole`: without a fraction."""

    low: float
    high: float
    whole: bool = False

    def holds(self) -> str:
        """`number`."""
        return "number"

    def read(self, node: Node) -> float | int:
        """The number."""
        value = as_number(node)
        if value is None:
            raise InvalidValue(f"{describe(node)} is not a number; write {self._range()}")
        if not self.low <= value <= self.high or (self.whole and value != int(value)):
            raise InvalidValue(f"{value:.15g} is out of range; write {self._range()}")
        return int(value) if self.whole else value

    def _range(self) -> str:
        return f"a {'whole ' if self.whole else ''}number from {self.low:.15g} to {self.high:.15g}"

    def schema(self) -> dict[str, Any]:
        """The type and the range."""
        return {"type": "integer" if self.whole else "number", "minimum": self.low, "maximum": self.high}

    def show(self, value: Any) -> str:
        """The number."""
        return f"{value:.12g}"

    def written(self, value: Any) -> Any:
        """The number itself."""
        return int(value) if value == int(value) else value


@dataclass(frozen=True, slots=True)
class NumberList(OptionType):
    """A list of whole numbers from `low` to `high`."""

    low: int
    high: int

    def holds(self) -> str:
        """`list of numbers`."""
        return "list of numbers"

    def read(self, node: Node) -> tuple[int, ...]:
        """The numbers, sorted, each once."""
        if not isinstance(node, SequenceNode):
            raise InvalidValue(f"{kind_of(node)} where a list is expected; write it as [48, 79]")
        found: set[int] = set()
        for item in node.items:
            number = as_number(item)
            if number is None or number != int(number) or not self.low <= number <= self.high:
                raise InvalidValue(f"{describe(item)} is not valid; write whole numbers from {self.low} to {self.high}")
            found.add(int(number))
        return tuple(sorted(found))

    def schema(self) -> dict[str, Any]:
        """An array of integers."""
        return {"type": "array", "items": {"type": "integer", "minimum": self.low, "maximum": self.high}}

    def show(self, value: Any) -> str:
        """`[48, 79]`."""
        return f"[{', '.join(map(str, value))}]"

    def written(self, value: Any) -> Any:
        """The list."""
        return list(value)


@dataclass(frozen=True, slots=True)
class Boolean(OptionType):
    """`true` or `false`."""

    def holds(self) -> str:
        """`true or false`."""
        return "true or false"

    def read(self, node: Node) -> bool:
        """The truth value."""
        value = as_bool(node)
        if value is None:
            raise InvalidValue(f"{describe(node)} is neither true nor false; write true or false")
        return value

    def schema(self) -> dict[str, Any]:
        """A boolean."""
        return {"type": "boolean"}

    def show(self, value: Any) -> str:
        """`true` or `false`."""
        return "true" if value else "false"

    def written(self, value: Any) -> Any:
        """The truth value."""
        return bool(value)


# -- words, names and paths --------------------------------------------------------------------------------------------

_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_PATH: Final = r"/[!-~]{0,255}"
_WORD: Final = r"[!-~]{1,128}"
_MAX_FILE: Final = 4096  # characters


@dataclass(frozen=True, slots=True)
class Name(OptionType):
    """A name with the characters and the length of a Kubernetes label value."""

    def holds(self) -> str:
        """`name`."""
        return "name"

    def read(self, node: Node) -> str:
        """The name."""
        if not isinstance(node, ScalarNode) or is_null(node):
            raise InvalidValue(f"{kind_of(node)} is not a name; write a word")
        if not re.fullmatch(_NAME, node.text):
            raise InvalidValue(
                f"{quote(node.text)} is not a name; write letters, digits, '-', '_' and '.', at most 63 of them"
            )
        return node.text

    def schema(self) -> dict[str, Any]:
        """A pattern."""
        return {**text_schema(_NAME, "number", "boolean"), "minimum": 0}


@dataclass(frozen=True, slots=True)
class OneOf(OptionType):
    """One of several words."""

    choices: tuple[str, ...]

    def holds(self) -> str:
        """The words."""
        return " or ".join(f"`{choice}`" for choice in self.choices)

    def read(self, node: Node) -> str:
        """The word."""
        if not isinstance(node, ScalarNode) or is_null(node):
            raise InvalidValue(f"{kind_of(node)} is not valid; valid values: {', '.join(self.choices)}")
        if node.text not in self.choices:
            raise InvalidValue(f"{quote(node.text)} is not valid; {suggestion(node.text, self.choices)}")
        return node.text

    def schema(self) -> dict[str, Any]:
        """An enumeration."""
        return {"enum": list(self.choices)}


@dataclass(frozen=True, slots=True)
class WordList(OptionType):
    """A list of printable ASCII words; where `choices` are given, of those."""

    choices: tuple[str, ...] = ()

    def holds(self) -> str:
        """`list of words`."""
        return "list of words"

    def read(self, node: Node) -> tuple[str, ...]:
        """The words."""
        if not isinstance(node, SequenceNode):
            raise InvalidValue(f"{kind_of(node)} where a list is expected; write it as [one, two]")
        for item in node.items:
            if not isinstance(item, ScalarNode) or is_null(item) or not re.fullmatch(_WORD, item.text):
                raise InvalidValue(f"{describe(item)} is not a word; write ASCII characters without blanks")
            if self.choices and item.text not in self.choices:
                raise InvalidValue(f"{quote(item.text)} is not valid; {suggestion(item.text, self.choices)}")
        return tuple(item.text for item in node.items if isinstance(item, ScalarNode))

    def schema(self) -> dict[str, Any]:
        """An array of words."""
        return {
            "type": "array",
            "items": {"enum": list(self.choices)} if self.choices else text_schema(_WORD, "number", "boolean"),
        }

    def show(self, value: Any) -> str:
        """`[one, two]`."""
        return f"[{', '.join(map(str, value))}]"

    def written(self, value: Any) -> Any:
        """The list."""
        return list(value)


@dataclass(frozen=True, slots=True)
class UrlPath(OptionType):
    """The path of a URL, such as `/metrics`."""

    def holds(self) -> str:
        """`path`."""
        return "path"

    def read(self, node: Node) -> str:
        """The path."""
        text = text_of(node)
        if not re.fullmatch(_PATH, text):
            raise InvalidValue(f"{describe(node)} is not a path; write it with its first slash, such as /metrics")
        return text

    def schema(self) -> dict[str, Any]:
        """A pattern."""
        return text_schema(_PATH)


@dataclass(frozen=True, slots=True)
class HealthPath(OptionType):
    """The path of a URL, or `none`."""

    def holds(self) -> str:
        """`path or none`."""
        return "path or `none`"

    def read(self, node: Node) -> str:
        """The path; empty for `none`."""
        return "" if text_of(node) == NO_HEALTH_PATH else UrlPath().read(node)

    def schema(self) -> dict[str, Any]:
        """A pattern."""
        return text_schema(f"{NO_HEALTH_PATH}|{_PATH}")

    def show(self, value: Any) -> str:
        """The path, or `none`."""
        return str(value) or NO_HEALTH_PATH


@dataclass(frozen=True, slots=True)
class FilePath(OptionType):
    """The path of a file, which may not exist yet."""

    def holds(self) -> str:
        """`file`."""
        return "file"

    def read(self, node: Node) -> str:
        """The path."""
        text = text_of(node)
        if not text or len(text) > _MAX_FILE or not text.isprintable():
            raise InvalidValue(f"{describe(node)} is not a file; write its path, such as /etc/igw/ca.pem")
        return text

    def schema(self) -> dict[str, Any]:
        """A text without control characters."""
        return {**text_schema(r"[^\u0000-\u001f\u007f]+", "number", "boolean"), "maxLength": _MAX_FILE}


@dataclass(frozen=True, slots=True)
class DirectoryPath(FilePath):
    """The path of a directory, which may not exist yet."""

    def holds(self) -> str:
        """`directory`."""
        return "directory"

    def read(self, node: Node) -> str:
        """The path."""
        try:
            return FilePath.read(self, node)
        except InvalidValue:
            raise InvalidValue(
                f"{describe(node)} is not a directory; write its path, such as /run/igw/endpoints"
            ) from None


# -- Kubernetes --------------------------------------------------------------------------------------------------------
# https://kubernetes.io/docs/concepts/overview/working-with-objects/: the key of a label is a name with an optional DNS
# prefix, its value has at most 63 characters; names of pods, nodes and namespaces are DNS names.

_DNS: Final = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
_LABEL_KEY: Final = rf"(?:{_DNS}/)?{_NAME}"
_POD: Final = rf"{_DNS}/{_DNS}"
# A node may be a machine outside Kubernetes: a host name in any case, or an address.
_NODE: Final = r"[A-Za-z0-9:](?:[A-Za-z0-9.:_-]{0,251}[A-Za-z0-9:])?"


def is_label_key(text: str) -> bool:
    """Whether this is the key of a Kubernetes label."""
    return re.fullmatch(_LABEL_KEY, text) is not None


def label_key_schema() -> dict[str, Any]:
    """The JSON Schema of the key of a Kubernetes label."""
    return text_schema(_LABEL_KEY)


@dataclass(frozen=True, slots=True)
class Labels(OptionType):
    """A mapping of label keys to label values, as pairs in the order of the keys."""

    def holds(self) -> str:
        """`labels`."""
        return "labels"

    def read(self, node: Node) -> LabelPairs:
        """The pairs."""
        if not isinstance(node, MappingNode):
            raise InvalidValue(f"{kind_of(node)} where labels are expected; write a mapping, such as {{app: chat}}")
        pairs: list[tuple[str, str]] = []
        for key, value in node.entries.items():
            if not is_label_key(key):
                raise InvalidValue(f"{quote(key)} is not a label key; write NAME, or PREFIX/NAME with a DNS prefix")
            if not isinstance(value, ScalarNode):
                raise InvalidValue(f"the value of {quote(key)} is {kind_of(value)}; write a word")
            text = "" if is_null(value) else value.text
            if text and not re.fullmatch(_NAME, text):
                raise InvalidValue(
                    f"{quote(text)}, the value of {quote(key)}, is not a label value; "
                    "write letters, digits, '-', '_' and '.', at most 63 of them"
                )
            pairs.append((key, text))
        return tuple(sorted(pairs))

    def schema(self) -> dict[str, Any]:
        """An object of words."""
        value = {**text_schema(f"(?:{_NAME})?", "number", "boolean", "null"), "minimum": 0}
        return {"type": "object", "propertyNames": label_key_schema(), "additionalProperties": value}

    def show(self, value: Any) -> str:
        """`{a: b, c: d}`."""
        return "{" + ", ".join(f"{key}: {text}" for key, text in value) + "}"

    def written(self, value: Any) -> Any:
        """The mapping."""
        return dict(value)


@dataclass(frozen=True, slots=True)
class PodName(OptionType):
    """`NAMESPACE/POD`: names of pods are unique within their namespace only."""

    def holds(self) -> str:
        """`NAMESPACE/POD`."""
        return "NAMESPACE/POD"

    def read(self, node: Node) -> str:
        """The namespace and the name."""
        text = text_of(node)
        if not re.fullmatch(_POD, text):
            raise InvalidValue(f"{describe(node)} is not a pod; write NAMESPACE/POD, such as default/vllm-0")
        return text

    def schema(self) -> dict[str, Any]:
        """A pattern."""
        return text_schema(_POD)


@dataclass(frozen=True, slots=True)
class NodeName(OptionType):
    """The name or the address of a machine."""

    def holds(self) -> str:
        """`node`."""
        return "node"

    def read(self, node: Node) -> str:
        """The name."""
        text = text_of(node)
        if not re.fullmatch(_NODE, text):
            raise InvalidValue(f"{describe(node)} is not a node; write the name or the address of a machine")
        return text

    def schema(self) -> dict[str, Any]:
        """A pattern."""
        return {**text_schema(_NODE, "number", "boolean"), "minimum": 0}


@dataclass(frozen=True, slots=True)
class ObjectName(OptionType):
    """The name of a Kubernetes object of a kind, such as `namespace`."""

    kind: str

    def holds(self) -> str:
        """The kind."""
        return self.kind

    def read(self, node: Node) -> str:
        """The name."""
        text = text_of(node)
        if not re.fullmatch(_DNS, text):
            raise InvalidValue(
                f"{describe(node)} is not the name of an object; write the name of the {self.kind}: small letters, "
                "digits, '-' and '.'"
            )
        return text

    def schema(self) -> dict[str, Any]:
        """A pattern."""
        return {**text_schema(_DNS, "number", "boolean"), "minimum": 0}


@dataclass(frozen=True, slots=True)
class Selector(Labels):
    """Labels that a pod must all have: at least one, because none would select every pod."""

    def read(self, node: Node) -> LabelPairs:
        """The pairs."""
        pairs = Labels.read(self, node)
        if not pairs:
            raise InvalidValue("no label, which would select every pod; write one or more, such as {app: chat}")
        return pairs

    def schema(self) -> dict[str, Any]:
        """An object of words that is not empty."""
        return {**Labels.schema(self), "minProperties": 1}


MAX_TARGET_PORTS: Final = 8  # of an InferencePool (inference.networking.k8s.io/v1)


@dataclass(frozen=True, slots=True)
class Ports(OptionType):
    """1 to 8 ports, each once, in their order."""

    def holds(self) -> str:
        """`list of ports`."""
        return "list of ports"

    def read(self, node: Node) -> tuple[int, ...]:
        """The ports."""
        if not isinstance(node, SequenceNode):
            raise InvalidValue(f"{kind_of(node)} where a list is expected; write it as [8000]")
        found: list[int] = []
        for item in node.items:
            number = as_number(item)
            if number is None or number != int(number) or not 1 <= number <= 65535:
                raise InvalidValue(f"{describe(item)} is not a port; write whole numbers from 1 to 65535")
            if int(number) in found:
                raise InvalidValue(f"port {int(number)} is listed twice; write each port once")
            found.append(int(number))
        if not 1 <= len(found) <= MAX_TARGET_PORTS:
            raise InvalidValue(f"{len(found)} ports; write 1 to {MAX_TARGET_PORTS} of them")
        return tuple(found)

    def schema(self) -> dict[str, Any]:
        """An array of integers."""
        port = {"type": "integer", "minimum": 1, "maximum": 65535}
        return {"type": "array", "items": port, "minItems": 1, "maxItems": MAX_TARGET_PORTS, "uniqueItems": True}

    def show(self, value: Any) -> str:
        """`[8000, 8001]`."""
        return f"[{', '.join(map(str, value))}]"

    def written(self, value: Any) -> Any:
        """The list."""
        return list(value)
