"""What the options of how a pool's servers are reached may hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from agent.config.document import Node
from agent.config.values import AsWritten, UrlPath, Wrong, shown, split_address, text_of

NOT_ASKED: Final = "none"


@dataclass(frozen=True, slots=True)
class FilePath(AsWritten):
    """The path of a file, which need not be there yet."""

    name: str = "file"

    def read(self, node: Node) -> str:
        """The path."""
        text = text_of(node)
        if not text or len(text) > 4096 or not text.isprintable():
            raise Wrong(f"{shown(node)} is no file; write its path, such as /etc/igw/ca.pem")
        return text


@dataclass(frozen=True, slots=True)
class HostName(AsWritten):
    """The name or the address of a host, without a port."""

    name: str = "host"

    def read(self, node: Node) -> str:
        """The name in lower case."""
        text = text_of(node)
        try:
            host, _ = split_address(f"[{text}]:1" if ":" in text else f"{text}:1")
        except Wrong:
            host = ""
        if not text or not host:
            raise Wrong(f"{shown(node)} is no host; write a name such as vllm.example, without a port")
        return host


@dataclass(frozen=True, slots=True)
class HealthPath:
    """A path, or `none`."""

    name: str = "path or none"

    def read(self, node: Node) -> str:
        """The path; empty for `none`."""
        if text_of(node) == NOT_ASKED:
            return ""
        return UrlPath().read(node)

    def show(self, value: Any) -> str:
        """The path, or `none`."""
        return str(value) or NOT_ASKED
