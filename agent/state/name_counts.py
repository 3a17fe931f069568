"""The names that any endpoint of a pool reports, and those that all of them report; an update costs what it changes."""

from __future__ import annotations

from typing import Final

_NONE: Final[frozenset[str]] = frozenset()


class NameCounts:
    """For each name (of an adapter, or of a model), how many endpoints reported it last."""

    __slots__ = ("_anywhere", "_counts", "_everywhere", "_of")

    def __init__(self) -> None:
        self._of: dict[str, frozenset[str]] = {}
        self._counts: dict[str, int] = {}
        self._anywhere: frozenset[str] | None = _NONE
        self._everywhere: frozenset[str] | None = _NONE

    def set(self, address: str, names: frozenset[str]) -> None:
        """Replace the endpoint's names."""
        before = self._of.get(address)
        if before == names:
            return
        self._of[address] = names
        if before is None:  # one more endpoint, which may lack a name that all others have
            before = _NONE
            self._everywhere = None
        endpoints, counts = len(self._of), self._counts
        for name in names - before:
            count = counts[name] = counts.get(name, 0) + 1
            if count == 1:
                self._anywhere = None
            if count == endpoints:
                self._everywhere = None
        for name in before - names:
            count = counts.pop(name)
            if count == endpoints:
                self._everywhere = None
            if count > 1:
                counts[name] = count - 1
            else:
                self._anywhere = None

    def remove(self, address: str) -> None:
        """Forget the endpoint, if it is known."""
        before = self._of.pop(address, None)
        if before is None:
            return
        self._everywhere = None  # one endpoint fewer, which may have lacked a name that all others have
        counts = self._counts
        for name in before:
            count = counts.pop(name)
            if count > 1:
                counts[name] = count - 1
            else:
                self._anywhere = None

    def __contains__(self, name: str) -> bool:
        """Whether an endpoint reported the name."""
        return name in self._counts

    def __bool__(self) -> bool:
        """Whether an endpoint reported any name."""
        return bool(self._counts)

    @property
    def anywhere(self) -> frozenset[str]:
        """The names of at least one endpoint."""
        if self._anywhere is None:
            self._anywhere = frozenset(self._counts)
        return self._anywhere

    @property
    def everywhere(self) -> frozenset[str]:
        """The names that every endpoint has, of those that were set."""
        if self._everywhere is None:
            endpoints = len(self._of)
            self._everywhere = frozenset(name for name, count in self._counts.items() if count == endpoints)
        return self._everywhere
