"""Whatever a server does and however often its settings change: it never has two active requests for its page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from math import isfinite
from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.engines.mapping import Extraction
from agent.scrape.budget import Intervals, RateLimiter
from agent.scrape.loop import ScrapeLoop
from agent.scrape.target import Target
from agent.state.identity import Identity
from tests.fakes.model_server import answer
from tests.fakes.simulated import LoopClock, SimulatedLoop, SimulatedTransport, simulate

HOST = "10.0.0.7"
PAGE = b'vllm:num_requests_running{model_name="tiny"} 4\nvllm:num_requests_waiting{model_name="tiny"} 0\n'
GOOD_RESPONSE = answer(PAGE)
SECONDS = 12.0

# The response to a GET: its pieces, and whether the server closes after them. No piece and no close: it hangs.
RESPONSES: dict[str, tuple[tuple[bytes, ...], bool]] = {
    "good": ((GOOD_RESPONSE,), False),
    "in pieces": ((GOOD_RESPONSE[:30], GOOD_RESPONSE[30:60], GOOD_RESPONSE[60:]), False),
    "good, then closed": ((GOOD_RESPONSE,), True),
    "connection: close": ((answer(PAGE, headers="Connection: close\r\n"),), True),
    "without a length": ((b"HTTP/1.0 200 OK\r\n\r\n" + PAGE,), True),
    "twice": ((GOOD_RESPONSE + GOOD_RESPONSE,), False),
    "cut": ((GOOD_RESPONSE[:-20],), True),
    "stuck": ((GOOD_RESPONSE[:-20],), False),
    "an error": ((answer(b"sorry", "500 Internal Server Error"),), False),
    "unavailable": ((answer(b"", "503 Service Unavailable"),), False),
    "another engine": ((answer(b"sglang:num_running_reqs 1\n"),), False),
    "no page": ((answer(b"<html>"),), False),
    "no HTTP": ((b"SSH-2.0-OpenSSH_9\r\n",), False),
    "closed": ((), True),
    "nothing": ((), False),
}


class Behaviour(NamedTuple):
    """The response to one GET, with `after` seconds before each piece; and the result of opening a connection."""

    response: str
    after: float
    connected: str = "open"


GOOD = Behaviour("good", 0.001)


class SettingsChange(NamedTuple):
    """New settings, `after` seconds after the ones before."""

    after: float
    there: bool
    interval: float
    timeout: float
    pod: str
    metrics_port: int
    budget: float | None = None  # scrapes in a second
    stretched: float = 1.0


class UnsteadyServer:
    """A server at several ports with one behaviour for each GET in order, and good responses after that."""

    def __init__(self, behaviours: list[Behaviour]) -> None:
        self._behaviours: Iterator[Behaviour] = iter(behaviours)
        self.active: list[SimulatedTransport] = []  # of requests for a page
        self.max_at_once = 0
        self.pages_requested = 0

    @property
    def settled(self) -> bool:
        """Whether all behaviours are used up, so that its responses are good from now on."""
        return next(self._behaviours, None) is None

    async def connected(self, loop: SimulatedLoop) -> None:
        """Open, after a delay, or refused."""
        behaviour = next(self._behaviours, GOOD)
        if behaviour.connected == "hangs":
            await asyncio.Event().wait()
        await loop.after(behaviour.after)
        if behaviour.connected == "refused":
            raise ConnectionRefusedError

    def requested(self, transport: SimulatedTransport, request: bytes) -> None:
        """One GET, or two pipelined ones."""
        at = transport.loop.time()
        for get in request.split(b"\r\n\r\n")[:-1]:
            page = get.startswith(b"GET /metrics ")
            if page:
                self.active.append(transport)
                self.pages_requested += 1
            behaviour = next(self._behaviours, GOOD)
            pieces, closes = RESPONSES[behaviour.response]
            for place, piece in enumerate(pieces, 1):
                at += behaviour.after
                whole = place == len(pieces) and behaviour.response not in {"cut", "stuck"}
                transport.loop.call_at(at, partial(self._bring, transport, piece, page=page and whole))
            if closes:
                transport.loop.call_at(at + behaviour.after, partial(self._close, transport))
            if closes or behaviour.response in {"stuck", "nothing"}:
                break
        self.max_at_once = max(self.max_at_once, len(self.active))

    def disconnected(self, transport: SimulatedTransport) -> None:
        """The agent has given up the request."""
        self.active = [other for other in self.active if other is not transport]

    def _bring(self, transport: SimulatedTransport, piece: bytes, *, page: bool) -> None:
        if page:
            self.disconnected(transport)  # the agent may send the next request as soon as it has the whole page
        transport.deliver(piece)

    def _close(self, transport: SimulatedTransport) -> None:
        self.disconnected(transport)
        transport.close_by_server()


class CheckingSink:
    """A sink that checks the times of results."""

    def __init__(self, clock: LoopClock) -> None:
        self._clock = clock
        self.pages: list[float] = []

    def _check(self, at: float, took: float) -> None:
        assert isfinite(at)
        assert 0 <= took <= SECONDS
        assert at + took <= self._clock.now() + 1e-9

    def observed(self, address: str, extraction: Extraction, at: float, took: float, size: int) -> bool:
        self._check(at, took)
        self.pages.append(at)
        return False

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        self._check(at, took)

    def recognised(self, address: str, engine: str) -> None:
        """Not called: the engine is configured."""

    def served_models(self, address: str, names: frozenset[str], at: float, roots: object = None) -> None:
        """Ignored."""

    def health(self, address: str, answered: bool, reason: str, detail: str, at: float, took: float) -> None:
        assert answered is not bool(reason)


DELAYS = st.sampled_from([0.0, 0.001, 0.04, 0.05, 0.06, 0.3, 1.1])
BEHAVIOURS = st.builds(
    Behaviour, st.sampled_from(sorted(RESPONSES)), DELAYS, st.sampled_from(["open", "open", "open", "refused", "hangs"])
)
CHANGES = st.builds(
    SettingsChange,
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
@example(  # the page moves to another port during a request: its time is that of the request
    behaviours=[Behaviour("good", 0.3)] * 3,
    changes=[SettingsChange(0.7, there=True, interval=0.5, timeout=1.0, pod="", metrics_port=9100)] * 2,
    interval=0.5,
)
@example(  # another server replaces the one with an active request, which is given up
    behaviours=[Behaviour("an error", 0.0), Behaviour("an error", 0.0), Behaviour("an error", 0.04)],
    changes=[SettingsChange(0.001, there=True, interval=0.05, timeout=0.05, pod="chat-0", metrics_port=9100)],
    interval=0.05,
)
@given(
    behaviours=st.lists(BEHAVIOURS, max_size=30),
    changes=st.lists(CHANGES, max_size=8),
    interval=st.sampled_from([0.05, 0.5]),
)
def test_an_endpoint_never_has_two_active_page_requests_and_is_always_scraped_again(
    behaviours: list[Behaviour], changes: list[SettingsChange], interval: float
) -> None:
    server = UnsteadyServer(behaviours)

    async def main(sim: SimulatedLoop) -> None:
        clock = LoopClock(sim)
        loop, sink = ScrapeLoop(clock), CheckingSink(clock)
        # The health probe is often due when the page is.
        first = Target(f"{HOST}:8000", "vllm", interval=interval, timeout=1.0, health_interval=0.1, models_interval=0.3)
        try:
            loop.set_targets("pool", [first], sink)
            for change in changes:
                await sim.after(change.after)
                target = first._replace(
                    interval=change.interval,
                    timeout=change.timeout,
                    metrics_port=change.metrics_port,
                    identity=Identity(change.pod),
                )
                loop.set_rate_limiter(None if change.budget is None else RateLimiter(change.budget, max_gap=2.0))
                loop.set_targets("pool", [target] if change.there else [], sink)
                if change.budget is not None:
                    loop.set_intervals(
                        "pool", [target.address], (), Intervals(change.interval, change.interval * change.stretched)
                    )
            loop.set_rate_limiter(None)
            loop.set_targets("pool", [first], sink)
            await sim.after(SECONDS - clock.now())
            pages, requested_now, at = len(sink.pages), server.pages_requested, clock.now()
            await sim.after(5 * interval + 1.0)
            if server.settled:
                assert len(sink.pages) >= pages + 4
            assert server.pages_requested - requested_now <= (clock.now() - at) / interval + 3
        finally:
            await loop.stop()

    simulate({(HOST, 8000): server, (HOST, 9100): server}, main)
    assert server.max_at_once <= 1
