"""What the stages report of each request for the other replicas of the agent, which do not see it themselves.

`agent.replicas.publisher` implements it; a process without peers has `NOT_SHARED`, which does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from agent.requests.response import Response


class Sharing(Protocol):
    """Takes what happens to the requests of one pool."""

    def started(
        self, work_id: int, address: str, uncached_tokens: float, hit_tokens: float, chain: Sequence[int], now: float
    ) -> None:
        """A request was picked for the endpoint; `chain` are the blocks of its prompt."""
        ...

    def moved(self, work_id: int, address: str, uncached_tokens: float, chain: Sequence[int], now: float) -> None:
        """The proxy sent a request in flight to another endpoint than the picked one."""
        ...

    def ended(self, work_id: int) -> None:
        """A request is over."""
        ...

    def outcome(self, address: str, result: str) -> None:
        """The endpoint answered a request or failed on it; `result` is a key of `agent.requests.response.RESULTS`."""
        ...

    def withdrawn(self, address: str, blocks: Sequence[int]) -> None:
        """The endpoint did not prefill these blocks after all."""
        ...

    def emptied(self, address: str, reason: str) -> None:
        """The endpoint's prefix cache is empty, as only a request shows; `reason` as for `RoutingStore`."""
        ...

    def logged(self, request_id: str, response: Response) -> None:
        """The proxy's log has an entry of a request that was not picked here."""
        ...

    def logs(self, count: int) -> None:
        """The proxy has so many access log streams open here."""
        ...

    def waiting(self, count: int) -> None:
        """Flow control holds so many requests here."""
        ...


class NotShared:
    """There are no peers."""

    def started(
        self, work_id: int, address: str, uncached_tokens: float, hit_tokens: float, chain: Sequence[int], now: float
    ) -> None:
        """Nothing."""

    def moved(self, work_id: int, address: str, uncached_tokens: float, chain: Sequence[int], now: float) -> None:
        """Nothing."""

    def ended(self, work_id: int) -> None:
        """Nothing."""

    def outcome(self, address: str, result: str) -> None:
        """Nothing."""

    def withdrawn(self, address: str, blocks: Sequence[int]) -> None:
        """Nothing."""

    def emptied(self, address: str, reason: str) -> None:
        """Nothing."""

    def logged(self, request_id: str, response: Response) -> None:
        """Nothing."""

    def logs(self, count: int) -> None:
        """Nothing."""

    def waiting(self, count: int) -> None:
        """Nothing."""


NOT_SHARED: Final = NotShared()
