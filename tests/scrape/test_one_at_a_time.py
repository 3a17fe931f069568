"""However a server answers and however often its settings change: it is never asked for two pages at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from math import isfinite
from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.engines.mapping import Extraction
from agent.scrape.budget import Gate, Shared
from agent.scrape.loop import ScrapeLoop, Target
from agent.state.endpoint import Identity
from tests.fakes.simulated import LoopClock, SimulatedLoop, Wire, simulate
from tests.scrape.model_server import answer

HOST = "10.0.0.7"
PAGE = b'vllm:num_requests_running{model_name="tiny"} 4\nvllm:num_requests_waiting{model_name="tiny"} 0\n'
WELL = answer(PAGE)
SECONDS = 12.0

# What comes back for a GET: pieces, and whether the server closes behind them. No piece and no close: it hangs.
ANSWERS: dict[str, tuple[tuple[bytes, ...], bool]] = {
    "well": ((WELL,), False),
    "in pieces": ((WELL[:30], WELL[30:60], WELL[60:]), False),
    "well, and closed": ((WELL,), True),
    "said to be closed": ((answer(PAGE, headers="Connection: close\r\n"),), True),
    "without a length": ((b"HTTP/1.0 200 OK\r\n\r\n" + PAGE,), True),
    "twice": ((WELL + WELL,), False),
    "cut": ((WELL[:-20],), True),
    "stuck": ((WELL[:-20],), False),
    "an error": ((answer(b"sorry", "500 Internal Server Error"),), False),
    "unavailable": ((answer(b"", "503 Service Unavailable"),), False),
    "another engine": ((answer(b"sglang:num_running_reqs 1\n"),), False),
    "no page": ((answer(b"<html>"),), False),
    "no HTTP": ((b"SSH-2.0-OpenSSH_9\r\n",), False),
    "closed": ((), True),
    "nothing": ((), False),
}


class Said(NamedTuple):
    """What happens to one GET, `after` seconds between the pieces; or to the connection that it needs."""

    answer: str
    after: float
    connected: str = "open"


DULL = Said("well", 0.001)


class Change(NamedTuple):
    """Other settings, so many seconds after those before."""

    after: float
    there: bool
    interval: float
    timeout: float
    pod: str
    metrics_port: int
    budget: float | None = None  # scrapes in a second
    stretched: float = 1.0


class Unsteady:
    """A server at several ports that does what it was told with each GET in turn, and then answers well."""

    def __init__(self, said: list[Said]) -> None:
        self._said: Iterator[Said] = iter(said)
        self.asking: list[Wire] = []  # for a page, and not answered yet
        self.most_at_once = 0
        self.pages_asked = 0

    @property
    def settled(self) -> bool:
        """Whether it has done all that it was told, and answers well from now on."""
        return next(self._said, None) is None

    async def connected(self, loop: SimulatedLoop) -> None:
        """Open, in time or not, or refused."""
        said = next(self._said, DULL)
        if said.connected == "hangs":
            await asyncio.Event().wait()
        await loop.after(said.after)
        if said.connected == "refused":
            raise ConnectionRefusedError

    def asked(self, wire: Wire, request: bytes) -> None:
        """One GET, or two, which are answered in turn."""
        at = wire.loop.time()
        for get in request.split(b"\r\n\r\n")[:-1]:
            page = get.startswith(b"GET /metrics ")
            if page:
                self.asking.append(wire)
                self.pages_asked += 1
            said = next(self._said, DULL)
            pieces, closes = ANSWERS[said.answer]
            for place, piece in enumerate(pieces, 1):
                at += said.after
                whole = place == len(pieces) and said.answer not in {"cut", "stuck"}
                wire.loop.call_at(at, partial(self._bring, wire, piece, page=page and whole))
            if closes:
                wire.loop.call_at(at + said.after, partial(self._close, wire))
            if closes or said.answer in {"stuck", "nothing"}:
                break
        self.most_at_once = max(self.most_at_once, len(self.asking))

    def left(self, wire: Wire) -> None:
        """The agent has given up what it asked there."""
        self.asking = [other for other in self.asking if other is not wire]

    def _bring(self, wire: Wire, piece: bytes, *, page: bool) -> None:
        if page:
            self.left(wire)  # the agent may ask again as soon as it has the whole page
        wire.bring(piece)

    def _close(self, wire: Wire) -> None:
        self.left(wire)
        wire.hang_up()


class Told:
    """A sink that knows what cannot be told."""

    def __init__(self, clock: LoopClock) -> None:
        self._clock = clock
        self.pages: list[float] = []

    def _seen(self, at: float, took: float) -> None:
        assert isfinite(at)
        assert 0 <= took <= SECONDS
        assert at + took <= self._clock.now() + 1e-9

    def observed(self, address: str, extraction: Extraction, at: float, took: float, size: int) -> bool:
        self._seen(at, took)
        self.pages.append(at)
        return False

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        self._seen(at, took)

    def recognised(self, address: str, engine: str) -> None:
        """Nothing is to be recognised."""

    def served_models(self, address: str, names: frozenset[str], at: float) -> None:
        """Whatever."""

    def health(self, address: str, answered: bool, reason: str, detail: str, at: float, took: float) -> None:
        assert answered is not bool(reason)


DELAYS = st.sampled_from([0.0, 0.001, 0.04, 0.05, 0.06, 0.3, 1.1])
SAID = st.builds(
    Said, st.sampled_from(sorted(ANSWERS)), DELAYS, st.sampled_from(["open", "open", "open", "refused", "hangs"])
)
CHANGES = st.builds(
    Change,
    after=st.sampled_from([0.0, 0.001, 0.05, 0.2, 0.7]),
    there=st.booleans(),
    interval=st.sampled_from([0.05, 0.1, 0.3, 1.0]),
    timeout=st.sampled_from([0.05, 0.2, 1.0]),
    pod=st.sampled_from(["chat-0", "chat-1"]),
    metrics_port=st.sampled_from([0, 0, 9100]),
    budget=st.sampled_from([None, None, 2.0, 50.0]),
    stretched=st.sampled_from([1.0, 1.0, 2.0, 10.0]),
)


@settings(max_examples=150, deadline=None)
@example(  # the page moves to another port while it is under way: it keeps the time at which it was asked for
    said=[Said("well", 0.3)] * 3,
    changes=[Change(0.7, there=True, interval=0.5, timeout=1.0, pod="", metrics_port=9100)] * 2,
    interval=0.5,
)
@example(  # and then another server takes its place: what the old one was asked is given up
    said=[Said("an error", 0.0), Said("an error", 0.0), Said("an error", 0.04)],
    changes=[Change(0.001, there=True, interval=0.05, timeout=0.05, pod="chat-0", metrics_port=9100)],
    interval=0.05,
)
@given(said=st.lists(SAID, max_size=30), changes=st.lists(CHANGES, max_size=8), interval=st.sampled_from([0.05, 0.5]))
def test_an_endpoint_is_never_asked_for_two_pages_at_a_time_and_always_asked_again(
    said: list[Said], changes: list[Change], interval: float
) -> None:
    server = Unsteady(said)

    async def main(world: SimulatedLoop) -> None:
        clock = LoopClock(world)
        loop, told = ScrapeLoop(clock), Told(clock)
        # The health path is asked too, and it is often due when the page is.
        first = Target(f"{HOST}:8000", "vllm", interval=interval, timeout=1.0, health_interval=0.1, models_interval=0.3)
        try:
            loop.set_targets("pool", [first], told)
            for change in changes:
                await world.after(change.after)
                target = first._replace(
                    interval=change.interval,
                    timeout=change.timeout,
                    metrics_port=change.metrics_port,
                    identity=Identity(change.pod),
                )
                loop.set_gate(None if change.budget is None else Gate(change.budget, latest=2.0))
                loop.set_targets("pool", [target] if change.there else [], told)
                if change.budget is not None:
                    loop.pace("pool", [target.address], (), Shared(change.interval, change.interval * change.stretched))
            loop.set_gate(None)
            loop.set_targets("pool", [first], told)
            await world.after(SECONDS - clock.now())
            pages, asked, at = len(told.pages), server.pages_asked, clock.now()
            await world.after(5 * interval + 1.0)
            if server.settled:
                assert len(told.pages) >= pages + 4
            assert server.pages_asked - asked <= (clock.now() - at) / interval + 3
        finally:
            await loop.stop()

    simulate({(HOST, 8000): server, (HOST, 9100): server}, main)
    assert server.most_at_once <= 1
