"""HTTP/1.1 pipelining of page and health probe: it saves CPU time, and the results are those of single requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import engine
from agent.scrape.http_connection import BufferPool, FetchFailed, HttpConnection
from agent.scrape.loop import ScrapeLoop
from agent.scrape.target import Target
from tests.fakes.model_server import PAGE, answer
from tests.fakes.simulated import LoopClock, SimulatedLoop, SimulatedTransport, raise_broken, simulate
from tests.scrape.sinks import RecordingStore
from tests.waiting import eventually

INTERVAL = 0.05
BOTH = ("/metrics", "/health")
_GET = re.compile(rb"GET (\S+) ")


class PipeliningServer(asyncio.Protocol):
    """Records the GETs of each read; `behave` responds to them."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, ...]] = []
        self.connections = 0
        self.behave: Callable[[asyncio.Transport, tuple[str, ...]], None] = in_order
        self.address = ""
        self._open: set[asyncio.Transport] = set()

    async def start(self) -> asyncio.Server:
        made = await asyncio.get_running_loop().create_server(lambda: PipeliningConnection(self), "127.0.0.1", 0)
        self.address = f"127.0.0.1:{made.sockets[0].getsockname()[1]}"
        return made


class PipeliningConnection(asyncio.Protocol):
    """One connection of the server."""

    def __init__(self, server: PipeliningServer) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.connections += 1

    def data_received(self, data: bytes) -> None:
        paths = tuple(path.decode() for path in _GET.findall(data))
        self.server.reads.append(paths)
        self.server.behave(self.transport, paths)


def response_to(path: str) -> bytes:
    return answer(PAGE if path == "/metrics" else b"")


def in_order(transport: asyncio.Transport, paths: tuple[str, ...]) -> None:
    for path in paths:
        transport.write(response_to(path))


def only_first(transport: asyncio.Transport, paths: tuple[str, ...]) -> None:
    """Ignores a pipelined GET."""
    transport.write(response_to(paths[0]))


def first_then_close(transport: asyncio.Transport, paths: tuple[str, ...]) -> None:
    """Closes after the first response, if there is a pipelined GET."""
    transport.write(response_to(paths[0]))
    if len(paths) > 1:
        transport.close()


def first_with_connection_close(transport: asyncio.Transport, paths: tuple[str, ...]) -> None:
    """Announces the close in the first response, if there is a pipelined GET."""
    if len(paths) == 1:
        transport.write(response_to(paths[0]))
    else:
        transport.write(answer(PAGE, headers="HttpConnection: close\r\n"))
        transport.close()


def first_then_garbage(transport: asyncio.Transport, paths: tuple[str, ...]) -> None:
    transport.write(response_to(paths[0]))
    if len(paths) > 1:
        transport.write(b"SSH-2.0\r\n")


def page(body: bytes, status: str = "200 OK") -> Callable[[asyncio.Transport, tuple[str, ...]], None]:
    def behave(transport: asyncio.Transport, paths: tuple[str, ...]) -> None:
        for path in paths:
            transport.write(answer(body, status) if path == "/metrics" else response_to(path))

    return behave


def no_page(transport: asyncio.Transport, paths: tuple[str, ...]) -> None:
    """Never responds to a page, nor to the GETs after it."""
    for path in paths:
        if path == "/metrics":
            return
        transport.write(response_to(path))


class PipeliningRig:
    """One server, one loop, one store."""

    def __init__(self) -> None:
        clock = LoopClock(asyncio.get_running_loop())
        self.loop = ScrapeLoop(clock)
        self.store = RecordingStore(clock)
        self.server = PipeliningServer()

    def scrape(self, **settings: Any) -> None:
        defaults: dict[str, Any] = {"interval": INTERVAL, "health_interval": INTERVAL, "models_interval": 1e9}
        target = Target(self.server.address, "vllm", **{**defaults, **settings})
        self.store.set_endpoints({target.address: "vllm"}, 0.0)
        self.loop.set_targets("pool", [target], self.store)

    async def until_recorded(self, result: str, times: int = 1) -> None:
        """Wait until the store has received this result `times` more times."""
        await self.store.until_recorded(result, self.store.order.count(result) + times)


@pytest.fixture
async def rig() -> AsyncIterator[PipeliningRig]:
    made = PipeliningRig()
    listening = await made.server.start()
    yield made
    await made.loop.stop()
    listening.close()
    raise_broken()


async def pipelined(rig: PipeliningRig, **settings: Any) -> None:
    """Scrape until page and health are pipelined."""
    rig.scrape(**settings)
    await eventually(lambda: rig.server.reads.count(BOTH) >= 3)


class SteadyServer:
    """A simulated server that responds to all GETs in order and at once."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, ...]] = []
        self.connections = 0
        self.health = "200 OK"
        self.stuck = False  # no response to a page, nor to the GETs after it

    async def connected(self, loop: SimulatedLoop) -> None:
        self.connections += 1

    def requested(self, transport: SimulatedTransport, request: bytes) -> None:
        paths = tuple(path.decode() for path in _GET.findall(request))
        self.reads.append(paths)
        for path in paths:
            if path == "/metrics" and self.stuck:
                break
            transport.deliver(answer(b"", self.health) if path == "/health" else response_to(path))

    def disconnected(self, transport: SimulatedTransport) -> None:
        """The test has ended."""


def scrape_steady_server(
    interval: float,
    health_interval: float,
    story: Callable[[SteadyServer, SimulatedLoop, RecordingStore], Awaitable[None]],
) -> SteadyServer:
    """The server, after it was scraped at these intervals in simulated time while `story` ran."""
    server = SteadyServer()

    async def main(sim: SimulatedLoop) -> None:
        clock = LoopClock(sim)
        loop, store = ScrapeLoop(clock), RecordingStore(clock)
        target = Target(
            "10.0.0.7:8000", "vllm", interval=interval, health_interval=health_interval, models_interval=1e9
        )
        store.set_endpoints({target.address: "vllm"}, 0.0)
        loop.set_targets("pool", [target], store)
        try:
            await story(server, sim, store)
        finally:
            await loop.stop()

    simulate({("10.0.0.7", 8000): server}, main)
    return server


async def _a_minute(_: SteadyServer, sim: SimulatedLoop, __: RecordingStore) -> None:
    await sim.after(60.0)


# Within a minute, less a second and one interval until its first page.
@pytest.mark.parametrize(("interval", "health_interval"), [(0.05, 0.05), (1.0, 1.0), (0.5, 1.0), (0.05, 1.0)])
def test_page_and_health_of_a_good_server_are_pipelined_and_health_is_never_probed_alone(
    interval: float, health_interval: float
) -> None:
    server = scrape_steady_server(interval, health_interval, _a_minute)
    assert server.connections == 1
    reads = [paths for paths in server.reads if paths != ("/v1/models",)]
    assert reads[:2] == [("/health",), ("/metrics",)]  # before its first page
    regular = reads[2:]
    assert set(regular) <= {BOTH, ("/metrics",)}
    assert regular.count(BOTH) == pytest.approx(60 / health_interval, abs=3)
    assert len(regular) == pytest.approx(60 / interval, abs=3)


@pytest.mark.parametrize(
    ("status", "reason"), [("503 Service Unavailable", "health_unavailable"), ("500 Oops", "health_status")]
)
def test_a_failed_pipelined_health_probe_is_reported_at_once_with_the_reason(status: str, reason: str) -> None:
    async def fails_and_recovers(server: SteadyServer, sim: SimulatedLoop, store: RecordingStore) -> None:
        await sim.after(5.0)
        assert set(store.order) == {"page", "healthy"}
        server.health = status
        await sim.after(1.1)
        assert store.verdict == ("down", reason)
        server.health = "200 OK"
        await sim.after(1.1)
        assert store.verdict == ("healthy", "")
        assert set(store.order) == {"page", "healthy", reason}

    server = scrape_steady_server(1.0, 1.0, fails_and_recovers)
    assert ("/health",) not in server.reads[1:]


@pytest.mark.simulated
async def test_requests_to_an_engine_without_pipelining_are_sent_one_at_a_time(rig: PipeliningRig) -> None:
    rig.scrape(table=replace(engine("vllm"), pipelining=False))
    await rig.until_recorded("healthy", 4)
    assert set(rig.server.reads) == {("/health",), ("/metrics",), ("/v1/models",)}


@pytest.mark.simulated
@pytest.mark.parametrize("behave", [only_first, first_then_close, first_with_connection_close, first_then_garbage])
async def test_a_server_that_does_not_respond_to_a_pipelined_probe_is_healthy_and_gets_single_requests(
    rig: PipeliningRig, behave: Callable[[asyncio.Transport, tuple[str, ...]], None]
) -> None:
    rig.server.behave = behave
    rig.scrape()
    await eventually(lambda: BOTH in rig.server.reads)
    await rig.until_recorded("healthy", 5)
    assert rig.server.reads.count(BOTH) == 1
    assert set(rig.store.order) == {"page", "healthy"}


@pytest.mark.simulated
@pytest.mark.parametrize(
    ("behave", "reason"),
    [(page(b"<html>"), "not_metrics"), (page(b"", "404 Not Found"), "status")],
    ids=["no metrics", "404"],
)
async def test_health_is_reported_while_the_page_cannot_be_read(
    rig: PipeliningRig, behave: Callable[[asyncio.Transport, tuple[str, ...]], None], reason: str
) -> None:
    await pipelined(rig)
    rig.server.behave = behave
    await rig.until_recorded(f"page: {reason}", 3)
    await rig.until_recorded("healthy", 2)
    assert set(rig.store.order) == {"page", "healthy", f"page: {reason}"}


@pytest.mark.simulated
async def test_health_does_not_wait_for_a_page_that_hangs(rig: PipeliningRig) -> None:
    await pipelined(rig, timeout=60.0)
    requested = rig.server.reads.count(BOTH)
    rig.server.behave = no_page
    await rig.until_recorded("healthy", 4)
    assert rig.server.reads.count(BOTH) == requested + 1
    assert set(rig.store.order) == {"page", "healthy"}


@pytest.mark.simulated
async def test_a_late_page_is_used_and_the_pipelined_response_after_it_is_dropped(rig: PipeliningRig) -> None:
    await pipelined(rig, timeout=60.0)
    late: list[asyncio.Transport] = []

    def hold(transport: asyncio.Transport, paths: tuple[str, ...]) -> None:
        if paths == BOTH:
            late.append(transport)
        else:
            in_order(transport, paths)

    rig.server.behave = hold
    await rig.until_recorded("healthy", 2)
    pages = rig.store.order.count("page")
    rig.server.behave = in_order
    in_order(late[0], BOTH)
    await rig.until_recorded("page", 3)
    assert len(late) == 1
    assert rig.store.order.count("page") >= pages + 3
    assert set(rig.store.order) == {"page", "healthy"}


def test_a_page_that_times_out_is_not_a_failed_health_probe() -> None:
    async def gets_stuck(server: SteadyServer, sim: SimulatedLoop, store: RecordingStore) -> None:
        await sim.after(5.0)
        server.stuck = True
        await sim.after(10.0)
        assert store.verdict == ("blind", "timeout")
        assert set(store.order) == {"page", "healthy", "page: timeout"}

    scrape_steady_server(1.0, 1.0, gets_stuck)


# -- two responses on one connection---------------------------------------------------------------------------------


class WriteRecorder(asyncio.Transport):
    """A transport that records what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Pair:
    """A connection with two pipelined GETs, and the result of each."""

    def __init__(self, *, expected: bool = True) -> None:
        self.transport = WriteRecorder()
        self.idle_closes = 0
        self.results: list[bytes | str] = []
        self.connection = HttpConnection(BufferPool(), self._closed)
        self.connection.connection_made(self.transport)
        self._expected = expected
        self.connection.get(b"two GETs", 1000, self._first, self._failed, pipelined=True)

    def _closed(self) -> None:
        self.idle_closes += 1

    def _first(self, body: bytes, whole: bool) -> None:
        assert whole
        self.results.append(body)
        if self._expected:
            self.connection.read_second(1000, self._second, self._failed)

    def _second(self, body: bytes, whole: bool) -> None:
        self.results.append(body)

    def _failed(self, failure: FetchFailed) -> None:
        self.results.append(failure.reason)

    def receive(self, data: bytes) -> None:
        """Receive these bytes, in as many reads as the buffer requires."""
        while data and not self.transport.closed:
            room = self.connection.get_buffer(-1)
            size = min(len(room), len(data))
            room[:size] = data[:size]
            self.connection.buffer_updated(size)
            data = data[size:]


def chunked(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


BODY = st.binary(min_size=1, max_size=60)
ANSWER = st.builds(
    lambda body, made, interim: (body, interim + made(body)),
    BODY,
    st.sampled_from([answer, chunked]),
    st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"]),
)


@given(ANSWER, ANSWER, st.lists(st.integers(0, 600), max_size=6))
def test_two_responses_in_any_pieces_are_separated(
    one: tuple[bytes, bytes], two: tuple[bytes, bytes], cuts: list[int]
) -> None:
    pair = Pair()
    data = one[1] + two[1]
    at = 0
    for cut in [*sorted(cut % len(data) for cut in cuts), len(data)]:
        pair.receive(data[at:cut])
        at = max(at, cut)
    assert pair.results == [one[0], two[0]]
    assert not pair.transport.closed
    again: list[bytes] = []
    pair.connection.get(b"third", 1000, lambda body, _: again.append(body), pair.results.append)  # type: ignore[arg-type]
    pair.receive(answer(b"3"))
    assert again == [b"3"]


@given(ANSWER, st.binary(min_size=1, max_size=40), st.booleans())
def test_bytes_after_the_second_response_close_the_connection(
    one: tuple[bytes, bytes],
    more: bytes,
    at_once: bool,
) -> None:
    pair = Pair()
    if at_once:
        pair.receive(one[1] + answer(b"2") + more)
    else:
        pair.receive(one[1] + answer(b"2"))
        pair.receive(more)
    assert pair.results == [one[0], b"2"]
    assert pair.transport.closed


@pytest.mark.parametrize("rest", [b"", answer(b"2"), b"HTTP/1.1 2"])
def test_a_second_response_that_is_not_read_closes_the_connection(rest: bytes) -> None:
    pair = Pair(expected=False)
    pair.receive(answer(b"1") + rest)
    assert pair.results == [b"1"]
    assert pair.transport.closed


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (answer(b"", "404 Not Found"), "status"),
        (answer(b"1", headers="Content-Encoding: gzip\r\n"), "encoding"),
        (b"SSH-2.0\r\n", "bad_http"),
        (answer(b"x" * 1001), "too_large"),
    ],
)
def test_a_first_response_that_cannot_be_used_fails_both(first: bytes, reason: str) -> None:
    pair = Pair()
    pair.receive(first + answer(b"2"))
    assert pair.results == [reason]
    assert pair.transport.closed


def test_a_first_response_longer_than_one_buffer_leaves_the_second_complete() -> None:
    pair = Pair()
    pair.connection.close()
    other = WriteRecorder()
    pair.connection.connection_made(other)
    pair.transport = other
    body = b"x" * 300_000
    bodies: list[bytes] = []

    def first(page: bytes, whole: bool) -> None:
        bodies.append(page)
        pair.connection.read_second(1000, lambda page, _: bodies.append(page), pair._failed)

    pair.connection.get(b"two GETs", 1 << 20, first, pair._failed, pipelined=True)
    pair.receive(answer(body) + answer(b"2"))
    assert bodies == [body, b"2"]
    assert not pair.results


def test_a_connection_that_is_lost_before_the_second_response_fails_it() -> None:
    pair = Pair()
    pair.receive(answer(b"1"))
    pair.connection.connection_lost(None)
    assert pair.results == [b"1", "reset"]
    assert pair.idle_closes == 0
