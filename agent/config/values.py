"""What a single option may hold: how it is read from a node, and how it is written back.

Each kind reads a node into a value or raises `Wrong` with a sentence that ends in what to write. Durations and sizes
carry their unit in the file, so that nobody has to guess it; inside they are seconds and bytes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, Protocol

from agent.config.document import Node, Scalar, as_bool, as_number, is_null, kind_of


class Wrong(Exception):
    """A value that is refused; the text says what is wrong; what to write."""


class Kind(Protocol):
    """What an option may hold. `name` is the word for it in the documentation."""

    @property
    def name(self) -> str: ...

    def read(self, node: Node) -> Any:
        """The node's value, or `Wrong`."""
        ...

    def show(self, value: Any) -> str:
        """A value as one writes it in the file."""
        ...


def meant(word: str, valid: Sequence[str]) -> str:
    """`did you mean 'x'?` when one of `valid` is near, else the list of them."""
    near = get_close_matches(word, valid, 1, 0.6) or get_close_matches(word.lower(), valid, 1, 0.6)
    return f"did you mean '{near[0]}'?" if near else f"valid are: {', '.join(valid)}"


def quote(text: str) -> str:
    """Text of the file, shortened for a message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def text_of(node: Node) -> str:
    """What stands there in the file; empty where that is nothing, or no single value."""
    return node.text if isinstance(node, Scalar) and not is_null(node) else ""


def shown(node: Node) -> str:
    """What stands there, for a message: the text in quotes, or the kind of what is no text."""
    return quote(node.text) if isinstance(node, Scalar) and not is_null(node) else kind_of(node)


class AsWritten:
    """A kind whose value is the text of the file itself."""

    __slots__ = ()

    def show(self, value: Any) -> str:
        """The text."""
        return str(value)


_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+", re.ASCII)
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def show_duration(seconds: float) -> str:
    """`0.5` -> `500ms`, `90` -> `90s`, `120` -> `2m`."""
    if seconds >= 3600 and seconds % 3600 == 0:
        return f"{seconds / 3600:g}h"
    if seconds >= 60 and seconds % 60 == 0:
        return f"{seconds / 60:g}m"
    return f"{seconds * 1000:g}ms" if 0 < seconds < 1 else f"{seconds:g}s"


@dataclass(frozen=True, slots=True)
class Duration:
    """`50ms`, `1s`, `1m30s`, within bounds that are in seconds."""

    low: float
    high: float
    name: str = "duration"

    def read(self, node: Node) -> float:
        """Seconds."""
        if not isinstance(node, Scalar) or is_null(node):
            raise Wrong(f"{kind_of(node)} is not a duration; write a number with its unit, such as 500ms, 1s or 2m")
        if as_number(node) is not None:
            raise Wrong(f"{node.text} has no unit; write {node.text}s for seconds or {node.text}ms for milliseconds")
        if len(node.text) > 32 or not _DURATION.fullmatch(node.text):
            raise Wrong(f"{quote(node.text)} is not a duration; write a number with its unit, such as 500ms, 1s or 2m")
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(node.text))
        if seconds < self.low:
            raise Wrong(f"{node.text} is too short; write {show_duration(self.low)} or more")
        if seconds > self.high:
            raise Wrong(f"{node.text} is too long; write {show_duration(self.high)} or less")
        return seconds

    def show(self, value: Any) -> str:
        """The duration with its unit."""
        return show_duration(value)


_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([KMG]i?)?B?", re.ASCII)
_BYTES: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def show_size(size: float) -> str:
    """`16777216` -> `16MiB`; what is no whole number of KiB stays bytes."""
    for unit in ("Gi", "Mi", "Ki"):
        if size >= _BYTES[unit] and size % _BYTES[unit] == 0:
            return f"{size / _BYTES[unit]:g}{unit}B"
    return f"{size:.0f}"


@dataclass(frozen=True, slots=True)
class Size:
    """`16MiB`, `16Mi`, `500KB` or a plain number of bytes, within bounds."""

    low: int
    high: int
    name: str = "size"

    def read(self, node: Node) -> int:
        """Bytes."""
        found = _SIZE.fullmatch(node.text) if isinstance(node, Scalar) and len(node.text) <= 32 else None
        if found is None or not isinstance(node, Scalar):
            raise Wrong(f"{shown(node)} is not a size; write a number with its unit, such as 512KiB or 16MiB")
        size = int(float(found[1]) * _BYTES[found[2] or ""])
        if size < self.low:
            raise Wrong(f"{node.text} is too small; write {show_size(self.low)} or more")
        if size > self.high:
            raise Wrong(f"{node.text} is too large; write {show_size(self.high)} or less")
        return size

    def show(self, value: Any) -> str:
        """The size with its unit."""
        return show_size(value)


@dataclass(frozen=True, slots=True)
class Number:
    """A number within bounds; `whole` when it may have no fraction."""

    low: float
    high: float
    whole: bool = False
    name: str = "number"

    def read(self, node: Node) -> float | int:
        """The number."""
        value = as_number(node)
        if value is None:
            raise Wrong(f"{shown(node)} is not a number; write {self._range()}")
        if not self.low <= value <= self.high or (self.whole and value != int(value)):
            raise Wrong(f"{value:.12g} is out of range; write {self._range()}")
        return int(value) if self.whole else value

    def _range(self) -> str:
        return f"a {'whole ' if self.whole else ''}number from {self.low:.12g} to {self.high:.12g}"

    def show(self, value: Any) -> str:
        """The number."""
        return f"{value:.12g}"


@dataclass(frozen=True, slots=True)
class Switch:
    """`true` or `false`."""

    name: str = "true or false"

    def read(self, node: Node) -> bool:
        """The truth value."""
        value = as_bool(node)
        if value is None:
            raise Wrong(f"{shown(node)} is neither true nor false; write true or false")
        return value

    def show(self, value: Any) -> str:
        """`true` or `false`."""
        return "true" if value else "false"


_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Name(AsWritten):
    """A name as Kubernetes has them, capitals and `_` allowed; where `choices` are given, one of those."""

    choices: tuple[str, ...] = ()
    name: str = "name"

    def read(self, node: Node) -> str:
        """The name."""
        if not isinstance(node, Scalar) or is_null(node):
            raise Wrong(f"{kind_of(node)} is not a name; write a word")
        if self.choices:
            if node.text not in self.choices:
                raise Wrong(f"{quote(node.text)} is not known here; {meant(node.text, self.choices)}")
        elif not _NAME.fullmatch(node.text):
            raise Wrong(
                f"{quote(node.text)} is not a name; write letters, digits, '-', '_' and '.', at most 63 of them"
            )
        return node.text


@dataclass(frozen=True, slots=True)
class UrlPath(AsWritten):
    """The path of a page, such as `/metrics`."""

    name: str = "path"

    def read(self, node: Node) -> str:
        """The path."""
        text = text_of(node)
        if not text.startswith("/") or len(text) > 256 or not text.isascii() or not text.isprintable() or " " in text:
            raise Wrong(f"{shown(node)} is not a path; write it from the first slash, such as /metrics")
        return text


_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; IPv6 comes in brackets and leaves without them. Raises `Wrong`."""
    if "://" in text:
        raise Wrong(f"{quote(text)} is a URL; write HOST:PORT without the scheme")
    host, colon, port = text.rpartition(":")
    if text.count(":") > 1 and not text.startswith("["):
        raise Wrong(f"{quote(text)} is IPv6 without brackets; write [ADDRESS]:PORT, such as [::1]:8000")
    if text.startswith("[") and (not host.endswith("]") or not colon):
        raise Wrong(f"{quote(text)} has no port; write [ADDRESS]:PORT, such as [::1]:8000")
    if not colon:
        raise Wrong(f"{quote(text)} has no port; write HOST:PORT, such as 127.0.0.1:8000")
    if "/" in port:
        raise Wrong(f"{quote(text)} has a path; write HOST:PORT only")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise Wrong(f"the port of {quote(text)} is not one; write a whole number from 1 to 65535")
    if host.startswith("["):
        try:
            return ipaddress.IPv6Address(host[1:-1]).compressed, int(port)
        except ValueError:
            raise Wrong(f"{quote(host)} is no IPv6 address; write it like [fd00::1]:{port}") from None
    if host and all(label.isdecimal() for label in host.split(".")):
        try:
            return str(ipaddress.IPv4Address(host)), int(port)
        except ValueError:
            raise Wrong(
                f"{quote(host)} is no IPv4 address; write four numbers from 0 to 255, such as 10.0.0.1:{port}"
            ) from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split(".")):
        raise Wrong(f"{quote(host)} is no host; write an IP address or a name, such as 127.0.0.1:{port}")
    return host.lower(), int(port)


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Address(AsWritten):
    """`HOST:PORT`; `any_port` allows port 0, which lets the system choose one."""

    any_port: bool = False
    name: str = "HOST:PORT"

    def read(self, node: Node) -> str:
        """The address in one spelling: lower case, IPv6 compressed and in brackets."""
        if not isinstance(node, Scalar) or is_null(node):
            raise Wrong(f"{kind_of(node)} is no address; write HOST:PORT, such as 127.0.0.1:8000")
        host, port = split_address(node.text)
        if port == 0 and not self.any_port:
            raise Wrong(f"port 0 of {quote(node.text)} leads nowhere; write a port from 1 to 65535")
        return join_address(host, port)
