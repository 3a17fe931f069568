"""Two replicas without sockets: the events of one, as bytes, applied to the state of the other."""

from __future__ import annotations

from agent.events import ignore
from agent.prefix.index import PrefixIndex
from agent.replicas.peer_part import PeerPart, PoolTarget
from agent.replicas.publisher import PoolPublisher
from agent.replicas.report import PeerReport, PoolReport, decode, encode
from agent.requests.outcomes import Outcomes
from agent.scaling.envelope import Envelope
from agent.state.prefill_rate import RateLimits
from agent.state.store import RoutingStore

ADDRESSES = ("10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000")
BLOCKS = "xxh3-64 64x4"


class ReplicaSide:
    """One replica: its state, and what it publishes."""

    def __init__(self, addresses: tuple[str, ...] = ADDRESSES) -> None:
        self.woken = 0
        self.index = PrefixIndex()
        self.store = RoutingStore("pool", stale_after=3.0, rate=RateLimits(fixed=1_000.0), prefix=self.index)
        self.store.set_endpoints(dict.fromkeys(addresses, "vllm"), 0.0)
        self.learnt: Envelope | None = None
        self.publisher = PoolPublisher("pool", BLOCKS, self._wake, lambda: self.learnt)
        self.outcomes = Outcomes(self.store, self.index, ignore, self.publisher)
        self.target: PoolTarget | None = PoolTarget(self.store, self.index, self.outcomes, BLOCKS)

    def _wake(self) -> None:
        self.woken += 1

    def start(self, address: str, tokens: float, now: float, chain: tuple[int, ...] = ()) -> int:
        """Pick the endpoint for a request."""
        work_id = self.store.started(address, tokens, 0, now)
        self.publisher.started(work_id, address, tokens, 0, chain, now)
        return work_id

    def end(self, work_id: int, now: float) -> None:
        self.store.ended(work_id, now)
        self.publisher.ended(work_id)

    def requests(self, now: float) -> dict[str, tuple[int, int]]:
        """Each endpoint's known requests, and those of them that a peer reported."""
        return {view.address: (view.work.requests, view.work.of_peers) for view in self.store.snapshot(now).endpoints}


class ReplicaPair:
    """A publishes, B applies."""

    def __init__(self, a: ReplicaSide | None = None, b: ReplicaSide | None = None) -> None:
        self.a, self.b = a or ReplicaSide(), b or ReplicaSide()
        self.part = PeerPart(lambda name: self.b.target if name == "pool" else None)
        self.sequence = 0

    def begin(self, now: float = 0.0) -> None:
        """A new stream from A to B."""
        self.part.begin()
        self.sequence = 0
        self.a.publisher.listen(listened=False)
        self.a.publisher.listen(listened=True)
        self.send(self.a.publisher.full(self.a.store.learnt_rates(), now), now, full=True)

    def exchange(self, now: float) -> None:
        """What happened at A since the last time."""
        report = self.a.publisher.take(now)
        if report is not None:
            self.send(report, now)

    def send(self, pool: PoolReport, now: float, *, full: bool = False) -> None:
        data = encode(PeerReport(self.sequence, full=full, pools=[pool]))
        self.sequence += 1
        self.part.apply(decode(data), now)
