"""`/v1/state/watch`: encoded once for all watchers, bounded history, resumable, and no reader affects another."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.events import Event
from agent.events.process import WatcherDropped
from agent.flow.report import FlowReport
from agent.flow.room import Room
from agent.instruments.hook import Instruments
from agent.kube.objectives import PoolObjectives, RewriteRule, RewriteTarget
from agent.serve.admin.server import AdminServer
from agent.serve.state import documents
from agent.serve.state.watch import ChangeEvent, Feed, History, WatchLimits, event, parse_id
from agent.signals import KV_USAGE, WAITING
from agent.state.source import SourceStatus
from tests.fakes import watch_client
from tests.fakes.clock import ManualClock
from tests.fakes.flows import band, caller, flow_report
from tests.fakes.state_source import FakeStateSource
from tests.fakes.views import STALE_AFTER, view
from tests.fakes.watch_client import PATIENCE, RebuiltState, WatchClient, parse_event
from tests.waiting import eventually

QUICK = WatchLimits(gather_seconds=0.001, heartbeat_seconds=0.01, drain_seconds=PATIENCE)


# -- pure parts -------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="0123456789abcdef", min_size=1), st.integers(0, 10**18))
def test_the_id_of_an_event_reads_back(epoch, version):
    lines = event("change", epoch, version, b"{}").decode()
    assert parse_id(parse_event(lines).id) == (epoch, version)


@given(st.text())
def test_any_text_parses_as_an_id_or_none(text):
    found = parse_id(text)
    assert found is None or f"{found[0]}.{text.rpartition('.')[2]}" == text


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 300)), max_size=30), st.integers(1, 1000), st.integers(1, 8)
)
def test_a_history_returns_every_missed_event_or_none(steps, max_bytes, max_events):
    history, published, version = History(max_bytes, max_events), [], 0
    for growth, size in steps:
        change = ChangeEvent(version, version + growth, bytes(size))
        version += growth
        published.append(change)
        history.add(change)
        assert len(history._events) <= max_events
        assert len(history._events) == 1 or sum(len(each.payload) for each in history._events) <= max_bytes
    for at in range(version + 1):
        missed = history.after(at)
        if missed is None:
            assert at < history.base
        else:
            assert missed == [each for each in published if each.version > at]
        if history.covers(at):
            assert missed is not None
            assert at == 0 or at in {each.version for each in published}


# -- a server and its watchers ----------------------------------------------------------------------------------------


class WatchedFleet:
    """An admin server over one fake pool; `events` are those that its hook received."""

    def __init__(self, limits: WatchLimits, clock: ManualClock) -> None:
        self.clock = clock
        self.source = FakeStateSource("pool", view("a:1"), view("b:1"))
        self.events: list[Event] = []
        self.server = AdminServer(
            "127.0.0.1:0", clock=clock, instruments=Instruments(clock), hook=self.events.append, limits=limits
        )
        self.server.set_pools([self.source])
        self.clients: list[WatchClient] = []
        self.port = 0
        self.flows: list[FlowReport] = []
        self.flows_made = 0

    def hold(self, report: FlowReport) -> None:
        """Flow control of the pool from now on."""
        self.flows = [report]
        self.server.state.set_flows(self._flow_reports)

    def _flow_reports(self, now: float, pool: str | None = None, *, inputs: bool = False) -> list[FlowReport]:
        self.flows_made += 1
        return self.flows

    @property
    def feed(self) -> Feed:
        return self.server.state.feed

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> WatchClient:
        client = WatchClient(self.url, self.clock.now)
        self.clients.append(client)
        return client

    async def served_state(self) -> dict:
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/v1/state") as response:
            return await response.json()

    async def agrees(self, client: WatchClient) -> None:
        """Wait until the client has the newest version, and compare it with `/v1/state`."""
        await client.wait(lambda rebuilt: rebuilt.version == self.feed.version)
        served = await self.served_state()
        assert client.rebuilt.document(served["uptime_seconds"]) == served["pools"]


@pytest.fixture
async def start() -> AsyncIterator[Callable]:
    started: list[WatchedFleet] = []

    async def start(limits: WatchLimits = QUICK, clock: ManualClock | None = None) -> WatchedFleet:
        fleet = WatchedFleet(limits, clock or ManualClock())
        fleet.port = await fleet.server.start()
        started.append(fleet)
        return fleet

    yield start
    for fleet in started:
        for client in fleet.clients:
            await client.stop()
        await fleet.server.stop()


async def test_the_first_event_is_the_full_state_and_later_ones_update_it_exactly(start):
    fleet = await start()
    client = fleet.client()
    await fleet.agrees(client)
    fleet.clock.advance(0.5)
    fleet.source.put(view("a:1", {WAITING: 3.0}, at=0.25, backlog_seconds=2.0, requests=1))
    await fleet.agrees(client)
    fleet.source.put(view("c:1", at=0.5))
    fleet.source.drop("b:1")
    fleet.clock.advance(0.25)
    await fleet.agrees(client)
    rule = RewriteRule(frozenset({"b", "a"}), (RewriteTarget("c", 2),), ("llm", "canary"))
    fleet.source.set_source(SourceStatus("x", True, 0.0, (), PoolObjectives({"chat": 3}, (rule,))))
    await fleet.agrees(client)
    assert client.rebuilt.rules["pool"] == {
        "objectives": {"chat": 3},
        "rewrites": [{"models": ["a", "b"], "targets": [{"model": "c", "weight": 2}], "source": "llm/canary"}],
    }
    assert client.rebuilt.kinds[0] == "state"
    assert set(client.rebuilt.kinds[1:]) == {"change"}


async def test_only_what_changed_is_sent(start):
    fleet = await start()
    await fleet.agrees(fleet.client())
    fleet.source.put(view("a:1", {WAITING: 1.0}))
    await eventually(lambda: len(fleet.feed.history._events) == 1)
    document = json.loads(parse_event(fleet.feed.history._events[0].payload.decode()).data)
    assert [[each["address"] for each in pool["changed"]] for pool in document["pools"]] == [["a:1"]]


async def test_many_changes_at_once_are_one_event(start):
    fleet = await start()
    client = fleet.client()
    await fleet.agrees(client)
    for depth in range(100):
        fleet.source.put(view("a:1", {WAITING: float(depth)}))
    await fleet.agrees(client)
    assert client.rebuilt.kinds == ["state", "change"]


async def test_a_change_is_encoded_once_for_all_watchers(start, monkeypatch):
    fleet = await start()
    clients = [fleet.client() for _ in range(5)]
    for client in clients:
        await fleet.agrees(client)
    encoded = []
    change = documents.change

    def counted(*arguments):
        encoded.append(arguments)
        return change(*arguments)

    monkeypatch.setattr(documents, "change", counted)
    fleet.source.put(view("a:1", {WAITING: 1.0}))
    for client in clients:
        await fleet.agrees(client)
    assert len(encoded) == 1


async def test_nothing_is_encoded_without_watchers(start, monkeypatch):
    fleet = await start()
    monkeypatch.setattr(documents, "change", lambda *_: pytest.fail("encoded without watchers"))
    before = fleet.feed.version
    for depth in range(100):
        fleet.source.put(view("a:1", {WAITING: float(depth)}))
    assert fleet.feed.version == before + 100
    assert fleet.feed._gathering is None


async def test_the_last_watcher_that_leaves_cancels_the_timers(start):
    fleet = await start()
    client = fleet.client()
    await fleet.agrees(client)
    fleet.source.good_until = 1e9
    fleet.source.put(view("a:1", {WAITING: 1.0}))
    await fleet.agrees(client)
    await client.stop()
    await eventually(lambda: fleet.feed.watchers == 0)
    assert (fleet.feed._gathering, fleet.feed._expiry, fleet.feed._flows_due) == (None, None, None)


async def test_flow_control_is_in_the_state_and_a_change_has_the_rooms_that_changed(start):
    fleet = await start(WatchLimits(gather_seconds=0.001, flow_seconds=0.0))
    fleet.hold(flow_report(band(0), band(-1), rooms=[Room(2.0), Room(1.0)]))
    client = fleet.client()
    await fleet.agrees(client)
    fleet.hold(flow_report(band(0, caller("a", 3)), band(-1, shed=0.5), rooms=[Room(2.0), Room(0.0, saturation=1.5)]))
    fleet.source.put(view("a:1", {WAITING: 3.0}))
    await fleet.agrees(client)
    flow = client.rebuilt.flows["pool"]
    assert flow is not None
    assert (flow["saturated"], flow["waiting_requests"]) == (True, 3)
    assert flow["shedding"] == [{"priority": -1, "expected_wait_seconds": 0.0, "probability": 0.5}]
    assert {address: room["has_room"] for address, room in flow["rooms"].items()} == {"0:1": True, "1:1": False}
    document = json.loads(parse_event(fleet.feed.history._events[-1].payload.decode()).data)
    assert list(document["pools"][0]["flow"]["rooms"]) == ["1:1"]
    fleet.hold(flow_report(band(0), band(-1), rooms=[Room(2.0)]))
    fleet.source.put(view("a:1", {WAITING: 4.0}))
    await fleet.agrees(client)
    flow = client.rebuilt.flows["pool"]
    assert flow is not None
    assert list(flow["rooms"]) == ["0:1"]


async def test_flow_control_is_published_at_most_once_in_a_while_however_many_requests_change_it(start):
    fleet = await start(WatchLimits(gather_seconds=0.001, flow_seconds=1.0))
    fleet.hold(flow_report(band(0), rooms=[Room(100.0)]))
    client = fleet.client()
    await fleet.agrees(client)
    before = fleet.flows_made
    for number in range(20):
        fleet.hold(flow_report(band(0), rooms=[Room(99.0 - number)]))
        fleet.source.put(view("a:1", {WAITING: float(number)}))
        await client.wait(lambda rebuilt: rebuilt.version == fleet.feed.version)
    assert fleet.flows_made == before
    flow = client.rebuilt.flows["pool"]
    assert flow is not None
    assert flow["rooms"]["0:1"]["requests"] == 100.0
    assert fleet.feed._flows_due is not None  # what was left out is published when the time is over
    fleet.clock.advance(1.0)
    fleet.feed._publish_flows()
    await fleet.agrees(client)
    assert fleet.flows_made == before + 2  # with the one for /v1/state
    flow = client.rebuilt.flows["pool"]
    assert flow is not None
    assert flow["rooms"]["0:1"]["requests"] == 80.0


async def test_flow_control_alone_may_change(start):
    fleet = await start(WatchLimits(gather_seconds=0.001, flow_seconds=0.0))
    fleet.hold(flow_report(band(0)))
    client = fleet.client()
    await fleet.agrees(client)
    fleet.hold(flow_report(band(0, caller("a"))))
    fleet.feed.publish()
    await fleet.agrees(client)
    flow = client.rebuilt.flows["pool"]
    assert flow is not None
    assert flow["waiting_requests"] == 1
    version = fleet.feed.version
    fleet.feed.publish()
    assert fleet.feed.version == version


async def first_events(
    fleet: WatchedFleet, count: int, query: str = "", **headers: str
) -> list[watch_client.StreamEvent]:
    """The first events of a new connection, comments included."""
    async with (
        asyncio.timeout(PATIENCE),
        aiohttp.ClientSession(read_bufsize=1 << 22) as http,
        http.get(f"{fleet.url}/v1/state/watch{query}", headers=headers) as response,
    ):
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        blocks: list[bytes] = []
        while len(blocks) < count:
            block = await response.content.readuntil(b"\n\n")
            if not block.startswith(b"retry:"):
                blocks.append(block)
        return [parse_event(block.decode()) for block in blocks]


@pytest.mark.parametrize("by", ["header", "query"])
async def test_a_watcher_that_resumes_gets_the_missed_events_and_no_more(start, by):
    fleet = await start()
    witness = fleet.client()
    await fleet.agrees(witness)
    seen = witness.rebuilt.last_id
    fleet.source.put(view("a:1", {WAITING: 1.0}))
    await fleet.agrees(witness)
    fleet.source.drop("b:1")
    await fleet.agrees(witness)
    resumed = await (
        first_events(fleet, 2, **{"Last-Event-ID": seen})
        if by == "header"
        else first_events(fleet, 2, f"?since={seen}")
    )
    assert [each.kind for each in resumed] == ["change", "change"]
    assert resumed[-1].id == witness.rebuilt.last_id


async def test_a_watcher_that_resumes_gets_what_changed_without_watchers(start):
    fleet = await start()
    client = fleet.client()
    await fleet.agrees(client)
    seen = client.rebuilt.last_id
    await client.stop()
    await eventually(lambda: fleet.feed.watchers == 0)
    fleet.source.put(view("a:1", {WAITING: 1.0}))
    fleet.source.drop("b:1")
    (resumed,) = await first_events(fleet, 1, **{"Last-Event-ID": seen})
    assert resumed.kind == "change"
    client.rebuilt.apply(resumed)
    served = await fleet.served_state()
    assert client.rebuilt.document(served["uptime_seconds"]) == served["pools"]


@pytest.mark.parametrize("seen", ["another.1", "nonsense", "{epoch}.0", "{epoch}.999999"])
async def test_a_watcher_that_resumes_from_an_id_outside_the_history_gets_the_full_state(start, seen):
    fleet = await start(WatchLimits(gather_seconds=0.001, history_events=1))
    witness = fleet.client()
    for depth in range(3):
        fleet.source.put(view("a:1", {WAITING: float(depth)}))
        await fleet.agrees(witness)
    (first,) = await first_events(fleet, 1, **{"Last-Event-ID": seen.format(epoch=fleet.feed.epoch)})
    assert first.kind == "state"


async def test_a_watcher_cannot_resume_from_a_version_between_two_events(start):
    fleet = await start()
    witness = fleet.client()
    await fleet.agrees(witness)
    fleet.source.put(view("c:1"))
    between = f"{fleet.feed.epoch}.{fleet.feed.version}"
    fleet.source.drop("c:1")
    fleet.source.put(view("a:1", {WAITING: 1.0}))
    await fleet.agrees(witness)
    (first,) = await first_events(fleet, 1, **{"Last-Event-ID": between})
    assert first.kind == "state"


async def test_a_since_that_is_not_an_id_is_refused(start):
    fleet = await start()
    async with aiohttp.ClientSession() as http, http.get(f"{fleet.url}/v1/state/watch?since=yesterday") as response:
        assert response.status == 400
        assert "write the id of an event" in (await response.json())["error"]["message"]


async def test_heartbeats_contain_the_time_until_which_nothing_changed(start):
    fleet = await start()
    events = await first_events(fleet, 3)
    assert [each.kind for each in events] == ["state", "", ""]
    rebuilt = RebuiltState(fleet.clock.now)
    fleet.clock.advance(7.0)
    (_, heartbeat) = await first_events(fleet, 2)
    rebuilt.epoch = fleet.feed.epoch
    rebuilt.apply(heartbeat)
    assert rebuilt.uptime_zero == 0.0
    assert json.loads(heartbeat.data)["uptime_seconds"] == 7.0


async def test_a_reading_that_becomes_stale_is_published_without_another_change(start):
    fleet = await start()
    client = fleet.client()
    await fleet.agrees(client)
    fleet.source.good_until = fleet.clock.now()
    fleet.source.put(view("a:1", {WAITING: 1.0}))
    await fleet.agrees(client)
    received = len(client.rebuilt.kinds)
    fleet.clock.advance(STALE_AFTER)
    fleet.source.views["a:1"] = view("a:1", {WAITING: 2.0})
    await client.wait(lambda rebuilt: len(rebuilt.kinds) > received)
    assert client.rebuilt.pools["pool"]["a:1"][0]["signals"][WAITING]["value"] is None


async def test_a_watcher_over_the_limit_is_refused_with_retry_after(start):
    fleet = await start(WatchLimits(watchers=1, gather_seconds=0.001))
    await fleet.agrees(fleet.client())
    async with aiohttp.ClientSession() as http, http.get(f"{fleet.url}/v1/state/watch") as response:
        refused = await response.json()
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        assert refused["error"]["code"] == "too_many_watchers"
    assert fleet.events == [WatcherDropped("too_many")]
    async with aiohttp.ClientSession() as http, http.get(f"{fleet.url}/v1/state") as response:
        assert response.status == 200


def big_fleet(depth: float) -> list:
    """Endpoints whose state is about half a megabyte."""
    return [view(f"10.0.0.{number}:8000", {WAITING: depth, KV_USAGE: 0.5}) for number in range(250)]


async def test_a_watcher_that_does_not_read_is_dropped_and_no_other_is_affected(start):
    fleet = await start(WatchLimits(gather_seconds=0.001, drain_seconds=1.0, history_events=4))
    fleet.source.put(*big_fleet(0.0))
    reader = fleet.client()
    await fleet.agrees(reader)
    loop = asyncio.get_running_loop()
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.setblocking(False)
        await loop.sock_connect(silent, ("127.0.0.1", fleet.port))
        await loop.sock_sendall(silent, b"GET /v1/state/watch HTTP/1.1\r\nHost: agent\r\n\r\n")
        depth = 0.0
        async with asyncio.timeout(PATIENCE):
            while not fleet.events:
                depth += 1.0
                fleet.source.put(*big_fleet(depth))
                await reader.wait(lambda rebuilt: rebuilt.version == fleet.feed.version)
    assert fleet.events == [WatcherDropped("slow")]
    await eventually(lambda: fleet.feed.watchers == 1)
    await fleet.agrees(reader)
    assert reader.connections == 1


async def test_a_change_over_the_size_limit_drops_the_watchers_and_is_counted(start):
    fleet = await start(WatchLimits(gather_seconds=0.001, message_bytes=100_000))
    client = fleet.client()
    await fleet.agrees(client)
    fleet.source.put(*big_fleet(1.0))
    await eventually(lambda: fleet.feed.watchers == 0)
    assert set(fleet.events) == {WatcherDropped("too_large")}


async def test_pools_may_be_added_and_removed(start):
    fleet = await start()
    client = fleet.client()
    await fleet.agrees(client)
    other = FakeStateSource("other", view("x:1"))
    fleet.server.set_pools([fleet.source, other])
    await fleet.agrees(client)
    assert set(client.rebuilt.pools) == {"pool", "other"}
    fleet.server.set_pools([other])
    await fleet.agrees(client)
    assert set(client.rebuilt.pools) == {"other"}
    assert fleet.source.on_change == []
    assert client.connections == 1


async def test_an_agent_that_stops_ends_its_streams_at_once(start):
    fleet = await start()
    client = fleet.client()
    await fleet.agrees(client)
    async with asyncio.timeout(PATIENCE):
        await fleet.server.stop()
    assert fleet.feed.watchers == 0
