"""Follows the reports of all peers, and states what is known of each.

    silent ──► reporting ──► silent      no report for `stale_after`: its part is dropped, because it is unknown
       ▲           │    └──► refused     another version, another token, a report that cannot be true: the same
       └───────────┤
                   └───────► left        it said goodbye: its part is over, and known to be

A peer is an address, of the configuration or of a Service. The part of a peer whose stream broke is kept for
`stale_after`, within which a new stream may replace it. This replica's own address is recognised by its instance.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from agent.clock import Clock
from agent.events import Hook
from agent.events.replicas import PeerChanged, PeerFailed, PeersCounted
from agent.replicas.client import PeerAccess, PeerProblem, PeerStream
from agent.replicas.peer_part import PeerPart, PoolTarget
from agent.replicas.report import BadReport, Hello
from agent.replicas.service import OwnIdentity
from agent.scaling.demand_history import DemandHistory
from agent.scaling.envelope import Envelope
from agent.state.replicas import LEFT, REASONS, REFUSED, REPORTING, SELF, SILENT, STATES, PeerView

_UNKNOWN: Final = frozenset({SILENT, REFUSED})
# A peer that cannot be followed is tried again after this long, then twice as long.
FIRST_RETRY_SECONDS: Final = 0.5
MAX_RETRY_SECONDS: Final = 5.0
# Reports of one peer are applied at most this often: the rest waits in its sender, by HTTP/2 flow control.
MIN_REPORT_SECONDS: Final = 0.005
MAX_PEERS: Final = 64


def _ignore(pool: str) -> None:
    """No reader waits for held requests."""


class _Peer:
    """One address."""

    def __init__(self, address: str, part: PeerPart) -> None:
        self.address = address
        self.part = part
        self.state = SILENT
        self.reason = "not_reached"
        self.detail = ""
        self.instance = self.name = self.software = ""
        self.reported_at: float | None = None
        self.task: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()  # try again now


class Peers:
    """The peers by address. `target` finds the pool that a report is about; `token` returns the shared secret."""

    def __init__(
        self,
        identity: OwnIdentity,
        transport: PeerAccess,
        token: Callable[[], bytes],
        target: Callable[[str], PoolTarget | None],
        stale_after: float,
        clock: Clock,
        hook: Hook,
    ) -> None:
        self._identity = identity
        self._transport = transport
        self._token = token
        self._target = target
        self._stale_after = stale_after
        self._clock = clock
        self._hook = hook
        self._peers: dict[str, _Peer] = {}
        self.on_waiting: Callable[[str], None] = _ignore  # a peer holds the first requests for a pool

    def set_addresses(self, addresses: Iterable[str]) -> None:
        """Follow the replicas at these addresses, at most MAX_PEERS. The part of one that is no more listed is over."""
        wanted = dict.fromkeys(sorted(addresses)[:MAX_PEERS])
        came = False
        for address in [address for address in self._peers if address not in wanted]:
            came = True
            peer = self._peers.pop(address)
            if peer.task is not None:
                peer.task.cancel()
            peer.part.drop(self._clock.now())
        for address in wanted:
            if address not in self._peers:
                peer = self._peers[address] = _Peer(address, PeerPart(self._target))
                peer.task = asyncio.get_running_loop().create_task(self._follow(peer))
                came = True
        if came:
            self._hook(PeersCounted(self._counts()))

    def retry(self) -> None:
        """Try those again that are not followed: one of them may have come back."""
        for peer in self._peers.values():
            peer.wake.set()

    async def stop(self) -> None:
        """Follow no one; their parts are over."""
        tasks = [peer.task for peer in self._peers.values() if peer.task is not None]
        self.set_addresses(())
        await asyncio.gather(*tasks, return_exceptions=True)

    def views(self) -> list[PeerView]:
        """Every peer, sorted by address."""
        return [
            PeerView(
                peer.address,
                peer.state,
                peer.reason,
                peer.detail,
                peer.instance,
                peer.name,
                peer.software,
                peer.reported_at,
                peer.part.in_flight if peer.state == REPORTING else None,
            )
            for _, peer in sorted(self._peers.items())
        ]

    def waiting(self, pool: str) -> int:
        """The requests that flow control of the peers holds for a pool, those whose part is unknown left out."""
        return sum(peer.part.waiting.get(pool, 0) for peer in self._peers.values())

    def capacities(self, pool: str) -> dict[str, Envelope]:
        """What the peers have learnt of a pool's capacity, by instance."""
        found = ((peer.instance, peer.part.capacity(pool)) for peer in self._peers.values())
        return {instance: each for instance, each in found if each is not None}

    def take_histories(self, pool: str) -> list[DemandHistory]:
        """What the peers have seen of a pool's load until their streams began, each once."""
        found = (peer.part.take_history(pool) for peer in self._peers.values())
        return [each for each in found if each is not None]

    @property
    def oldest_report(self) -> float:
        """When the peer that reports and has not done so for longest has last reported; infinite without one."""
        reports = [peer.reported_at for peer in self._peers.values() if peer.state == REPORTING]
        return min((at for at in reports if at is not None), default=float("inf"))

    def unknown(self) -> list[str]:
        """The peers whose part is unknown, one phrase each."""
        return [
            f"{peer.name or peer.address} ({peer.state}: {peer.detail or REASONS[peer.reason]})"
            for _, peer in sorted(self._peers.items())
            if peer.state in _UNKNOWN
        ]

    @property
    def instances(self) -> set[str]:
        """The instances that are known: those of peers, and this replica's own."""
        return {self._identity.instance, *(peer.instance for peer in self._peers.values() if peer.instance)}

    # -- within ------------------------------------------------------------------------------------------------------

    async def _follow(self, peer: _Peer) -> None:
        """Follow one peer until it is no more listed, or found to be this replica."""
        pause = FIRST_RETRY_SECONDS
        while True:
            peer.wake.clear()
            reported_before = peer.reported_at
            try:
                if await self._listen(peer):
                    return
                self._set(peer, LEFT, "", "")
                peer.part.drop(self._clock.now())
            except PeerProblem as problem:
                self._failed(peer, problem.reason, problem.detail)
            except BadReport as error:
                self._failed(peer, "malformed", f"a message is not valid: {error}")
            except Exception as error:  # noqa: BLE001  a defect in this peer's part must not end the others
                self._failed(peer, "malformed", repr(error))
            pause = FIRST_RETRY_SECONDS if peer.reported_at != reported_before else min(2 * pause, MAX_RETRY_SECONDS)
            try:
                async with asyncio.timeout(pause):
                    await peer.wake.wait()
            except TimeoutError:
                continue

    async def _listen(self, peer: _Peer) -> bool:
        """One stream, until the peer says goodbye; True where it is this replica. Raises PeerProblem or BadReport."""
        stream = PeerStream(peer.address, self._transport)
        try:
            hello = await stream.greet(self._identity, self._token())
            if hello.instance == self._identity.instance:
                peer.instance, peer.name = hello.instance, hello.name
                self._set(peer, SELF, "", "")
                return True
            self._refuse_twin(peer, hello)
            peer.instance, peer.name, peer.software = hello.instance, hello.name, hello.software
            peer.part.begin()
            begun = False
            while True:
                report = await stream.report(self._stale_after)
                if report.goodbye:
                    return False
                if not begun:
                    self._refuse_twin(peer, hello)  # two addresses of it may have been greeted at the same time
                    begun = True
                now = self._clock.now()
                before = peer.part.waiting
                peer.part.apply(report, now)
                for pool in peer.part.waiting.keys() - before.keys():
                    self.on_waiting(pool)
                since, peer.reported_at = peer.reported_at, now
                if peer.state != REPORTING:
                    self._set(peer, REPORTING, "", "")
                if since is not None and now - since < MIN_REPORT_SECONDS:
                    await asyncio.sleep(MIN_REPORT_SECONDS)
        finally:
            await stream.close()

    def _refuse_twin(self, peer: _Peer, hello: Hello) -> None:
        """Raises PeerProblem where another address reports as the same replica."""
        for each in self._peers.values():
            if each is not peer and each.instance == hello.instance and each.state == REPORTING:
                detail = f"{each.address} is the same replica, {hello.name or hello.instance}: list each replica once"
                raise PeerProblem("duplicate", detail)

    def _failed(self, peer: _Peer, reason: str, detail: str) -> None:
        self._hook(PeerFailed(peer.address, reason))
        now = self._clock.now()
        if reason in {"unreachable", "timeout"}:
            if peer.state == LEFT:
                return  # it said so
            left = 0.0 if peer.reported_at is None else peer.reported_at + self._stale_after - now
            if peer.state == REPORTING and left > 0:
                asyncio.get_running_loop().call_later(left, self._expire, peer, peer.reported_at, reason, detail)
                return
            state = SILENT
        else:
            state = REFUSED
        self._set(peer, state, reason, detail)
        peer.part.drop(now)

    def _expire(self, peer: _Peer, reported_at: float | None, reason: str, detail: str) -> None:
        """The stream broke, and no new one has brought a report in time."""
        if peer.state == REPORTING and peer.reported_at == reported_at and self._peers.get(peer.address) is peer:
            self._set(peer, SILENT, reason, detail)
            peer.part.drop(self._clock.now())

    def _set(self, peer: _Peer, state: str, reason: str, detail: str) -> None:
        changed = (state, reason) != (peer.state, peer.reason)
        peer.state, peer.reason, peer.detail = state, reason, detail
        if changed:
            self._hook(PeerChanged(peer.address, peer.name, state, reason, detail, self._counts()))

    def _counts(self) -> dict[str, int]:
        found = Counter(peer.state for peer in self._peers.values())
        return {state: found[state] for state in STATES if state != SELF}
