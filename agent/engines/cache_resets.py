"""How often a server's prefix cache was emptied by a request, from the counter of its HTTP requests.

No engine has a metric for an emptied cache. vLLM and SGLang count the responses of each path on their pages, so a
successful `POST /reset_prefix_cache` that did not pass through the picker is seen there as well.

The family of this counter has a series for each path and status that a server has answered, so that the pages of a
fleet would have many layouts if it was read with the signals. Here its lines are found near their last place, and only
parsed where one of the paths is among them.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# How far the family may move between two pages: new series of other families before it.
_NEAR_BYTES: Final = 2048
# Each of so many pages is read without what is known of the one before. Only these are searched for the family where
# the page before had none.
_SEARCH_PAGES: Final = 32

_SERIES: Final = re.compile(rb"[^\n}]*\}[ \t]+(?=[0-9])")
_NUMBER: Final = re.compile(rb"[0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?(?=[ \t\r\n]|\Z)")


class ResetCounter(NamedTuple):
    """The counter of an engine's HTTP responses: the name of its samples, the labels with the path and the status, and
    the paths whose success leaves the prefix cache empty."""

    sample: str
    path_label: str
    status_label: str
    paths: tuple[str, ...]


class CacheResetReader:
    """Reads the counter from the pages of one endpoint; it remembers where its family begins, and its series."""

    __slots__ = ("_at", "_beginning", "_keys", "_mark", "_needles", "_shortest", "_size", "_skip", "_success")

    def __init__(self, counter: ResetCounter) -> None:
        self._mark = b"\n# TYPE %b " % counter.sample.encode()
        self._needles = tuple(b'%b="%b"' % (counter.path_label.encode(), path.encode()) for path in counter.paths)
        self._beginning = counter.sample.encode() + b"{"
        self._success = re.compile(b'[{,]%b="2' % counter.status_label.encode())
        # Bytes of a line that counts a path, without its other labels and its value.
        self._shortest = len(self._beginning) + min(map(len, self._needles), default=0)
        self._at = -1
        self._skip = 0  # pages until the next search
        self._size = -1  # bytes of the family on the last page
        self._keys: tuple[bytes, ...] = ()  # its lines that count, up to their values

    def read(self, page: bytes) -> float:
        """The successful requests so far that emptied the cache; 0 where the page counts none."""
        mark, at, end = self._mark, self._at, len(page)
        if at >= 0 and not page.startswith(mark, at):
            at = page.find(mark, max(0, self._at - _NEAR_BYTES), self._at + _NEAR_BYTES)
        self._skip -= 1
        if self._skip < 0:
            self._skip = _SEARCH_PAGES
            self._size = -1
        elif self._at < 0:
            return 0.0
        if at < 0:
            self._size = -1
            at = page.find(mark)
        self._at = at
        if at < 0:
            return 0.0
        start = at + len(mark)
        found = start + self._size
        if self._size < 0 or not page.startswith(b"\n#", found):
            found = page.find(b"\n#", start)
        if found >= 0:
            end = found
        # A family that grew by less than a line has no new series: only its numbers have grown.
        if self._size < 0 or abs(end - start - self._size) >= self._shortest:
            self._keys = self._find(page[start:end])
        self._size = end - start
        total = 0.0
        for key in self._keys:
            place = page.find(key, start, end)
            number = _NUMBER.match(page, place + len(key)) if place >= 0 else None
            if number is None:
                self._size = -1  # another layout: look again on the next page
            else:
                total += float(number[0])
        return total

    def _find(self, family: bytes) -> tuple[bytes, ...]:
        """The beginnings of the lines that count a successful request to one of the paths."""
        keys: list[bytes] = []
        for needle in self._needles:
            if needle in family:
                for line in family.split(b"\n"):
                    series = _SERIES.match(line) if line.startswith(self._beginning) and needle in line else None
                    if series is not None and self._success.search(line):
                        keys.append(b"\n" + series[0])
        return tuple(keys)
