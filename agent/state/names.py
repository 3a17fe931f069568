"""Which names any endpoint of a pool tells, and which all of them tell; a change costs what has changed."""

from __future__ import annotations

from typing import Final

_NONE: Final[frozenset[str]] = frozenset()


class Names:
    """The names that each endpoint told last: adapters, or models."""

    __slots__ = ("_anywhere", "_counts", "_everywhere", "_of")

    def __init__(self) -> None:
        self._of: dict[str, frozenset[str]] = {}
        self._counts: dict[str, int] = {}
        self._anywhere: frozenset[str] | None = _NONE
        self._everywhere: frozenset[str] | None = _NONE

    def tell(self, address: str, names: frozenset[str]) -> None:
        """From now on the endpoint has these."""
        before = self._of.get(address)
        if before == names:
            return
        self._of[address] = names
        if before is None:  # one more, who must have a name that all have
            before = _NONE
            self._everywhere = None
        everyone, counts = len(self._of), self._counts
        for name in names - before:
            count = counts[name] = counts.get(name, 0) + 1
            if count == 1:
                self._anywhere = None
            if count == everyone:
                self._everywhere = None
        for name in before - names:
            count = counts.pop(name)
            if count == everyone:
                self._everywhere = None
            if count > 1:
                counts[name] = count - 1
            else:
                self._anywhere = None

    @property
    def anywhere(self) -> frozenset[str]:
        """Those that at least one endpoint has."""
        if self._anywhere is None:
            self._anywhere = frozenset(self._counts)
        return self._anywhere

    @property
    def everywhere(self) -> frozenset[str]:
        """Those that every endpoint has which was told of."""
        if self._everywhere is None:
            everyone = len(self._of)
            self._everywhere = frozenset(name for name, count in self._counts.items() if count == everyone)
        return self._everywhere
