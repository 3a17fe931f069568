"""A bound on the label values that clients and servers choose, so that they cannot make a page grow without limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from exporters.prometheus import clean

NAME_LENGTH: Final = 256  # characters; a request body may hold a "model name" of megabytes
OTHER: Final = "other"
# Names without a place that are examined for one that may be freed, at each new name: the cost stays constant however
# many places there are.
_EXAMINED: Final = 8


class LabelLimiter:
    """The label value of a name: the name itself where it is pinned, else `other`.

    declared   of the configuration (`declare`): always its own label
    listed     `listed(name)`, such as a model that a server lists: its own label, for at most `limit` names at a time
    unpinned   any other name of a group that `unlisted(group)`: its own label for the first `unpinned` names

    A name takes a place when it is first counted, so names that are listed and not requested cost nothing. It keeps its
    label until the place is needed and the name is neither declared nor listed any more. `free(label)` then removes its
    series, or returns False while they are in use. Names over NAME_LENGTH are `other`; an empty name stays empty.
    """

    def __init__(
        self,
        limit: int,
        unpinned: int,
        listed: Callable[[str], bool],
        unlisted: Callable[[str], bool],
        free: Callable[[str], bool],
    ) -> None:
        self._limit = limit
        self._max_unpinned = unpinned
        self._listed = listed
        self._unlisted = unlisted
        self._free = free
        self._declared: dict[str, str] = {}  # name -> label
        self._places: dict[str, str] = {}  # the same; the names that were examined longest ago come first
        self._unpinned: set[str] = set()  # names in `_places` that were not listed when they took their place

    def declare(self, names: Iterable[str]) -> None:
        """Replace the declared names. Those that are not declared any more keep their label as other names do."""
        declared = {name: clean(name) for name in names if name and len(name) <= NAME_LENGTH}
        for name in self._declared.keys() - declared.keys():
            self._places[name] = self._declared[name]
        for name in declared:
            self._places.pop(name, None)
            self._unpinned.discard(name)
        self._declared = declared

    def __call__(self, name: str, group: str = "") -> str:
        """The label value for this name of this group, such as a pool."""
        known = self._declared.get(name) or self._places.get(name)
        if known is not None:
            return known
        if not name:
            return name
        if len(name) > NAME_LENGTH:
            return OTHER
        if self._listed(name):
            while len(self._places) - len(self._unpinned) >= self._limit:
                if not self._free_one():
                    return OTHER
        elif len(self._unpinned) < self._max_unpinned and self._unlisted(group):
            self._unpinned.add(name)
        else:
            return OTHER
        label = self._places[name] = clean(name)
        return label

    def _free_one(self) -> bool:
        """Free the place of one name that is not listed any more; whether there was one among those examined."""
        for name in tuple(islice(self._places, _EXAMINED)):
            label = self._places.pop(name)
            if name not in self._unpinned and not self._listed(name) and self._free(label):
                return True
            self._places[name] = label
        return False
