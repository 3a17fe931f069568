"""The labels of callers and priorities: their number is bounded, whatever callers send."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agent.flow.flow_names import DEFAULT_FLOW
from agent.instruments.label_limiter import OTHER, LabelLimiter

# Distinct callers with a label of their own, the first that come; those that the configuration declares come on top.
CALLER_NAMES: Final = 100
# Distinct priorities with a label of their own, the first that come.
PRIORITIES: Final = 32
# Pairs of a caller, which is not declared, and a priority that have labels of their own.
CALLER_PAIRS: Final = 200


class CallerLabels:
    """The label values of a caller and a priority: the names themselves where they are pinned, else `other`."""

    def __init__(self) -> None:
        self.declared: frozenset[str] = frozenset()
        self._callers = _first(CALLER_NAMES)
        self._priorities = _first(PRIORITIES)
        self._pairs: set[tuple[str, str]] = set()
        self.declare(())

    def declare(self, names: Iterable[str]) -> None:
        """Replace the callers that the configuration declares: they always have labels of their own."""
        self.declared = frozenset({DEFAULT_FLOW, OTHER, *names})
        self._callers.declare(self.declared)

    def priority(self, number: int) -> str:
        """The label of a priority."""
        return self._priorities(str(number))

    def pair(self, name: str, number: int) -> tuple[str, str]:
        """The labels of a caller (empty: unnamed) and a priority."""
        caller, priority = self._callers(name or DEFAULT_FLOW), self.priority(number)
        if caller in self.declared:
            return caller, priority
        if (caller, priority) not in self._pairs:
            if len(self._pairs) >= CALLER_PAIRS:
                return OTHER, priority
            self._pairs.add((caller, priority))
        return caller, priority


def _first(limit: int) -> LabelLimiter:
    """Labels of their own for the declared names and for the first `limit` others."""
    return LabelLimiter(0, limit, listed=lambda _: False, unlisted=lambda _: True, free=lambda _: False)
