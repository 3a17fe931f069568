"""Addresses as options: `HOST:PORT`, a template of one for each node, and a host alone."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any, Final

from agent.config.nodes import Node, ScalarNode, SequenceNode, is_null, kind_of
from agent.config.values import InvalidValue, OptionType, describe, quote, text_of, text_schema

NODE_PLACEHOLDER: Final = "{node}"

_HOST_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4: Final = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
# For the JSON Schema: the characters alone, and an optional zone.
_IPV6: Final = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[^%/]+)?"
_PORT: Final = r"(?:[0-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_NONZERO_PORT: Final = rf"(?!0+$){_PORT}"


def _host(label: str, end: str, max_length: int = 253) -> str:
    """The pattern of an IPv4 address or a host name that is followed by `end`."""
    not_an_address = rf"(?![0-9]+(?:\.[0-9]+)*{end})"
    return rf"(?:{_IPV4}|{not_an_address}(?=[^:]{{1,{max_length}}}{end}){label}(?:\.{label})*\.?)"


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, IPv6 without its brackets. Raises `InvalidValue`."""
    if "://" in text:
        raise InvalidValue(f"{quote(text)} is a URL; write HOST:PORT without the scheme")
    host, colon, port = text.rpartition(":")
    if text.count(":") > 1 and not text.startswith("["):
        raise InvalidValue(f"{quote(text)} is IPv6 without brackets; write [ADDRESS]:PORT, such as [::1]:8000")
    if text.startswith("[") and (not host.endswith("]") or not colon):
        raise InvalidValue(f"{quote(text)} has no port; write [ADDRESS]:PORT, such as [::1]:8000")
    if not colon:
        raise InvalidValue(f"{quote(text)} has no port; write HOST:PORT, such as 127.0.0.1:8000")
    if "/" in port:
        raise InvalidValue(f"{quote(text)} has a path; write HOST:PORT only")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise InvalidValue(f"the port of {quote(text)} is not valid; write a whole number from 1 to 65535")
    if host.startswith("["):
        try:
            return ipaddress.IPv6Address(host[1:-1]).compressed, int(port)
        except ValueError:
            raise InvalidValue(f"{quote(host)} is not an IPv6 address; write it like [fd00::1]:{port}") from None
    if host and all(label.isdecimal() for label in host.split(".")):
        try:
            return str(ipaddress.IPv4Address(host)), int(port)
        except ValueError:
            raise InvalidValue(
                f"{quote(host)} is not an IPv4 address; write four numbers from 0 to 255, such as 10.0.0.1:{port}"
            ) from None
    if len(host) > 253 or not all(re.fullmatch(_HOST_LABEL, part) for part in host.removesuffix(".").split(".")):
        raise InvalidValue(f"{quote(host)} is not a host; write an IP address or a name, such as 127.0.0.1:{port}")
    return host.lower(), int(port)


def is_loopback(host: str) -> bool:
    """Whether a host of `split_address` is this machine's loopback, so that no other machine reaches it."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.rstrip(".") in {"localhost", "localhost.localdomain"}


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Address(OptionType):
    """`HOST:PORT`; `any_port` allows port 0, for which the system chooses a free one."""

    any_port: bool = False

    def holds(self) -> str:
        """`HOST:PORT`."""
        return "HOST:PORT"

    def read(self, node: Node) -> str:
        """The address in lower case, IPv6 compressed and in brackets."""
        if not isinstance(node, ScalarNode) or is_null(node):
            raise InvalidValue(f"{kind_of(node)} is not an address; write HOST:PORT, such as 127.0.0.1:8000")
        host, port = split_address(node.text)
        if port == 0 and not self.any_port:
            raise InvalidValue(f"port 0 of {quote(node.text)} is not valid; write a port from 1 to 65535")
        return join_address(host, port)

    def schema(self) -> dict[str, Any]:
        """A pattern."""
        port = _PORT if self.any_port else _NONZERO_PORT
        return text_schema(rf"(?:\[{_IPV6}\]|{_host(_HOST_LABEL, ':')}):{port}")


class _ListOf(OptionType):
    """A list of words of one type, without one that is there twice."""

    item: OptionType
    example: str

    def holds(self) -> str:
        """`list of HOST:PORT`."""
        return f"list of {self.item.holds()}"

    def read(self, node: Node) -> tuple[str, ...]:
        """The words, each as its type reads it."""
        if not isinstance(node, SequenceNode):
            raise InvalidValue(f"{kind_of(node)} where a list is expected; write it as [{self.example}]")
        found = [str(self.item.read(item)) for item in node.items]
        for word in found:
            if found.count(word) > 1:
                raise InvalidValue(f"{quote(word)} is listed twice; keep one")
        return tuple(found)

    def schema(self) -> dict[str, Any]:
        """An array."""
        return {"type": "array", "items": self.item.schema(), "uniqueItems": True}

    def show(self, value: Any) -> str:
        """`[one, two]`."""
        return f"[{', '.join(map(str, value))}]"

    def written(self, value: Any) -> Any:
        """The list."""
        return list(value)


class AddressList(_ListOf):
    """A list of `HOST:PORT`."""

    item = Address()
    example = "10.0.1.1:9003, 10.0.1.2:9003"


def expand(template: str, node: str) -> str:
    """The address of a template for a node, whose name or address (IPv6 without brackets) is given."""
    return template.replace(NODE_PLACEHOLDER, f"[{node}]" if ":" in node else node)


@dataclass(frozen=True, slots=True)
class AddressTemplate(OptionType):
    """`HOST:PORT`, in which `{node}` is replaced by an endpoint's node."""

    def holds(self) -> str:
        """`HOST:PORT with {node}`."""
        return "HOST:PORT with `{node}`"

    def read(self, node: Node) -> str:
        """The template."""
        example = f"write HOST:PORT, such as '{NODE_PLACEHOLDER}:9400' (quoted)"
        if not isinstance(node, ScalarNode) or is_null(node):
            raise InvalidValue(f"{kind_of(node)} is not an address; {example}")
        _, port = split_address(node.text.replace(NODE_PLACEHOLDER, "node"))
        if port == 0:
            raise InvalidValue(f"port 0 of {quote(node.text)} is not valid; {example}")
        return node.text

    def schema(self) -> dict[str, Any]:
        """A pattern."""
        label = r"(?:[A-Za-z0-9_]|\{node\})(?:(?:[A-Za-z0-9_-]|\{node\}){0,61}(?:[A-Za-z0-9_]|\{node\}))?"
        return text_schema(rf"(?:\[{_IPV6}\]|{_host(label, ':', 512)}):{_NONZERO_PORT}")


@dataclass(frozen=True, slots=True)
class HostName(OptionType):
    """The name or the address of a host, without a port."""

    def holds(self) -> str:
        """`host`."""
        return "host"

    def read(self, node: Node) -> str:
        """The name in lower case."""
        text = text_of(node)
        try:
            return split_address(f"[{text}]:1" if ":" in text else f"{text}:1")[0]
        except InvalidValue:
            raise InvalidValue(
                f"{describe(node)} is not a host; write a name such as vllm.example, without a port"
            ) from None

    def schema(self) -> dict[str, Any]:
        """A pattern."""
        return text_schema(rf"{_IPV6}|{_host(_HOST_LABEL, '$')}", "number", "boolean")


class HostList(_ListOf):
    """A list of hosts, without ports."""

    item = HostName()
    example = "10.0.1.1, 10.0.1.2"
