"""One process of several does what must be done once: it holds a Lease while it runs, and releases it at its end.

`agent.kube.lease` decides; this sends its requests and keeps the time. A write under the Lease goes through `send`,
which checks the right in the thread that sends it, at the moment before, and limits how long it may take: a task that
waited, or a thread that did not run, cannot begin a write when the right is over. Nothing here makes the agent unready:
a replica that does not hold the Lease picks as well as the one that does.
"""

from __future__ import annotations

import asyncio
import socket
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from agent.clock import Clock
from agent.events import Hook
from agent.events.leases import LeaseChanged, LeaseFailed
from agent.kube.cluster import Cluster
from agent.kube.errors import ApiFailed, NoCluster, NotHeld, Unreachable
from agent.kube.lease import OK, LeaseElection, LeaseRequest, lease_times
from agent.kube.wall_time import micro_time

if TYPE_CHECKING:
    from agent.kube.client import KubeClient

PATH: Final = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
RELEASE_SECONDS: Final = 4.0  # a component has five seconds to stop
RETRY_SECONDS: Final = 5.0  # between two tries to find a cluster's configuration


class LeaseName(NamedTuple):
    """A Lease by namespace and name, and for how many seconds others respect it."""

    namespace: str
    name: str
    duration: int


class _Exchange(NamedTuple):
    """A request of the election, when it was sent, and its answer to come."""

    request: LeaseRequest
    sent: float
    answer: asyncio.Future[bytes]


class LeaseHolder:
    """A process as a candidate for one Lease. `held` may be called from any thread."""

    def __init__(self, lease: LeaseName, cluster: Cluster, clock: Clock, hook: Hook, random: Random) -> None:
        times = lease_times(lease.duration)
        # A container that starts again in its pod has the same host name.
        identity = f"{socket.gethostname()}_{random.getrandbits(64):016x}"
        self.lease = lease
        self.election = LeaseElection(lease.namespace, lease.name, identity, times, random)
        self._times = times
        self._cluster = cluster
        self._clock = clock
        self._hook = hook
        self._reported: LeaseChanged | None = None
        self._writes: set[asyncio.Future[bytes]] = set()
        self._open: _Exchange | None = None
        self._collection = PATH.format(namespace=lease.namespace)

    @property
    def identity(self) -> str:
        """The holder's name in the Lease."""
        return self.election.identity

    def held(self) -> bool:
        """Whether a write may begin now."""
        return self.election.held(self._clock.now())

    async def send(self, method: str, path: str, body: bytes, content_type: str = "application/json") -> bytes:
        """A write that only the holder does, and the answer. Raises NotHeld where it was not sent, and what the client
        raises. It ends within the time-out of a write."""
        client = await self._cluster.connect()
        sending = asyncio.ensure_future(self._cluster.run(self._send_if_held, client, method, path, body, content_type))
        self._writes.add(sending)  # the thread sends it even where the caller is cancelled
        sending.add_done_callback(self._ended)
        return await asyncio.shield(sending)

    async def run(self) -> None:
        """Acquire and renew the Lease until cancelled."""
        client = await self._connected()
        while True:
            now = self._clock.now()
            request = self.election.request(now, micro_time(self._clock.wall()))
            if request is not None:
                await self._exchange(client, request)
                if self.election.due <= self._clock.now():  # more is to be sent before it is known who holds it
                    continue
            self._report()
            wakes = self.election.due
            if self.election.held(self._clock.now()):
                wakes = min(wakes, self.election.held_until)
            await asyncio.sleep(max(0.0, wakes - self._clock.now()))
            self._report()

    async def release(self) -> None:
        """Give the Lease up for good: nothing more is written, and once the writes under way have ended, another takes
        it at once. After `run` was cancelled. Where this takes over RELEASE_SECONDS, the Lease lapses by itself."""
        self.election.end()
        self._report(released=True)
        under_way = [*self._writes] + ([self._open.answer] if self._open is not None else [])
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                if under_way:
                    await asyncio.wait(under_way)
                if self._open is not None:
                    self._take_answer(self._open)
                request = self.election.release(micro_time(self._clock.wall()))
                if request is not None:
                    await self._cluster.run(self._request, await self._cluster.connect(), request)
        except (ApiFailed, Unreachable, NoCluster, TimeoutError) as error:
            why = str(error) or "the API server does not answer"
            self._hook(LeaseFailed(self._label, "not_released", f"it lapses by itself: {why}"))

    # -- within --------------------------------------------------------------------------------------------------------

    async def _exchange(self, client: KubeClient, request: LeaseRequest) -> None:
        """Send a request of the election and give it the answer, or none after the time-out of a write."""
        sent = self._clock.now()
        answer = asyncio.ensure_future(self._cluster.run(self._request, client, request))
        answer.add_done_callback(_retrieve)
        self._open = _Exchange(request, sent, answer)
        ends = sent + self._times.write_timeout
        while not answer.done() and (now := self._clock.now()) < ends:
            until = min(ends, self.election.held_until) if self.election.held(now) else ends
            await asyncio.wait({answer}, timeout=max(0.0, until - now))
            if not answer.done():
                self._report()  # the right may end while the API server is silent
        self._take_answer(self._open)

    def _take_answer(self, exchange: _Exchange) -> None:
        self._open = None
        status, data = _answer(exchange.answer)
        self.election.answered(exchange.request, exchange.sent, self._clock.now(), status, data)
        if (failure := self.election.failure) is not None:
            self._hook(LeaseFailed(self._label, failure.reason, failure.message))

    def _request(self, client: KubeClient, request: LeaseRequest) -> bytes:
        path = self._collection if request.method == "POST" else f"{self._collection}/{self.lease.name}"
        return client.send_within(self._times.write_timeout, request.method, path, request.body)

    def _send_if_held(self, client: KubeClient, method: str, path: str, body: bytes, content_type: str) -> bytes:
        if not self.held():
            raise NotHeld(f"this process does not hold the Lease {self._label}")
        return client.send_within(self._times.write_timeout, method, path, body, content_type)

    def _ended(self, sending: asyncio.Future[bytes]) -> None:
        self._writes.discard(sending)
        _retrieve(sending)

    async def _connected(self) -> KubeClient:
        while True:
            try:
                return await self._cluster.connect()
            except NoCluster as error:
                self._hook(LeaseFailed(self._label, "no_cluster", str(error)))
                await asyncio.sleep(RETRY_SECONDS)

    def _report(self, *, released: bool = False) -> None:
        """Publish a change of the right, or of who has it."""
        held = self.held()
        holder = self.identity if held else self.election.holder
        if holder == self.identity and not held:
            holder = ""
        changed = LeaseChanged(self._label, held, holder, released)
        if (
            released
            or self._reported is None
            or (changed.held, changed.holder) != (self._reported.held, self._reported.holder)
        ):
            self._reported = changed
            self._hook(changed)

    @property
    def _label(self) -> str:
        return f"{self.lease.namespace}/{self.lease.name}"


def _answer(sending: asyncio.Future[bytes]) -> tuple[int, bytes]:
    """The status and the body, or the reason; status 0 where no answer came."""
    if not sending.done():
        return 0, b"the API server did not answer in time"
    error = sending.exception()
    if error is None:
        return OK, sending.result()
    if isinstance(error, ApiFailed):
        return error.status, str(error).partition(": ")[2].encode()
    if isinstance(error, Unreachable):
        return 0, str(error).encode()
    raise error


def _retrieve(done: asyncio.Future[bytes]) -> None:
    """Retrieve the error of a request whose caller has ended, so that the event loop does not report it."""
    if not done.cancelled():
        done.exception()
