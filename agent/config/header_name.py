"""The name of an HTTP header as an option."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from agent.config.nodes import Node
from agent.config.values import InvalidValue, OptionType, describe, quote, text_of, text_schema

_HEADER: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,126}"
_CREDENTIALS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})
# Headers of the message itself, which a proxy needs, and of which none names a caller.
_OF_THE_MESSAGE: Final = frozenset(
    "host connection upgrade te transfer-encoding content-length content-type content-encoding x-request-id".split()
)


@dataclass(frozen=True, slots=True)
class CallerHeader(OptionType):
    """The name of a header whose value names the caller, in lower case."""

    def holds(self) -> str:
        """`header`."""
        return "header"

    def read(self, node: Node) -> str:
        """The name in lower case."""
        text = text_of(node)
        if not re.fullmatch(_HEADER, text):
            raise InvalidValue(
                f"{describe(node)} is not the name of a header; write letters, digits, '-', '_' and '.', such as "
                "x-tenant"
            )
        name = text.lower()
        if name in _CREDENTIALS:
            raise InvalidValue(
                f"{quote(text)} holds a credential, which metrics and /v1/flow would show; write a header in which the "
                "gateway puts the name of the caller, such as x-tenant"
            )
        if name in _OF_THE_MESSAGE:
            raise InvalidValue(f"{quote(text)} does not name a caller; write a header that does, such as x-tenant")
        return name

    def schema(self) -> dict[str, Any]:
        """A pattern."""
        return {**text_schema(_HEADER, "number", "boolean"), "minimum": 0}
