"""The pipeline of a pool: every pick is in flight until it ends, and its prompt is in the prefix index."""

from __future__ import annotations

import gzip

import orjson
import pytest

from agent.app.endpoint_files import EndpointFiles
from agent.app.pool import Pool, PoolParts
from agent.app.pools import Pools
from agent.app.tasks import Tasks
from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.discovery.endpoints import EndpointSet
from agent.engines.mapping import Extraction
from agent.events import Event
from agent.events.requests import EncodedBody, Ended, Picked, Reported
from agent.events.scraping import CacheEmptied
from agent.kube.cluster import Cluster
from agent.pick.decision import Pick
from agent.requests.rejections import Rejection
from agent.requests.ticket import Request, Ticket
from agent.scrape.loop import ScrapeLoop
from agent.signals import BLOCK_SIZE, BLOCKS, KV_USAGE, RUNNING, WAITING
from agent.state.inflight import TRANSIT_SECONDS
from tests.fakes.clock import ManualClock

A, B = "10.0.0.1:8000", "10.0.0.2:8000"
EMPTY = EndpointSet({}, {}, {})
IDLE = {RUNNING: 0.0, WAITING: 0.0, KV_USAGE: 0.0}


def completion(model: str = "m", token: int = 7, **more: str) -> Request:
    """A request with a prompt of 640 tokens of four bytes."""
    body = orjson.dumps({"model": model, "prompt": [token] * 640, **more})
    return Request("r", "/v1/completions", body)


LONG = completion()


class Bench:
    """A pool that is not started: its routing state and its pipeline, with a clock of the test."""

    def __init__(self, more: str = "") -> None:
        self.config = parse(
            f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools:\n- endpoints: ['{A}', '{B}']\n{more}",
            "test",
            VOCABULARY,
        )
        self.clock = ManualClock(100.0)
        self.events: list[Event] = []
        self.remembered: list[Pick] = []
        self.parts = PoolParts(
            self.clock,
            self.events.append,
            Tasks(self.clock, self.events.append),
            ScrapeLoop(self.clock),
            lambda _, pick, __: self.remembered.append(pick),
            lambda: None,
            EndpointFiles(self.config, self.clock, self.events.append),
            Cluster("", self.clock),
            lambda *_: None,
        )
        self.pool = Pool(self.config, self.config.pools[0], self.parts)
        self.pool.store.set_endpoints({A: "vllm", B: "vllm"}, 100.0)

    def scraped(self, *addresses: str, **values: float) -> None:
        for address in addresses:
            self.pool.store.observed(address, Extraction({**IDLE, **values}, (), ()), self.clock.now(), 0.0, 100)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    def submit(self, request: Request) -> tuple[Ticket, Pick | Rejection]:
        decisions: list[Pick | Rejection] = []
        ticket = self.pool.submit(request, lambda _, decision: decisions.append(decision))
        (decision,) = decisions
        return ticket, decision

    def pick(self, request: Request = LONG, subset: frozenset[str] | None = None) -> tuple[Ticket, Pick]:
        ticket, decision = self.submit(request._replace(subset=subset))
        assert isinstance(decision, Pick)
        return ticket, decision


def test_a_pick_is_in_flight_until_it_ends_and_no_longer() -> None:
    bench = Bench()
    bench.scraped(A, B)
    picks = [bench.pick() for _ in range(5)]
    assert bench.pool.in_flight == bench.pool.store.in_flight == 5
    bench.clock.advance(2.5)
    for ticket, _ in picks:
        assert ticket.end("closed")
    assert bench.pool.in_flight == bench.pool.store.in_flight == 0
    assert [(event.took, event.how, event.model) for event in bench.of(Ended)] == [(2.5, "closed", "m")] * 5
    assert bench.remembered == [pick for _, pick in picks]


def test_a_pick_ends_once() -> None:
    bench = Bench()
    bench.scraped(A, B)
    ticket, _ = bench.pick()
    assert ticket.end("closed")
    assert not ticket.end("closed")
    assert bench.pool.in_flight == 0
    assert len(bench.of(Ended)) == 1


def test_a_rejected_request_is_not_in_flight() -> None:
    bench = Bench()
    _, decision = bench.submit(LONG)
    assert isinstance(decision, Rejection)
    assert decision.reason == "none_healthy"
    assert (bench.pool.in_flight, bench.of(Picked), bench.remembered) == (0, [], [])


def test_a_pool_with_blind_endpoints_only_is_ready_and_shares_its_requests() -> None:
    bench = Bench()
    bench.pool._known = EMPTY
    assert not bench.pool.ready()
    for address in (A, B):
        bench.pool.store.failed(address, "wrong_engine", "", bench.clock.now(), 0.0)
    assert bench.pool.ready()
    picks = [bench.pick(completion(token=token))[1].endpoint for token in range(8)]
    assert picks.count(A) == picks.count(B) == 4


def test_a_repeated_prompt_is_predicted_at_the_endpoint_that_had_it() -> None:
    bench = Bench()
    bench.scraped(A, B)
    ticket, first = bench.pick()
    ticket.end("closed")
    bench.clock.advance(1)
    bench.scraped(A, B)
    _, second = bench.pick()
    assert (first.hit_tokens, second.hit_tokens) == (0, 640)
    assert second.endpoint == first.endpoint
    assert [event.predicted_hit_tokens for event in bench.of(Picked)] == [0, 640]


@pytest.mark.parametrize("other", [completion("n"), completion(cache_salt="salt"), completion(token=8)])
def test_another_model_salt_or_text_shares_no_prefix(other: Request) -> None:
    bench = Bench()
    bench.scraped(A, B)
    bench.pick()
    assert bench.pick(other)[1].best_hit_tokens == 0


def test_only_the_beginning_of_a_very_long_prompt_is_compared() -> None:
    bench = Bench("prefixIndex: {maxTokens: 128}\n")
    bench.scraped(A, B)
    _, first = bench.pick()
    assert bench.pool.index.blocks(first.endpoint) == 2
    assert first.prompt_tokens == 640


def test_a_request_without_a_prompt_is_picked() -> None:
    bench = Bench()
    bench.scraped(A, B)
    ticket, pick = bench.pick(Request("r"))
    assert pick.prompt_tokens == 0
    assert ticket.end("closed")


def test_the_pick_is_in_the_subset_of_the_proxy() -> None:
    bench = Bench()
    bench.scraped(A, B)
    assert {bench.pick(subset=frozenset({B}))[1].endpoint for _ in range(3)} == {B}


@pytest.mark.parametrize(("auto", "held"), [("true", 4), ("false", 10)])
def test_the_index_follows_the_reported_cache_size_only_with_auto_size(auto: str, held: int) -> None:
    bench = Bench(f"prefixIndex: {{autoSize: {auto}}}\n")
    bench.scraped(A, B, **{BLOCKS: 16.0, BLOCK_SIZE: 16.0})
    _, pick = bench.pick()
    assert bench.pool.index.blocks(pick.endpoint) == held


def test_a_pool_is_ready_when_every_endpoint_was_scraped() -> None:
    bench = Bench()
    bench.pool._known = EMPTY
    assert not bench.pool.ready()
    bench.scraped(A)
    assert not bench.pool.ready()
    bench.pool.store.failed(B, "refused", "nothing listens", 100.0, 0.0)
    assert bench.pool.ready()


def test_a_pool_that_was_ready_stays_ready_when_endpoints_are_added_or_fail() -> None:
    bench = Bench()
    bench.pool._known = EMPTY
    bench.scraped(A, B)
    assert bench.pool.ready()
    bench.pool.store.failed(A, "refused", "nothing listens", 100.0, 0.0)
    bench.pool.store.set_endpoints({A: "vllm", B: "vllm", "10.0.0.3:8000": "vllm"}, 100.0)
    assert bench.pool.ready()


def test_an_added_pool_is_ready_only_after_its_own_scrapes() -> None:
    old, new = Bench(), Bench()
    pools = Pools(old.config, old.parts, lambda: None)
    for bench in (old, new):
        bench.pool._known = EMPTY
    old.scraped(A, B)
    pools.pools = {"old": old.pool}
    assert pools.readiness() == []
    pools.pools = {"old": old.pool, "new": new.pool}
    assert pools.readiness() == ["pool default: 2 of 2 endpoints were not scraped yet"]


def test_an_empty_pool_is_ready_once_its_endpoints_are_known() -> None:
    bench = Bench()
    assert bench.pool.readiness() == ["pool default: its endpoints are not known yet"]
    bench.pool._known = EMPTY
    bench.pool.store.set_endpoints({}, 100.0)
    assert bench.pool.ready()


REPORT = "TEXT named_metrics.num_requests_waiting=4.0, named_metrics.kv_cache_usage_perc=0.5"


@pytest.mark.parametrize(
    ("report", "served", "reason"),
    [
        (REPORT, A, ""),
        (REPORT, "", "unattributed"),
        (REPORT, B, "another_server"),
        ("TEXT named_metrics.num_requests_waiting=-4", A, "out_of_range"),
        ("BIN x", A, "unknown_format"),
    ],
)
def test_a_load_report_is_a_reading_of_the_server_that_answered_or_is_counted_as_refused(
    report: str, served: str, reason: str
) -> None:
    bench = Bench()
    bench.scraped(A, B)
    bench.clock.advance(1.0)
    ticket, _ = bench.pick(subset=frozenset({A}))
    bench.clock.advance(1.0)
    assert ticket.report(report, served)
    assert [(event.pool, event.endpoint, event.reason) for event in bench.of(Reported)] == [("default", A, reason)]
    one, other = bench.pool.store.snapshot(102.0).endpoints
    assert one.reading(WAITING) == ((0.0, 100.0) if reason else (4.0, 102.0 - TRANSIT_SECONDS))
    assert other.reading(WAITING) == (0.0, 100.0)


def test_a_load_report_of_an_engine_without_reports_is_refused() -> None:
    bench = Bench()
    bench.pool.store.set_endpoints({A: "auto", B: "tgi"}, 100.0)
    bench.scraped(A, B)
    for address in (A, B):
        ticket, _ = bench.pick(subset=frozenset({address}))
        assert ticket.report(REPORT, address)
    assert [event.reason for event in bench.of(Reported)] == ["nothing_known"] * 2


@pytest.mark.parametrize("orca", [True, False])
def test_a_pool_requests_load_reports_if_its_configuration_enables_them(orca: bool) -> None:
    assert Bench(f"  orca: {str(orca).lower()}\n").pool.reports is orca


def test_a_request_that_prefills_nothing_is_in_flight_without_work_or_blocks() -> None:
    bench = Bench()
    bench.scraped(A, B)
    body = orjson.dumps({"model": "m", "prompt": [7] * 640})
    ticket, pick = bench.pick(Request("r", "/tokenize", body, method="POST"))
    assert (pick.prompt_tokens, pick.hit_tokens, bench.pool.index.blocks(pick.endpoint)) == (0, 0, 0)
    view = next(v for v in bench.pool.store.snapshot(bench.clock.now()).endpoints if v.address == pick.endpoint)
    assert view.work.requests == 1
    assert view.work.busy_until <= bench.clock.now() + TRANSIT_SECONDS
    ticket.end("closed")
    assert bench.pool.in_flight == 0
    _, after = bench.pick()
    assert after.best_hit_tokens == 0


@pytest.mark.parametrize(
    ("path", "method", "empties"),
    [
        ("/reset_prefix_cache", "POST", True),
        ("/sleep?level=2", "POST", True),
        ("/sleep", "GET", False),
        ("/is_sleeping", "GET", False),
        ("/tokenize", "POST", False),
    ],
)
def test_a_request_that_empties_the_cache_of_its_endpoint_empties_the_index_when_it_has_ended(
    path: str, method: str, empties: bool
) -> None:
    bench = Bench()
    bench.scraped(A, B)
    for address in (A, B):
        bench.pick(subset=frozenset({address}))[0].end("closed")
    reset, pick = bench.pick(Request("r", path, b"" if method == "POST" else None, method=method))
    assert bench.pool.index.blocks(pick.endpoint) == 10
    reset.end("closed")
    other = B if pick.endpoint == A else A
    assert bench.pool.index.blocks(pick.endpoint) == (0 if empties else 10)
    assert bench.pool.index.blocks(other) == 10
    assert [event.reason for event in bench.of(CacheEmptied)] == (["request"] if empties else [])


def test_a_pool_reads_bodies_by_the_engine_that_its_endpoints_share() -> None:
    bench = Bench()
    bench.scraped(A, B)
    part = {"type": "image_url", "image_url": {"url": "http://a/1.png"}, "uuid": "sku"}
    other = {**part, "image_url": {"url": "http://b/2.png"}}
    words = "word " * 300

    def request(image: object) -> Request:
        content = [image, {"type": "text", "text": words}]
        body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": content}]})
        return Request("r", "/v1/chat/completions", body)

    bench.pick(request(part))
    assert bench.pick(request(other))[1].best_hit_tokens > 0
    bench.pool.store.set_endpoints({A: "sglang", B: "sglang"}, bench.clock.now())
    bench.scraped(A, B)
    bench.pick(request(part))
    assert bench.pick(request(other))[1].best_hit_tokens == 0


def test_bodies_with_an_encoding_are_counted_by_what_became_of_them() -> None:
    bench = Bench("extProc: {maxBody: 4096}\n")
    bench.scraped(A, B)
    small, large = (gzip.compress(orjson.dumps({"model": "m", "prompt": "x" * size})) for size in (1000, 5000))
    for body, encoding in ((small, "gzip"), (large, "gzip"), (b"?", "br")):
        bench.submit(Request("r", "/v1/completions", body, encoding))
    counted = [(event.pool, event.encoding, event.result) for event in bench.of(EncodedBody)]
    assert counted == [("default", "gzip", "read"), ("default", "gzip", "refused"), ("default", "other", "unread")]
