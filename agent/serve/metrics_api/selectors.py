"""Label selectors as Kubernetes reads them: text -> requirements, and whether labels satisfy them.

The grammar is that of https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/: `a`, `!a`, `a=b`,
`a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, and beside them `a>1` and `a<1`, with commas between. A requirement that
excludes values (`!=`, `notin`) is satisfied by labels without the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

MAX_SELECTOR_BYTES: Final = 10_000
_NAME_LENGTH: Final = 63
_PREFIX_LENGTH: Final = 253
_TOKEN: Final = re.compile(r"[ \t\r\n]*(==|!=|[=!(),<>]|[^ \t\r\n=!(),<>]+)")
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_SPECIAL: Final = frozenset({"==", "!=", "=", "!", "(", ")", ",", "<", ">"})


class BadSelector(ValueError):
    """The text is no selector; the message says what is wrong."""


class Operator(StrEnum):
    """How a requirement compares; `=` and `==` are IN of one value, `!=` is NOT_IN of one."""

    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    ABSENT = "!"
    GREATER = ">"
    LESS = "<"


class Requirement(NamedTuple):
    """One part of a selector."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy it."""
        value = labels.get(self.key)
        match self.operator:
            case Operator.IN:
                return value is not None and value in self.values
            case Operator.NOT_IN:
                return value is None or value not in self.values
            case Operator.EXISTS:
                return value is not None
            case Operator.ABSENT:
                return value is None
        if value is None or not _INTEGER.fullmatch(value):
            return False
        (limit,) = self.values
        return int(value) > int(limit) if self.operator is Operator.GREATER else int(value) < int(limit)


class LabelRequirements(NamedTuple):
    """All requirements have to be satisfied; none: everything matches. `text` is what was read."""

    requirements: tuple[Requirement, ...] = ()
    text: str = ""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy the selector."""
        return all(requirement.matches(labels) for requirement in self.requirements)


EVERYTHING: Final = LabelRequirements()


def parse_selector(text: str) -> LabelRequirements:
    """The selector of a query parameter. Raises BadSelector."""
    if len(text.encode("utf-8", "replace")) > MAX_SELECTOR_BYTES:
        raise BadSelector(f"the selector has over {MAX_SELECTOR_BYTES} bytes; select by fewer labels")
    tokens = _tokens(text)
    if not tokens:
        return EVERYTHING
    reader = _Reader(tokens)
    requirements = [reader.requirement()]
    while reader.next is not None:
        reader.take(",")
        requirements.append(reader.requirement())
    return LabelRequirements(tuple(requirements), text)


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    at = 0
    while token := _TOKEN.match(text, at):
        found.append(token[1])
        at = token.end()
    return found


class _Reader:
    """Reads the requirements of a selector in their order."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def next(self) -> str | None:
        """The next token, None at the end."""
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def take(self, wanted: str) -> None:
        """Skip this token. Raises BadSelector where there is another one."""
        if self.next != wanted:
            raise BadSelector(f"there is {self._shown()} where {wanted!r} should be")
        self._at += 1

    def requirement(self) -> Requirement:
        """The next requirement. Raises BadSelector."""
        if self.next == "!":
            self._at += 1
            return Requirement(self._key(), Operator.ABSENT)
        key = self._key()
        match self.next:
            case None | ",":
                return Requirement(key, Operator.EXISTS)
            case "=" | "==":
                self._at += 1
                return Requirement(key, Operator.IN, frozenset({self._value()}))
            case "!=":
                self._at += 1
                return Requirement(key, Operator.NOT_IN, frozenset({self._value()}))
            case "in" | "notin" as word:
                self._at += 1
                return Requirement(key, Operator(word), self._values())
            case ">" | "<" as sign:
                self._at += 1
                return Requirement(key, Operator(sign), frozenset({self._integer()}))
        raise BadSelector(f"there is {self._shown()} after the key {_short(key)}; operators are = == != in notin")

    def _shown(self) -> str:
        return "the end" if self.next is None else _short(self.next)

    def _word(self, what: str) -> str:
        word = self.next
        if word is None or word in _SPECIAL:
            raise BadSelector(f"there is {self._shown()} where {what} should be")
        self._at += 1
        return word

    def _key(self) -> str:
        key = self._word("a key")
        prefix, slash, name = key.rpartition("/")
        if not _is_name(name) or (slash and not (_SUBDOMAIN.fullmatch(prefix) and len(prefix) <= _PREFIX_LENGTH)):
            raise BadSelector(f"{_short(key)} is no key of a label")
        return key

    def _value(self) -> str:
        """A value, which may be empty."""
        if self.next is None or self.next in {",", ")"}:
            return ""
        value = self._word("a value")
        if not _is_name(value):
            raise BadSelector(f"{_short(value)} is no value of a label")
        return value

    def _integer(self) -> str:
        value = self._word("an integer")
        if not _INTEGER.fullmatch(value):
            raise BadSelector(f"{_short(value)} is no integer")
        return value

    def _values(self) -> frozenset[str]:
        self.take("(")
        values = {self._value()}
        while self.next == ",":
            self._at += 1
            values.add(self._value())
        self.take(")")
        return frozenset(values)


def _is_name(text: str) -> bool:
    return len(text) <= _NAME_LENGTH and _NAME.fullmatch(text) is not None


def _short(text: str) -> str:
    return repr(text if len(text) <= _NAME_LENGTH else text[:_NAME_LENGTH] + "...")
