"""What the options of how a pool's servers are reached may hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from agent.config.document import Node, Scalar, is_null, kind_of
from agent.config.values import UrlPath, Wrong, quote, split_address

NOT_ASKED: Final = "none"


@dataclass(frozen=True, slots=True)
class FilePath:
    """The path of a file, which need not be there yet."""

    name: str = "file"

    def read(self, node: Node) -> str:
        """The path."""
        text = node.text if isinstance(node, Scalar) and not is_null(node) else ""
        if not text or len(text) > 4096 or not text.isprintable():
            shown = quote(text) if text else kind_of(node)
            raise Wrong(f"{shown} is no file; write its path, such as /etc/igw/ca.pem")
        return text

    def show(self, value: Any) -> str:
        """The path."""
        return str(value)


@dataclass(frozen=True, slots=True)
class HostName:
    """The name or the address of a host, without a port."""

    name: str = "host"

    def read(self, node: Node) -> str:
        """The name in lower case."""
        text = node.text if isinstance(node, Scalar) and not is_null(node) else ""
        try:
            host, _ = split_address(f"[{text}]:1" if ":" in text else f"{text}:1")
        except Wrong:
            host = ""
        if not text or not host:
            shown = quote(text) if text else kind_of(node)
            raise Wrong(f"{shown} is no host; write a name such as vllm.example, without a port")
        return host

    def show(self, value: Any) -> str:
        """The name."""
        return str(value)


@dataclass(frozen=True, slots=True)
class HealthPath:
    """A path, or `none`."""

    name: str = "path or none"

    def read(self, node: Node) -> str:
        """The path; empty for `none`."""
        if isinstance(node, Scalar) and node.text == NOT_ASKED:
            return ""
        return UrlPath().read(node)

    def show(self, value: Any) -> str:
        """The path, or `none`."""
        return str(value) or NOT_ASKED
