"""When an address enters Envoy's file of endpoints, when it may be picked, and when it leaves the file.

Envoy must know an address before the agent picks it, and for as long as a pick of it may be on its way. So an address
is written first and picked SETTLE_SECONDS later, and it leaves the file LINGER_SECONDS after it was last pickable.
A removed address is no longer picked, whatever settles meanwhile; only where none would be left does the pool keep
those that it has until new ones have settled. Where the file cannot be written, new addresses are not picked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

# Envoy 1.40 serves a renamed file after 1.3 ms (median of 200, at most 10 ms, on two cores); a busy one takes longer.
SETTLE_SECONDS: Final = 0.5
# A pick reaches Envoy within milliseconds. A retry along the list of fallbacks takes a connect timeout of 1 s; where
# the address has left the file by then, Envoy takes the next one.
LINGER_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0


class EndpointRollout:
    """The addresses of one pool. `in_file`: those in the file now; None where there is no file, so that no Envoy reads
    it yet and the first addresses need not settle."""

    def __init__(self, in_file: Iterable[str] | None, now: float) -> None:
        self._unread = in_file is None
        self._written: dict[str, float] = dict.fromkeys(in_file or (), -math.inf)  # address -> when it was written
        self._released: dict[str, float] = dict.fromkeys(self._written, now)  # address -> when it was last pickable
        self._wanted: frozenset[str] = frozenset()
        self._pickable: frozenset[str] = frozenset()
        self._retry_at: float | None = None  # when the write that failed is due again

    def want(self, addresses: Iterable[str]) -> None:
        """The pool's addresses from now on."""
        self._wanted = frozenset(addresses)

    def file(self, now: float) -> frozenset[str]:
        """The addresses that the file must have now."""
        leaving = {address for address, since in self._released.items() if now < since + LINGER_SECONDS}
        return self._wanted | self._pickable | leaving

    def wrote(self, addresses: frozenset[str], now: float) -> None:
        """The file has exactly these addresses now."""
        since = -math.inf if self._unread else now
        self._unread = False
        self._written = {address: self._written.get(address, since) for address in addresses}
        self._released = {address: since for address, since in self._released.items() if address in addresses}
        self._retry_at = None

    def failed(self, now: float) -> None:
        """The file could not be written."""
        self._retry_at = now + RETRY_SECONDS

    def pickable(self, now: float) -> frozenset[str] | None:
        """The addresses that may be picked from now on; None while all of them settle: the pool keeps what it has."""
        settled = frozenset(
            address for address in self._wanted if now >= self._written.get(address, math.inf) + SETTLE_SECONDS
        )
        if self._wanted and not settled and self._retry_at is None:
            return None
        self._released |= dict.fromkeys(self._pickable - settled, now)
        self._released = {address: since for address, since in self._released.items() if address not in settled}
        self._pickable = settled
        return settled

    def wait(self, now: float) -> float:
        """Seconds until the file or the pickable addresses change of themselves; infinite where nothing is due."""
        if self._retry_at is not None:
            return max(0.0, self._retry_at - now)
        due = [since + LINGER_SECONDS for since in self._released.values()]
        due += [self._written.get(address, -math.inf) + SETTLE_SECONDS for address in self._wanted - self._pickable]
        return max(0.0, min(due, default=math.inf) - now)
