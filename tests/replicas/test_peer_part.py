"""What a replica knows after the reports of a peer, and which reports it refuses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines.mapping import Extraction
from agent.events import ignore
from agent.replicas.peer_part import PeerPart
from agent.replicas.publisher import MAX_BATCH_BYTES, PoolPublisher
from agent.replicas.report import (
    MAX_EVENTS,
    MAX_REQUESTS,
    BadReport,
    Emptied,
    EndpointBlocks,
    MovedRequest,
    PeerReport,
    PoolReport,
    SharedBatch,
    SharedHistory,
    SharedLogEntry,
    SharedOutcome,
    SharedRate,
    StartedRequest,
    decode,
    encode,
    pack_blocks,
    unpack_blocks,
)
from agent.requests.outcomes import Outcomes
from agent.requests.response import CONNECT_FAILURE, OK, SERVER_ERROR, Response
from agent.requests.ticket import Request, Ticket
from agent.scaling.demand_history import ArrivalSpan, BatchRecord, DemandHistory, LevelSample
from agent.scaling.envelope import Envelope
from agent.signals import PREFILL_SECONDS, PREFILLS, PROMPT_TOKENS, RUNNING, WAITING
from agent.state.prefill_rate import LearntRate, RateLimits
from agent.state.store import RoutingStore
from tests.replicas.exchange import ADDRESSES, BLOCKS, ReplicaPair, ReplicaSide

A1, A2, A3 = ADDRESSES
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from((*ADDRESSES, "10.0.0.9:8000")), st.integers(0, 5_000)),
        st.tuples(st.just("end"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("move"), st.integers(0, 30), st.sampled_from(ADDRESSES)),
        st.tuples(st.sampled_from(("exchange", "begin", "drop")), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_after_each_report_a_replica_counts_the_requests_of_its_peer_where_the_peer_does(steps: Any) -> None:
    pair = ReplicaPair(a=ReplicaSide((*ADDRESSES, "10.0.0.9:8000")))  # the last one is not in B's pool
    pair.begin()
    running: list[int] = []
    now = 0.0
    for what, first, second in steps:
        now += 0.01
        if what == "start":
            running.append(pair.a.start(first, second, now))
        elif what == "end" and running:
            pair.a.end(running.pop(first % len(running)), now)
        elif what == "move" and running:
            work_id = running[first % len(running)]
            pair.a.store.moved(work_id, second, 7, now)
            pair.a.publisher.moved(work_id, second, 7, (), now)
        elif what == "exchange":
            pair.exchange(now)
        elif what == "begin":
            pair.begin(now)
        elif what == "drop":
            pair.part.drop(now)
            assert all(found == (0, 0) for found in pair.b.requests(now).values())
            pair.begin(now)
    pair.exchange(now)
    own = pair.a.requests(now)
    assert pair.b.requests(now) == {address: (own[address][0], own[address][0]) for address in ADDRESSES}
    assert pair.part.in_flight == {"pool": len(running)}
    assert pair.b.store.in_flight == 0
    pair.part.drop(now)
    assert all(found == (0, 0) for found in pair.b.requests(now).values())


def test_a_replica_knows_how_many_requests_its_peer_holds_until_the_peer_is_unknown() -> None:
    pair = ReplicaPair()
    pair.a.publisher.waiting(3)
    pair.begin()
    assert pair.part.waiting == {"pool": 3}
    pair.a.publisher.waiting(5)
    pair.exchange(0.1)
    assert pair.part.waiting == {"pool": 5}
    pair.b.target = None  # the pool goes here, and comes again
    pair.a.publisher.waiting(2)
    pair.exchange(0.2)
    assert pair.part.waiting == {"pool": 2}
    pair.a.publisher.waiting(0)
    pair.exchange(0.3)
    assert pair.part.waiting == {}
    pair.a.publisher.waiting(1)
    pair.exchange(0.4)
    pair.part.drop(0.5)
    assert pair.part.waiting == {}


def test_a_replica_knows_what_its_peer_has_learnt_of_the_capacity_until_the_peer_is_unknown() -> None:
    pair = ReplicaPair()
    pair.begin()
    assert pair.part.capacity("pool") is None
    pair.a.learnt = Envelope(7.25, 1.0)
    pair.exchange(3.0)
    assert pair.part.capacity("pool") == Envelope(7.25, 1.0)
    assert pair.a.publisher.take(4.0) is None  # it has not changed
    pair.a.publisher.waiting(1)
    pair.exchange(5.0)
    assert pair.part.capacity("pool") == Envelope(7.25, 1.0)
    pair.b.target = None  # the pool goes here, and comes again
    pair.a.learnt = Envelope(8.0, 6.0)
    pair.exchange(6.5)
    assert pair.part.capacity("pool") == Envelope(8.0, 6.0)
    pair.begin(9.0)
    assert pair.part.capacity("pool") == Envelope(8.0, 6.0)
    pair.a.learnt = None  # it has started again
    pair.begin(10.0)
    assert pair.part.capacity("pool") is None
    pair.a.learnt = Envelope(9.0, 11.0)
    pair.exchange(12.0)
    pair.part.drop(13.0)
    assert pair.part.capacity("pool") is None


SPANS = st.builds(
    ArrivalSpan, st.floats(-3600, 0), st.floats(0, 15), st.floats(-1e3, 1e6), st.floats(0, 1e6), st.floats(0, 1e6)
)
SAMPLES = st.lists(st.builds(LevelSample, st.floats(-60, 0), st.floats(0, 1e3)), max_size=20)
BATCHES = st.dictionaries(
    st.sampled_from(ADDRESSES),
    st.builds(
        BatchRecord, st.integers(0, 2 << 30).map(float), *[st.integers(0, 4096).map(float)] * 2, st.integers(0, 9)
    ),
)


@given(
    st.builds(
        DemandHistory,
        st.lists(SPANS, max_size=300),
        SAMPLES,
        SAMPLES,
        st.lists(st.floats(-600, 0), max_size=9),
        BATCHES,
    ),
    st.floats(0, 1e6),
)
def test_what_a_replica_has_seen_of_the_load_reaches_a_peer_that_begins_to_listen_once(
    history: DemandHistory, later: float
) -> None:
    pair = ReplicaPair()
    report = pair.a.publisher.full({}, 0.0, {}, history)
    pair.part.begin()
    pair.part.apply(decode(encode(PeerReport(0, full=True, pools=[report]))), later)  # on another clock
    found = pair.part.take_history("pool")
    assert found is not None
    assert pair.part.take_history("pool") is None
    assert found.batches == history.batches
    close = pytest.approx
    assert [each.begin - later for each in found.arrivals] == close([each.begin for each in history.arrivals], abs=2e-3)
    for spans in zip(found.arrivals, history.arrivals, strict=True):
        mine, own = ((each.end - each.begin, each.arrivals, each.seen, each.due) for each in spans)
        assert mine == close((max(0.0, own[0]), *own[1:]), abs=2e-3)
    for mine_of, own_of in ((found.slots, history.slots), (found.kv, history.kv)):
        assert [each.at - later for each in mine_of] == close([each.at for each in own_of], abs=2e-3)
        assert [each.value for each in mine_of] == close([each.value for each in own_of], abs=2e-6)
    assert [at - later for at in found.loading] == close(list(history.loading), abs=2e-3)


def test_a_history_of_an_endpoint_that_the_report_does_not_list_is_refused() -> None:
    history = SharedHistory(batches=[SharedBatch(1, 0, 8, 8, 2)])
    pool = PoolReport("pool", BLOCKS, 0, 0, [A1], history=history)
    with pytest.raises(BadReport, match="endpoint number 1 of 1"):
        decode(encode(PeerReport(0, full=True, pools=[pool])))


def test_a_report_of_an_older_version_has_no_capacity_and_one_of_a_newer_version_has_more_fields() -> None:
    report = PeerReport(0, full=True, pools=[PoolReport("pool", BLOCKS, 0, 0, [], waiting=3)])
    fields = msgspec.msgpack.decode(encode(report))
    (pool,) = fields[3]
    older = [*fields[:3], [pool[:15]]]  # up to `waiting`, the last field of a replica before
    assert decode(msgspec.msgpack.encode(older)) == report
    newer = [*fields[:3], [[*pool, "a field that is not known here"]]]
    assert decode(msgspec.msgpack.encode(newer)) == report


def test_the_backlog_of_a_peers_requests_delays_a_pick_as_ones_own_does() -> None:
    pair = ReplicaPair()
    pair.begin()
    pair.a.start(A1, 2_000, 0.0)
    pair.exchange(0.0)
    assert pair.b.store.snapshot(0.0).endpoints[0].work.prefill_seconds(0.0) == pytest.approx(2.0)
    assert pair.b.store.snapshot(0.0).endpoints[1].work.prefill_seconds(0.0) <= 0


def page(running: float, waiting: float = 0.0) -> Extraction:
    return Extraction({RUNNING: running, WAITING: waiting}, (), ())


def test_a_request_that_a_page_showed_before_its_report_counts_once() -> None:
    pair = ReplicaPair()
    pair.begin()
    pair.a.start(A1, 10, 1.00)
    pair.b.store.observed(A1, page(1.0), 1.01, 0.0, 100)
    assert pair.b.store.snapshot(1.01).endpoints[0].work.load == 1  # that of a stranger, as far as B knows
    pair.exchange(1.02)
    work = pair.b.store.snapshot(1.02).endpoints[0].work
    assert (work.requests, work.of_peers, work.foreign) == (1, 1, 0)
    pair.b.store.observed(A1, page(1.0), 2.0, 0.0, 100)
    assert pair.b.store.snapshot(2.0).endpoints[0].work.load == 1


def test_the_requests_of_a_peer_that_is_silent_are_those_of_a_stranger_on_the_next_page() -> None:
    pair = ReplicaPair()
    pair.begin()
    pair.a.start(A1, 10, 1.0)
    pair.exchange(1.0)
    pair.part.drop(5.0)
    pair.b.store.observed(A1, page(1.0), 6.0, 0.0, 100)
    work = pair.b.store.snapshot(6.0).endpoints[0].work
    assert (work.requests, work.foreign) == (0, 1)


def test_prompts_that_a_peer_sent_somewhere_are_hits_there() -> None:
    pair = ReplicaPair()
    pair.begin()
    pair.a.start(A2, 10, 1.0, chain=(1, 2, 2**64 - 1))
    pair.exchange(1.0)
    assert pair.b.index.match((1, 2, 2**64 - 1, 4), ADDRESSES) == [0, 3, 0]
    pair.a.publisher.withdrawn(A2, (2, 2**64 - 1))
    pair.exchange(1.1)
    assert pair.b.index.match((1, 2, 3), ADDRESSES) == [0, 1, 0]


def test_blocks_of_another_size_are_not_recorded() -> None:
    pair = ReplicaPair()
    pair.begin()
    pair.send(
        PoolReport("pool", "xxh3-64 16x4", 1, 0, [A1], [StartedRequest(1, 0, 10, 0, 0, pack_blocks((1, 2)))]), 1.0
    )
    assert pair.b.index.match((1, 2), ADDRESSES) == [0, 0, 0]
    assert pair.b.requests(1.0)[A1] == (1, 1)


def test_an_endpoint_that_fails_at_a_peer_is_ejected_here_too() -> None:
    pair = ReplicaPair()
    pair.begin()
    for address in ADDRESSES:
        pair.b.store.observed(address, page(0.0), 0.0, 0.0, 100)
    for _ in range(3):
        pair.a.publisher.outcome(A1, SERVER_ERROR)
    pair.exchange(1.0)
    assert pair.b.store.snapshot(1.0).endpoints[0].health == "failing"


def test_successes_between_failures_keep_their_order() -> None:
    pair = ReplicaPair()
    pair.begin()
    for address in ADDRESSES:
        pair.b.store.observed(address, page(0.0), 0.0, 0.0, 100)
    for _ in range(3):
        pair.a.publisher.outcome(A1, SERVER_ERROR)
        pair.a.publisher.outcome(A1, OK)
    pair.exchange(1.0)
    assert pair.b.store.snapshot(1.0).endpoints[0].health == "healthy"


def test_a_cache_that_a_request_through_a_peer_has_emptied_is_empty_here() -> None:
    pair = ReplicaPair()
    pair.begin()
    pair.b.index.record(A1, (1, 2))
    pair.a.publisher.emptied(A1, "request")
    pair.exchange(1.0)
    assert pair.b.index.match((1, 2), ADDRESSES) == [0, 0, 0]


def test_a_replica_that_starts_gets_the_rates_that_its_peer_has_learnt() -> None:
    a, b = ReplicaSide(), ReplicaSide()
    a.store = RoutingStore("pool", stale_after=3.0, rate=RateLimits())
    b.store = RoutingStore("pool", stale_after=3.0, rate=RateLimits())
    for side in (a, b):
        side.store.set_endpoints(dict.fromkeys(ADDRESSES, "vllm"), 0.0)
    assert b.target is not None
    b.target = b.target._replace(store=b.store)
    for number in range(3):
        counters = {PROMPT_TOKENS: 4_000.0 * number, PREFILL_SECONDS: 2.0 * number, PREFILLS: 300.0 * number}
        a.store.observed(A1, Extraction({**counters, RUNNING: 0.0, WAITING: 0.0}, (), ()), float(number), 0.0, 100)
    ReplicaPair(a, b).begin(3.0)
    work = b.store.snapshot(3.0).endpoints[0].work
    assert work.rate == pytest.approx(2_000, rel=0.01)
    assert work.rate_source == "pool"  # the median of all that is learnt


def test_a_replica_that_has_learnt_more_than_its_peer_keeps_its_own() -> None:
    store = RoutingStore("pool", stale_after=3.0, rate=RateLimits())
    store.set_endpoints({A1: "vllm"}, 0.0)
    store.adopt_rate(A1, LearntRate(20_000.0, 10.0, 250.0, 400.0), 0.0)
    store.adopt_rate(A1, LearntRate(90_000.0, 10.0, 250.0, 300.0), 0.0)
    store.adopt_rate("10.9.9.9:1", LearntRate(1.0, 1.0, 1.0, 1.0), 0.0)  # not in the pool
    assert store.snapshot(0.0).endpoints[0].work.rate == 2_000.0


def ticket(outcomes: Outcomes, store: RoutingStore) -> Ticket:
    class Owner:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    made = Ticket(Owner(), Request("r1"), lambda *_: None, 0.0)
    made.endpoint, made.work_id = A1, store.started(A1, 10, 0, 0.0)
    outcomes.picked(made, (), 0, 64)
    return made


def test_a_log_entry_that_the_proxy_sends_to_the_other_replica_reaches_the_one_that_picked() -> None:
    pair = ReplicaPair()  # A gets the log, B has picked
    pair.a.outcomes.log_opened()
    pair.begin()
    assert pair.b.outcomes.open_logs == 1
    found = ticket(pair.b.outcomes, pair.b.store)
    pair.a.outcomes.logged("r1", Response(500, served=A1, complete=True), 1.0)
    pair.exchange(1.0)
    assert found.result == SERVER_ERROR
    pair.a.outcomes.log_closed()
    pair.exchange(1.1)
    assert pair.b.outcomes.open_logs == 0


def test_a_log_entry_from_a_peer_is_never_passed_on() -> None:
    pair = ReplicaPair()
    pair.b.publisher.listen(listened=True)
    pair.begin()
    pair.a.outcomes.logged("nobody's", Response(200, served=A1, complete=True), 1.0)
    pair.exchange(1.0)
    assert pair.b.publisher.take(1.0) is None


def test_nothing_that_a_peer_reported_is_published_again() -> None:
    pair = ReplicaPair()
    pair.b.publisher.listen(listened=True)
    pair.begin()
    work_id = pair.a.start(A1, 10, 1.0, chain=(1,))
    pair.a.publisher.outcome(A1, SERVER_ERROR)
    pair.a.publisher.emptied(A1, "request")
    pair.exchange(1.0)
    pair.a.end(work_id, 1.1)
    pair.exchange(1.1)
    assert pair.b.publisher.take(2.0) is None
    assert pair.b.publisher.full({}, 2.0).started == []


def test_a_pool_that_comes_and_goes_here_loses_no_count_and_refuses_no_report() -> None:
    pair = ReplicaPair()
    target, pair.b.target = pair.b.target, None
    pair.begin()
    first = pair.a.start(A1, 10, 1.0)
    pair.exchange(1.0)
    pair.b.target = target
    second = pair.a.start(A1, 10, 1.1)
    pair.exchange(1.1)
    assert pair.b.requests(1.1)[A1] == (1, 1)  # the first started while there was no such pool
    pair.a.end(first, 1.2)
    pair.exchange(1.2)
    assert pair.b.requests(1.2)[A1] == (1, 1)
    pair.b.target = None
    pair.a.end(second, 1.3)
    pair.exchange(1.3)
    assert pair.b.requests(1.3)[A1] == (0, 0)


def pool(**changes: Any) -> PoolReport:
    fields: dict[str, Any] = {"name": "pool", "blocks": BLOCKS, "in_flight": 1, "logs": 0, "endpoints": [A1]}
    fields["started"] = [StartedRequest(1, 0, 10, 0, 0, b"")]
    return PoolReport(**{**fields, **changes})


LIES: dict[str, Any] = {
    "a request starts twice": pool(in_flight=2, started=[StartedRequest(1, 0, 1, 0, 0, b"")] * 2),
    "a request ends that never started": pool(ended=[2]),
    "a request moves that never started": pool(moved=[MovedRequest(2, 0, 1, b"")]),
    "more in flight than have started": pool(in_flight=7),
    "fewer in flight than have started": pool(in_flight=0),
    "an endpoint outside its own list": pool(started=[StartedRequest(1, 1, 10, 0, 0, b"")]),
    "a negative id": pool(started=[StartedRequest(-1, 0, 10, 0, 0, b"")]),
    "a negative number of tokens": pool(started=[StartedRequest(1, 0, -10, 0, 0, b"")]),
    "more tokens than any prompt has": pool(started=[StartedRequest(1, 0, 10**12, 0, 0, b"")]),
    "a number that is not whole": pool(started=[StartedRequest(1, 0, 1.5, 0, 0, b"")]),  # type: ignore[arg-type]
    "not a number": pool(started=[StartedRequest(1, 0, float("nan"), 0, 0, b"")]),  # type: ignore[arg-type]
    "a start in the future": pool(started=[StartedRequest(1, 0, 10, 0, -5, b"")]),
    "half a block": pool(started=[StartedRequest(1, 0, 10, 0, 0, b"1234567")]),
    "half a withdrawn block": pool(withdrawn=[EndpointBlocks(0, b"1")]),
    "a result that there is not": pool(outcomes=[SharedOutcome(0, "perfect")]),
    "a result that counts against no one": pool(outcomes=[SharedOutcome(0, "client_error")]),
    "no results in a row": pool(outcomes=[SharedOutcome(0, OK, 0)]),
    "an unknown reason for an empty cache": pool(emptied=[Emptied(0, "boredom")]),
    "a log entry that is broken by magic": pool(logged=[SharedLogEntry("r", 200, "magic", False, A1, 1, False, 0)]),
    "more recent prefills than all": pool(rates=[SharedRate(0, 1, 1, 2, 1)]),
    "too many endpoints": pool(endpoints=[f"10.0.0.1:{number}" for number in range(20_001)]),
    "an endpoint with a long name": pool(endpoints=["x" * 300]),
    "a pool without a name": pool(name=""),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_report_that_cannot_be_true_is_refused_as_a_whole(lie: PoolReport) -> None:
    pair = ReplicaPair()
    pair.begin()
    before = pair.b.requests(1.0)
    with pytest.raises(BadReport):
        pair.send(lie, 1.0)
    assert pair.b.requests(1.0) == before
    assert pair.b.index.match((1,), ADDRESSES) == [0, 0, 0]


@pytest.mark.parametrize(
    ("reports", "what"),
    [
        ([PeerReport(1, full=True)], "report number 1 where 0 is due"),
        ([PeerReport(0, full=False)], "not a full one"),
        ([PeerReport(0, full=True), PeerReport(0, full=False)], "report number 0 where 1 is due"),
        ([PeerReport(0, full=True, pools=[pool(), pool()])], "twice"),
    ],
)
def test_reports_out_of_order_are_refused(reports: list[PeerReport], what: str) -> None:
    part = PeerPart(lambda _: None)
    for report in reports[:-1]:
        part.apply(report, 0.0)
    with pytest.raises(BadReport, match=what):
        part.apply(reports[-1], 0.0)


def test_a_peer_cannot_fill_the_memory_with_requests() -> None:
    part = PeerPart(lambda _: None)
    half = [StartedRequest(number + 1, 0, 1, 0, 0, b"") for number in range(MAX_REQUESTS // 2 + 1)]
    part.apply(PeerReport(0, full=True, pools=[pool(started=half, in_flight=len(half))]), 0.0)
    with pytest.raises(BadReport, match="over the limit"):
        part.apply(PeerReport(1, full=False, pools=[pool(name="other", started=half, in_flight=len(half))]), 0.0)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_report_or_refused(data: bytes) -> None:
    try:
        report = decode(data)
    except BadReport:
        return
    assert decode(encode(report)) == report


@given(st.recursive(st.one_of(st.integers(), st.floats(), st.text(), st.binary(), st.none()), st.lists, max_leaves=30))
def test_any_value_in_the_place_of_a_report_is_refused_or_applied_as_a_whole(value: Any) -> None:
    pair = ReplicaPair()
    pair.begin()
    try:
        data = msgspec.msgpack.encode([1, False, False, [value] if isinstance(value, list) else value])
    except (OverflowError, UnicodeEncodeError):
        return
    try:
        pair.part.apply(decode(data), 1.0)
    except BadReport:
        assert all(found == (0, 0) for found in pair.b.requests(1.0).values())


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_blocks_survive_their_way(chain: list[int]) -> None:
    assert unpack_blocks(pack_blocks(chain)) == chain


class TestPublisher:
    def publisher(self) -> PoolPublisher:
        made = PoolPublisher("pool", BLOCKS, lambda: None)
        made.listen(listened=True)
        return made

    def test_without_a_listener_nothing_is_collected_but_the_requests_in_flight(self) -> None:
        side = ReplicaSide()
        for number in range(1000):
            side.publisher.outcome(A1, OK)
            side.publisher.logged(f"r{number}", Response(200))
        side.start(A1, 5, 0.0)
        assert side.woken == 0
        assert side.publisher.take(1.0) is None
        assert [row.uncached_tokens for row in side.publisher.full({}, 1.0).started] == [5]

    def test_a_listener_is_woken_once_for_a_report(self) -> None:
        side = ReplicaSide()
        side.publisher.listen(listened=True)
        for _ in range(5):
            side.start(A1, 5, 0.0)
        assert side.woken == 1
        report = side.publisher.take(0.25)
        assert report is not None
        assert [row.age_ms for row in report.started] == [250] * 5
        side.start(A1, 5, 1.0)
        assert side.woken == 2

    def test_results_in_a_row_are_one_row(self) -> None:
        publisher = self.publisher()
        for result in (OK, OK, OK, CONNECT_FAILURE, OK):
            publisher.outcome(A1, result)
        report = publisher.take(0.0)
        assert report is not None
        assert [(row.result, row.times) for row in report.outcomes] == [(OK, 3), (CONNECT_FAILURE, 1), (OK, 1)]

    def test_the_blocks_of_a_report_are_bounded_and_the_requests_are_not_lost(self) -> None:
        publisher = self.publisher()
        chain = tuple(range(50_000))
        for number in range(10):
            publisher.started(number + 1, A1, 1.0, 0.0, chain, 0.0)
        report = publisher.take(0.0)
        assert report is not None
        assert len(report.started) == 10
        assert 0 < sum(len(row.chain) for row in report.started) <= MAX_BATCH_BYTES

    def test_more_events_than_a_report_holds_are_replaced_by_a_full_one(self) -> None:
        publisher = self.publisher()
        for number in range(MAX_EVENTS + 1):
            publisher.logged(f"r{number}", Response(200))
        assert publisher.overflowed
        assert publisher.take(0.0) is None
        publisher.listen(listened=False)
        publisher.listen(listened=True)
        assert not publisher.overflowed


def test_outcomes_without_peers_do_what_they_did() -> None:
    store = RoutingStore("pool", stale_after=3.0)
    store.set_endpoints({A1: "vllm"}, 0.0)
    outcomes = Outcomes(store, ReplicaSide().index, ignore)
    outcomes.logged("unknown", Response(200), 0.0)
    outcomes.log_opened()
    outcomes.log_closed()
    assert outcomes.open_logs == 0


def test_a_replica_that_starts_gets_the_prompts_that_its_peer_knows() -> None:
    pair = ReplicaPair()
    pair.begin()
    pair.a.index.record(A2, (1, 2, 3))
    pair.a.index.record("10.0.0.9:8000", (1, 2, 3))  # not in the pool of B
    pair.send(pair.a.publisher.full({}, 1.0, pair.a.index.newest(100)), 1.0)
    assert pair.b.index.match((1, 2, 3), (*ADDRESSES, "10.0.0.9:8000")) == [0, 3, 0, 0]


def test_a_result_of_a_server_that_was_replaced_meanwhile_is_not_reported() -> None:
    pair = ReplicaPair()
    pair.begin()
    side = pair.b
    side.publisher.listen(listened=True)
    side.outcomes.log_opened()
    ticket(side.outcomes, side.store)
    side.publisher.take(0.0)
    side.store.set_endpoints({A2: "vllm"}, 0.5)
    side.store.set_endpoints({A1: "vllm", A2: "vllm"}, 0.5)  # another server at the address
    side.outcomes.logged("r1", Response(500, served=A1, complete=True), 1.0)
    report = side.publisher.take(1.0)
    assert report is None or report.outcomes == []
