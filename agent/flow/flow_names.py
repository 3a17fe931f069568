"""The flow of a request by the caller that it names, bounded: a client that names another caller in each request must
not get a share for each of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

DEFAULT_FLOW: Final = "default-flow"  # the reference's name
OTHER_FLOW: Final = "other"
ONE_FLOW: Final = "all"  # of a band whose callers share one flow
NAME_LENGTH: Final = 256  # characters
_RESERVED: Final = frozenset({DEFAULT_FLOW, OTHER_FLOW, ONE_FLOW})


class FlowNames:
    """Names of flows in use. Declared callers always have a flow of their own; of the others at most `limit` at a time,
    and the rest share one. A name is in use while a request of it is held (`take`, then `release`)."""

    def __init__(self, limit: int, declared: Iterable[str] = ()) -> None:
        self._limit = limit
        self._declared = frozenset(declared)
        self._used: dict[str, int] = {}  # undeclared name -> its requests

    def __len__(self) -> int:
        """The undeclared names in use."""
        return len(self._used)

    def apply(self, limit: int, declared: Iterable[str]) -> None:
        """Replace the bound and the declared names. Requests keep the flow that they have."""
        self._limit = limit
        self._declared = frozenset(declared)

    def take(self, name: str) -> str:
        """The flow of one more request of this caller; an empty name is the default flow."""
        if not name:
            return DEFAULT_FLOW
        if name in self._declared or name in _RESERVED:
            return name
        used = self._used
        count = used.get(name)
        if count is None and (len(used) >= self._limit or len(name) > NAME_LENGTH):
            return OTHER_FLOW
        used[name] = (count or 0) + 1
        return name

    def release(self, flow: str) -> None:
        """A request with this flow is not held any more."""
        count = self._used.get(flow)
        if count is not None:
            if count > 1:
                self._used[flow] = count - 1
            else:
                del self._used[flow]
