"""The page and the health path asked in one write: it saves CPU time, and nothing is told that two writes would not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import SystemClock
from agent.engines import engine
from agent.scrape.fetch import Buffers, Connection, FetchFailed
from agent.scrape.loop import ScrapeLoop, Target
from tests.fakes.simulated import LoopClock, SimulatedLoop, simulate
from tests.fakes.simulated import Wire as SimulatedWire
from tests.scrape.model_server import PAGE, answer
from tests.scrape.test_health_path import Told
from tests.waiting import eventually

INTERVAL = 0.05
BOTH = ("/metrics", "/health")
_GET = re.compile(rb"GET (\S+) ")


class Server(asyncio.Protocol):
    """Takes down which GETs come in at once; `behave` is told of each such lot and answers as it likes."""

    def __init__(self) -> None:
        self.lots: list[tuple[str, ...]] = []
        self.connections = 0
        self.behave: Callable[[asyncio.Transport, tuple[str, ...]], None] = in_turn
        self.address = ""
        self._open: set[asyncio.Transport] = set()

    async def start(self) -> asyncio.Server:
        made = await asyncio.get_running_loop().create_server(lambda: Served(self), "127.0.0.1", 0)
        self.address = f"127.0.0.1:{made.sockets[0].getsockname()[1]}"
        return made


class Served(asyncio.Protocol):
    """One of its connections."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.connections += 1

    def data_received(self, data: bytes) -> None:
        lot = tuple(path.decode() for path in _GET.findall(data))
        self.server.lots.append(lot)
        self.server.behave(self.transport, lot)


def of(path: str) -> bytes:
    return answer(PAGE if path == "/metrics" else b"")


def in_turn(transport: asyncio.Transport, lot: tuple[str, ...]) -> None:
    for path in lot:
        transport.write(of(path))


def first_alone(transport: asyncio.Transport, lot: tuple[str, ...]) -> None:
    """It never looks at what came with another GET in front of it."""
    transport.write(of(lot[0]))


def first_and_end(transport: asyncio.Transport, lot: tuple[str, ...]) -> None:
    """It closes without a word of warning, if more than it answers was asked."""
    transport.write(of(lot[0]))
    if len(lot) > 1:
        transport.close()


def first_and_goodbye(transport: asyncio.Transport, lot: tuple[str, ...]) -> None:
    """It says that it will close, if more than it answers was asked."""
    if len(lot) == 1:
        transport.write(of(lot[0]))
    else:
        transport.write(answer(PAGE, headers="Connection: close\r\n"))
        transport.close()


def first_and_nonsense(transport: asyncio.Transport, lot: tuple[str, ...]) -> None:
    transport.write(of(lot[0]))
    if len(lot) > 1:
        transport.write(b"SSH-2.0\r\n")


def page(body: bytes, status: str = "200 OK") -> Callable[[asyncio.Transport, tuple[str, ...]], None]:
    def behave(transport: asyncio.Transport, lot: tuple[str, ...]) -> None:
        for path in lot:
            transport.write(answer(body, status) if path == "/metrics" else of(path))

    return behave


def no_page(transport: asyncio.Transport, lot: tuple[str, ...]) -> None:
    """A page that never comes, and what stands behind it waits for it."""
    for path in lot:
        if path == "/metrics":
            return
        transport.write(of(path))


class Rig:
    """One server, one loop, one store."""

    def __init__(self) -> None:
        self.loop = ScrapeLoop(SystemClock())
        self.store = Told()
        self.server = Server()

    def scrape(self, **settings: Any) -> None:
        usual: dict[str, Any] = {"interval": INTERVAL, "health_interval": INTERVAL, "models_interval": 1e9}
        target = Target(self.server.address, "vllm", **{**usual, **settings})
        self.store.set_endpoints({target.address: "vllm"}, 0.0)
        self.loop.set_targets("pool", [target], self.store)

    async def is_told(self, word: str, times: int = 1) -> None:
        """So often from now on."""
        times += self.store.order.count(word)
        await eventually(lambda: self.store.order.count(word) >= times, what=f"{times} times {word}")


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    listening = await made.server.start()
    yield made
    await made.loop.stop()
    listening.close()


async def asked_together(rig: Rig, **settings: Any) -> None:
    """It is well, and asked for both at once."""
    rig.scrape(**settings)
    await eventually(lambda: rig.server.lots.count(BOTH) >= 3)


class Steady:
    """A server of the simulated world that answers what comes in, in turn and at once."""

    def __init__(self) -> None:
        self.lots: list[tuple[str, ...]] = []
        self.connections = 0
        self.health = "200 OK"
        self.stuck = False  # no page comes any more, nor what stands behind it

    async def connected(self, loop: SimulatedLoop) -> None:
        self.connections += 1

    def asked(self, wire: SimulatedWire, request: bytes) -> None:
        lot = tuple(path.decode() for path in _GET.findall(request))
        self.lots.append(lot)
        for path in lot:
            if path == "/metrics" and self.stuck:
                break
            wire.bring(answer(b"", self.health) if path == "/health" else of(path))

    def left(self, wire: SimulatedWire) -> None:
        """It is closed when the test ends."""


def scrape_steady(
    interval: float, health_interval: float, story: Callable[[Steady, SimulatedLoop, Told], Awaitable[None]]
) -> Steady:
    """Its server, scraped on these intervals in a world where no answer is late, while `story` goes on."""
    server = Steady()

    async def main(world: SimulatedLoop) -> None:
        loop, store = ScrapeLoop(LoopClock(world)), Told()
        target = Target(
            "10.0.0.7:8000", "vllm", interval=interval, health_interval=health_interval, models_interval=1e9
        )
        store.set_endpoints({target.address: "vllm"}, 0.0)
        loop.set_targets("pool", [target], store)
        try:
            await story(server, world, store)
        finally:
            await loop.stop()

    simulate({("10.0.0.7", 8000): server}, main)
    return server


async def _a_minute(_: Steady, world: SimulatedLoop, __: Told) -> None:
    await world.after(60.0)


# Of a minute: a second and one interval go by before its first page is believed.
@pytest.mark.parametrize(("interval", "health_interval"), [(0.05, 0.05), (1.0, 1.0), (0.5, 1.0), (0.05, 1.0)])
def test_a_server_that_is_well_is_asked_for_both_in_one_write_and_for_health_never_again_alone(
    interval: float, health_interval: float
) -> None:
    server = scrape_steady(interval, health_interval, _a_minute)
    assert server.connections == 1
    lots = [lot for lot in server.lots if lot != ("/v1/models",)]
    assert lots[:2] == [("/health",), ("/metrics",)]  # before its first page is believed
    asked = lots[2:]
    assert set(asked) <= {BOTH, ("/metrics",)}
    assert asked.count(BOTH) == pytest.approx(60 / health_interval, abs=3)
    assert len(asked) == pytest.approx(60 / interval, abs=3)


@pytest.mark.parametrize(
    ("status", "reason"), [("503 Service Unavailable", "health_unavailable"), ("500 Oops", "health_status")]
)
def test_a_health_path_that_says_no_behind_a_page_is_told_at_once_with_the_reason(status: str, reason: str) -> None:
    async def falls_ill_and_recovers(server: Steady, world: SimulatedLoop, store: Told) -> None:
        await world.after(5.0)
        assert set(store.order) == {"page", "well"}
        server.health = status
        await world.after(1.1)
        assert store.verdict_at(world.time()) == ("down", reason)
        server.health = "200 OK"
        await world.after(1.1)
        assert store.verdict_at(world.time()) == ("healthy", "")
        assert set(store.order) == {"page", "well", reason}

    server = scrape_steady(1.0, 1.0, falls_ill_and_recovers)
    assert ("/health",) not in server.lots[1:]


async def test_an_engine_that_is_not_known_to_answer_in_turn_is_asked_for_one_thing_at_a_time(rig: Rig) -> None:
    rig.scrape(table=replace(engine("vllm"), answers_in_turn=False))
    await rig.is_told("well", 4)
    assert set(rig.server.lots) == {("/health",), ("/metrics",), ("/v1/models",)}


@pytest.mark.parametrize("behave", [first_alone, first_and_end, first_and_goodbye, first_and_nonsense])
async def test_a_server_that_does_not_answer_the_second_is_well_and_asked_apart_from_then_on(
    rig: Rig, behave: Callable[[asyncio.Transport, tuple[str, ...]], None]
) -> None:
    rig.server.behave = behave
    rig.scrape()
    await eventually(lambda: BOTH in rig.server.lots)
    await rig.is_told("well", 5)
    assert rig.server.lots.count(BOTH) == 1
    assert set(rig.store.order) == {"page", "well"}


@pytest.mark.parametrize(
    ("behave", "reason"),
    [(page(b"<html>"), "not_metrics"), (page(b"", "404 Not Found"), "status"), (page(b""), "empty")],
    ids=["no metrics", "404", "empty"],
)
async def test_health_is_told_beside_a_page_that_cannot_be_read(
    rig: Rig, behave: Callable[[asyncio.Transport, tuple[str, ...]], None], reason: str
) -> None:
    await asked_together(rig)
    rig.server.behave = behave
    await rig.is_told(f"page: {reason}", 3)
    await rig.is_told("well", 2)
    assert set(rig.store.order) == {"page", "well", f"page: {reason}"}


async def test_health_does_not_wait_behind_a_page_that_does_not_come(rig: Rig) -> None:
    await asked_together(rig, timeout=60.0)
    asked = rig.server.lots.count(BOTH)
    rig.server.behave = no_page
    await rig.is_told("well", 4)
    assert rig.server.lots.count(BOTH) == asked + 1
    assert set(rig.store.order) == {"page", "well"}


async def test_a_page_that_comes_late_is_taken_and_what_was_behind_it_is_for_nobody(rig: Rig) -> None:
    await asked_together(rig, timeout=60.0)
    late: list[asyncio.Transport] = []

    def hold(transport: asyncio.Transport, lot: tuple[str, ...]) -> None:
        if lot == BOTH:
            late.append(transport)
        else:
            in_turn(transport, lot)

    rig.server.behave = hold
    await rig.is_told("well", 2)
    pages = rig.store.order.count("page")
    rig.server.behave = in_turn
    in_turn(late[0], BOTH)
    await rig.is_told("page", 3)
    assert len(late) == 1
    assert rig.store.order.count("page") >= pages + 3
    assert set(rig.store.order) == {"page", "well"}


def test_a_page_that_times_out_takes_no_word_of_health_with_it() -> None:
    async def gets_stuck(server: Steady, world: SimulatedLoop, store: Told) -> None:
        await world.after(5.0)
        server.stuck = True
        await world.after(10.0)
        assert store.verdict_at(world.time()) == ("down", "health_only")
        assert set(store.order) == {"page", "well", "page: timeout"}

    scrape_steady(1.0, 1.0, gets_stuck)


# -- two answers on one connection ----------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """Takes down what is written."""

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
    """A connection on which two GETs were sent in one write, and what came of each."""

    def __init__(self, *, taken: bool = True) -> None:
        self.wire = Wire()
        self.idle_closes = 0
        self.told: list[bytes | str] = []
        self.connection = Connection(Buffers(), self._closed)
        self.connection.connection_made(self.wire)
        self._taken = taken
        self.connection.get(b"two GETs", 1000, self._first, self._failed, two=True)

    def _closed(self) -> None:
        self.idle_closes += 1

    def _first(self, body: bytes, whole: bool) -> None:
        assert whole
        self.told.append(body)
        if self._taken:
            self.connection.second(1000, self._second, self._failed)

    def _second(self, body: bytes, whole: bool) -> None:
        self.told.append(body)

    def _failed(self, failure: FetchFailed) -> None:
        self.told.append(failure.reason)

    def come(self, data: bytes) -> None:
        """These bytes at once, or as many reads of them as it has room for."""
        while data and not self.wire.closed:
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
def test_two_answers_are_told_from_each_other_wherever_their_bytes_are_cut(
    one: tuple[bytes, bytes], two: tuple[bytes, bytes], cuts: list[int]
) -> None:
    pair = Pair()
    wire = one[1] + two[1]
    at = 0
    for cut in [*sorted(cut % len(wire) for cut in cuts), len(wire)]:
        pair.come(wire[at:cut])
        at = max(at, cut)
    assert pair.told == [one[0], two[0]]
    assert not pair.wire.closed
    again: list[bytes] = []
    pair.connection.get(b"third", 1000, lambda body, _: again.append(body), pair.told.append)  # type: ignore[arg-type]
    pair.come(answer(b"3"))
    assert again == [b"3"]


@given(ANSWER, st.binary(min_size=1, max_size=40), st.booleans())
def test_bytes_behind_the_second_answer_close_the_connection(
    one: tuple[bytes, bytes],
    more: bytes,
    at_once: bool,
) -> None:
    pair = Pair()
    if at_once:
        pair.come(one[1] + answer(b"2") + more)
    else:
        pair.come(one[1] + answer(b"2"))
        pair.come(more)
    assert pair.told == [one[0], b"2"]
    assert pair.wire.closed


@pytest.mark.parametrize("behind", [b"", answer(b"2"), b"HTTP/1.1 2"])
def test_a_second_answer_that_nobody_takes_closes_the_connection(behind: bytes) -> None:
    pair = Pair(taken=False)
    pair.come(answer(b"1") + behind)
    assert pair.told == [b"1"]
    assert pair.wire.closed


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (answer(b"", "404 Not Found"), "status"),
        (answer(b"1", headers="Content-Encoding: gzip\r\n"), "encoding"),
        (b"SSH-2.0\r\n", "bad_http"),
        (answer(b"x" * 1001), "too_large"),
    ],
)
def test_a_first_answer_that_cannot_be_used_ends_both(first: bytes, told: str) -> None:
    pair = Pair()
    pair.come(first + answer(b"2"))
    assert pair.told == [told]
    assert pair.wire.closed


def test_a_first_answer_that_is_too_long_for_one_buffer_leaves_the_second_whole() -> None:
    pair = Pair()
    pair.connection.close()
    wide = Wire()
    pair.connection.connection_made(wide)
    pair.wire = wide
    body = b"x" * 300_000
    told: list[bytes] = []

    def first(page: bytes, whole: bool) -> None:
        told.append(page)
        pair.connection.second(1000, lambda page, _: told.append(page), pair._failed)

    pair.connection.get(b"two GETs", 1 << 20, first, pair._failed, two=True)
    pair.come(answer(body) + answer(b"2"))
    assert told == [body, b"2"]
    assert not pair.told


def test_a_connection_that_breaks_before_the_second_answer_fails_it() -> None:
    pair = Pair()
    pair.come(answer(b"1"))
    pair.connection.connection_lost(None)
    assert pair.told == [b"1", "reset"]
    assert pair.idle_closes == 0
