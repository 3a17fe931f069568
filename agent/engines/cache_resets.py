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
# A page without the family is searched from its beginning to its end; such a server is searched this rarely.
_SEARCH_PAGES: Final = 32

_LABEL: Final = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\]*)"')
_VALUE: Final = re.compile(rb"\}[ \t]+([0-9]+(?:\.[0-9]+)?(?:e\+?[0-9]+)?)(?![^ \t\r\n])", re.IGNORECASE)


class ResetCounter(NamedTuple):
    """The counter of an engine's HTTP responses: the name of its samples, the labels with the path and the status, and
    the paths whose success leaves the prefix cache empty."""

    sample: str
    path_label: str
    status_label: str
    paths: tuple[str, ...]


class CacheResetReader:
    """Reads the counter from the pages of one endpoint; it remembers where its family begins."""

    __slots__ = ("_at", "_counter", "_mark", "_needles", "_paths", "_skip")

    def __init__(self, counter: ResetCounter) -> None:
        self._counter = counter
        self._mark = b"\n# TYPE %b " % counter.sample.encode()
        self._needles = tuple(b'%b="%b"' % (counter.path_label.encode(), path.encode()) for path in counter.paths)
        self._paths = frozenset(path.encode() for path in counter.paths)
        self._at = -1
        self._skip = 0  # pages until the next search

    def read(self, page: bytes) -> float:
        """The successful requests so far that emptied the cache; 0 where the page counts none."""
        mark = self._mark
        at = -1
        if self._at >= 0:
            at = page.find(mark, max(0, self._at - _NEAR_BYTES), self._at + _NEAR_BYTES)
        if at < 0:
            self._skip -= 1
            if self._at < 0 and self._skip > 0:
                return 0.0
            self._skip = _SEARCH_PAGES
            at = page.find(mark)
        self._at = at
        if at < 0:
            return 0.0
        start = page.find(b"\n", at + len(mark))
        end = page.find(b"\n#", start)
        family = page[start : end if end >= 0 else len(page)]
        for needle in self._needles:
            if needle in family:
                return self._sum(family)
        return 0.0

    def _sum(self, family: bytes) -> float:
        counter, total = self._counter, 0.0
        beginning = counter.sample.encode() + b"{"
        path_label, status_label = counter.path_label.encode(), counter.status_label.encode()
        for line in family.split(b"\n"):
            if not line.startswith(beginning):
                continue
            labels = dict(_LABEL.findall(line))
            value = _VALUE.search(line)
            if value and labels.get(path_label) in self._paths and labels.get(status_label, b"").startswith(b"2"):
                total += float(value[1])
        return total
