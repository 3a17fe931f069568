"""The gRPC service by which a replica reports to its peers: one stream to each of them.

Reports are made when something happens, and at most every `TICK_SECONDS`, so that their number does not grow with the
number of requests; one without content follows after `HEARTBEAT_SECONDS` of silence. A report is encoded once for
all peers. A peer that does not read gets nothing more until it has read what was sent, and then a full report.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from agent.events import Hook
from agent.events.replicas import PeerRefused
from agent.replicas.publisher import PoolPublisher
from agent.replicas.report import (
    MAX_HELLO_BYTES,
    METHOD,
    NONCE_BYTES,
    PROTOCOL,
    SERVICE,
    BadReport,
    Hello,
    PeerReport,
    decode_hello,
    decode_proof,
    encode,
    encode_hello,
    prove,
    proven,
)
from agent.scaling.demand_history import DemandHistory
from agent.scaling.envelope import Envelope
from agent.serve.grpc.call import Call, CallHandler
from agent.serve.grpc.router import BidiMethod, GrpcMethod
from agent.serve.grpc.status import StatusCode, StatusError
from agent.state.prefill_rate import LearntRate

# A peer knows of a pick this much later at most, beside the network (`make bench-routing`, table two-replicas).
TICK_SECONDS: Final = 0.02
HEARTBEAT_SECONDS: Final = 1.0
MAX_STREAMS: Final = 64  # of peers at a time
# Calls at a time, with those that have not proven anything yet. A peer beyond MAX_STREAMS is refused after its proof: a
# call that ends before the caller has sent a message can lose its status there (grpc.aio reports an internal error).
MAX_CALLS: Final = 2 * MAX_STREAMS
HELLO_SECONDS: Final = 5.0  # for a caller's hello and proof: one that sends nothing must not take the place of a peer


# Blocks of a pool's prompts that a peer gets at the start of its stream: 512 KB, and some 30 ms of the receiver.
MAX_HELD_BLOCKS: Final = 65_536


class PoolKnowledge(NamedTuple):
    """What a pool has learnt, for a peer that begins to listen: the prefill rate of each endpoint, and the most
    recently used blocks there, at most so many in all."""

    rates: Callable[[], Mapping[str, LearntRate]]
    held: Callable[[int], Mapping[str, Sequence[int]]]


class OwnIdentity(NamedTuple):
    """A replica: another `instance` after each start, and for people a name and the agent's version."""

    instance: str
    name: str
    software: str


def _nothing(_pool: str) -> None:
    """Nothing is known of the load of a pool."""


class Publishers:
    """The publishers of all pools, and the reports of them. `now` is the time of the clock. `capacity` and
    `history`, which may be replaced, return what this replica has learnt of the capacity of a pool, and what it has
    seen of its load."""

    def __init__(self, now: Callable[[], float], wake: Callable[[], None]) -> None:
        self.now = now
        self.capacity: Callable[[str], Envelope | None] = _nothing
        self.history: Callable[[str], DemandHistory | None] = _nothing
        self._wake = wake
        self._publishers: dict[str, PoolPublisher] = {}
        self._knowledge: dict[str, PoolKnowledge] = {}
        self._listened = False
        self.replaced = False  # pools came or went: every listener needs a full report

    def add(self, pool: str, blocks: str, knowledge: PoolKnowledge) -> PoolPublisher:
        """The publisher of a new pool, which takes the place of one with the same name."""
        publisher = PoolPublisher(pool, blocks, self._wake, lambda: self.capacity(pool))
        publisher.listen(listened=self._listened)
        self._publishers[pool] = publisher
        self._knowledge[pool] = knowledge
        self.replaced = True
        return publisher

    def keep(self, pools: Mapping[str, object]) -> None:
        """Drop the publishers of pools that are no more."""
        for name in self._publishers.keys() - pools.keys():
            del self._publishers[name], self._knowledge[name]
            self.replaced = True

    def listen(self, *, listened: bool) -> None:
        """Whether any peer gets events from here on."""
        if listened != self._listened:
            self._listened = listened
            for publisher in self._publishers.values():
                publisher.listen(listened=listened)

    def take(self, sequence: int) -> PeerReport | None:
        """What happened since the last call. None: every listener needs a full report."""
        publishers = self._publishers.values()
        if self.replaced or any(publisher.overflowed for publisher in publishers):
            self.replaced = False
            for publisher in publishers:
                publisher.listen(listened=False)
                publisher.listen(listened=self._listened)
            return None
        now = self.now()
        reports = (publisher.take(now) for publisher in publishers)
        return PeerReport(sequence, full=False, pools=[report for report in reports if report is not None])

    def full(self, *, first: bool) -> PeerReport:
        """Everything, for one peer that begins to listen (`first`), or that has missed something."""
        now = self.now()
        pools = []
        for name, publisher in self._publishers.items():
            rates, held = self._knowledge[name]
            if first:
                pools.append(publisher.full(rates(), now, held(MAX_HELD_BLOCKS), self.history(name)))
            else:
                pools.append(publisher.full(rates(), now))
        return PeerReport(0, full=True, pools=pools)


class _Stream:
    """One peer's call, from its hello on."""

    __slots__ = ("_nonce", "_service", "_timer", "call", "hello", "joined_at", "sequence", "stale")

    def __init__(self, service: ReplicaService, call: Call) -> None:
        self._service = service
        self._nonce = ""
        self.call = call
        self.hello: Hello | None = None
        self.joined_at = 0.0
        self._timer = asyncio.get_running_loop().call_later(HELLO_SECONDS, self._expire)
        self.sequence = 0
        self.stale = True  # it needs a full report

    def on_message(self, message: bytes) -> None:
        """The hello, or the proof."""
        service = self._service
        try:
            if self.hello is None:
                self.hello = decode_hello(message)
                self._answer(self.hello)
            else:
                self._check(self.hello, decode_proof(message).proof)
                self._timer.cancel()
                service.joined(self)
        except BadReport as error:
            service.refused(self, "malformed", str(error))
            raise StatusError(StatusCode.INVALID_ARGUMENT, str(error)) from error
        except StatusError as error:
            service.refused(self, _REASONS.get(error.code, "malformed"), str(error))
            raise

    def on_half_close(self) -> None:
        """The peer wants no more."""
        self.call.finish(StatusCode.OK)
        self.on_close()

    def on_close(self) -> None:
        """The stream has ended."""
        self._timer.cancel()
        self._service.left(self)

    def _expire(self) -> None:
        self._service.refused(self, "timeout", f"no hello and proof within {HELLO_SECONDS:g} s")
        self.call.finish(StatusCode.DEADLINE_EXCEEDED, "no hello and proof in time")
        self.on_close()

    def _check(self, hello: Hello, proof: str) -> None:
        if not proven(proof, self._service.token(), "client", hello.nonce, self._nonce):
            raise StatusError(StatusCode.UNAUTHENTICATED, "the token is another one here; give all replicas the same")

    def _answer(self, hello: Hello) -> None:
        service = self._service
        own = service.identity
        if hello.protocol != PROTOCOL:
            raise StatusError(
                StatusCode.FAILED_PRECONDITION,
                f"protocol {PROTOCOL} here ({own.software}), {hello.protocol} there: run one version",
            )
        self._nonce = secrets.token_hex(NONCE_BYTES)
        proof = prove(service.token(), "server", hello.nonce, self._nonce)
        answer = Hello(PROTOCOL, own.instance, own.name, own.software, self._nonce, proof)
        self.call.send(encode_hello(answer))


_REASONS: Final = {
    StatusCode.FAILED_PRECONDITION: "version",
    StatusCode.UNAUTHENTICATED: "unauthenticated",
    StatusCode.RESOURCE_EXHAUSTED: "too_many",
}


class ReplicaService:
    """The gRPC service. `token` returns the shared secret, empty without one; `publishers` have what is reported.

    `on_peer` is called when a peer has begun to listen: it has just started, or this replica has.
    """

    name = SERVICE

    def __init__(
        self,
        identity: OwnIdentity,
        token: Callable[[], bytes],
        now: Callable[[], float],
        hook: Hook,
        on_peer: Callable[[], None],
    ) -> None:
        self.identity = identity
        self.token = token
        self._on_peer = on_peer
        self.publishers = Publishers(now, self._wake)
        self._hook = hook
        self._streams: set[_Stream] = set()
        self._calls = 0
        self._timer: asyncio.TimerHandle | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._reported_at = 0.0
        self._stopping = False

    def methods(self) -> Mapping[str, GrpcMethod]:
        """The methods by name."""
        return {METHOD: BidiMethod(self._begin, MAX_HELLO_BYTES)}

    @property
    def listeners(self) -> dict[str, tuple[str, float]]:
        """The peers that get reports: instance -> name, and since when."""
        return {
            stream.hello.instance: (stream.hello.name, stream.joined_at)
            for stream in self._streams
            if stream.hello is not None
        }

    def joined(self, stream: _Stream) -> None:
        """A peer has proven what it has to: it gets a full report, and then what happens."""
        if stream in self._streams:
            raise BadReport("a message after the proof")
        if len(self._streams) >= MAX_STREAMS:
            raise StatusError(StatusCode.RESOURCE_EXHAUSTED, f"{MAX_STREAMS} peers are connected already")
        stream.joined_at = self.publishers.now()
        self._streams.add(stream)
        self._flush()
        self._on_peer()

    def left(self, stream: _Stream) -> None:
        """A stream has ended."""
        self._calls -= 1
        self._streams.discard(stream)
        if not self._streams:
            self.publishers.listen(listened=False)

    def refused(self, stream: _Stream, reason: str, detail: str) -> None:
        """A stream is refused."""
        hello = stream.hello
        self._hook(PeerRefused("" if hello is None else hello.name or hello.instance, reason, detail))

    def start(self) -> None:
        """Begin with the heartbeats."""
        self._beat()

    def stop(self) -> None:
        """Send a goodbye to the peers: this replica's part is over."""
        self._stopping = True
        for timer in (self._timer, self._heartbeat):
            if timer is not None:
                timer.cancel()
        for stream in tuple(self._streams):
            if not stream.call.queue:
                stream.call.send(encode(PeerReport(stream.sequence, full=stream.sequence == 0, goodbye=True)))
            stream.call.finish(StatusCode.OK)
        self._streams.clear()
        self.publishers.listen(listened=False)

    # -- within ------------------------------------------------------------------------------------------------------

    def _begin(self, call: Call) -> CallHandler:
        if self._stopping:
            raise StatusError(StatusCode.UNAVAILABLE, "this replica stops")
        if self._calls >= MAX_CALLS:
            raise StatusError(StatusCode.RESOURCE_EXHAUSTED, f"{MAX_CALLS} calls are open already")
        self._calls += 1
        return _Stream(self, call)

    def _wake(self) -> None:
        """Something happened: report it, together with what else happens in this turn of the event loop, unless the
        last report was less than a tick ago."""
        if self._timer is None and self._streams and not self._stopping:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._reported_at + TICK_SECONDS - loop.time()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._reported_at = asyncio.get_running_loop().time()
        self._flush()

    def _beat(self) -> None:
        self._heartbeat = asyncio.get_running_loop().call_later(HEARTBEAT_SECONDS, self._beat)
        if self._streams:
            self._flush(heartbeat=True)

    def _flush(self, *, heartbeat: bool = False) -> None:
        """Send what happened to each peer that is up to date, and everything to the others that read."""
        report = self.publishers.take(0)
        if report is None:
            for stream in self._streams:
                stream.stale = True
        elif report.pools or heartbeat:
            encoded: dict[int, bytes] = {}  # streams that began at different times have different numbers
            for stream in self._streams:
                if stream.stale:
                    continue
                if stream.call.queue:  # it does not read, and must not fill the memory
                    stream.stale = True
                    continue
                data = encoded.get(stream.sequence)
                if data is None:
                    report.sequence = stream.sequence
                    data = encoded[stream.sequence] = encode(report)
                stream.call.send(data)
                stream.sequence += 1
        waiting = [stream for stream in self._streams if stream.stale and not stream.call.queue]
        if not waiting:
            return
        self.publishers.listen(listened=True)
        for stream in waiting:
            full = self.publishers.full(first=stream.sequence == 0)
            full.sequence = stream.sequence
            stream.call.send(encode(full))
            stream.sequence += 1
            stream.stale = False
