"""A stage that decides later: the picker port waits, and a client that leaves meanwhile cancels its request there."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import orjson
import pytest

from agent.events import Event
from agent.events.requests import Abandoned, Refused
from agent.pick.decision import Pick
from agent.requests.flow_headers import DEFAULT_RULES
from agent.requests.pipeline import OnDecision, Pipeline
from agent.requests.rejections import Rejection
from agent.requests.response import Response
from agent.requests.ticket import WAIT, Request, Result, Ticket
from agent.serve.ext_proc.server import ExternalProcessor, ExtProcServer, ProcessCall
from agent.serve.grpc.router import GrpcRouter
from tests.fakes.ext_proc import FULL_DUPLEX, PROCESS, read, request_body, request_headers
from tests.fakes.http2_client import Http2Client, grpc_message
from tests.waiting import eventually

PICK = Pick("r", "10.0.0.1:8000", (), 1, 0, 0, "tie", ("10.0.0.1:8000",), (0.0,), {}, 1)


class Queue:
    """The only stage: it keeps every ticket until the test decides, and counts the calls at their ends."""

    name = "queue"

    def __init__(self) -> None:
        self.at_once: Pick | None = None
        self.waiting: list[Ticket] = []
        self.cancels: list[Ticket] = []
        self.ends: list[str] = []
        self.last: Rejection | None = None  # of what waits when it is shut down

    def process(self, ticket: Ticket, now: float) -> Result:
        if self.at_once is not None:
            return self.at_once
        self.waiting.append(ticket)
        return WAIT

    def cancelled(self, ticket: Ticket, now: float) -> None:
        self.cancels.append(ticket)

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        self.ends.append(how)

    def shut_down(self, now: float) -> None:
        for ticket in self.waiting:
            if self.last is not None:
                ticket.resume(self.last)


class QueueingPool:
    """A pool whose pipeline is that queue."""

    name = "pool"
    reports = False
    flow_rules = DEFAULT_RULES

    def __init__(self, events: list[Event]) -> None:
        self.queue = Queue()
        self.pipeline = Pipeline("pool", [self.queue], lambda: 0.0, events.append, self, self)

    def submit(self, request: Request, on_decision: OnDecision) -> Ticket:
        return self.pipeline.submit(request, on_decision)

    def reported(self, ticket: Ticket, report: str, served: str, now: float) -> None:
        raise AssertionError("no report is expected")

    def responded(self, ticket: Ticket, response: Response, now: float) -> None:
        raise AssertionError("no response is expected")

    def shut_down(self) -> None:
        self.pipeline.shut_down()

    def log_opened(self) -> None:
        raise AssertionError("no access log is expected")

    def log_closed(self) -> None:
        raise AssertionError("no access log is expected")

    def logged(self, request_id: str, response: Response) -> None:
        raise AssertionError("no access log is expected")

    def ready(self) -> bool:
        return True


class QueueingPort:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.pool = QueueingPool(self.events)
        self.server = ExtProcServer(self.pool, self.events.append, address="127.0.0.1:0")
        self.channel: Any = None

    async def get(self) -> Any:
        """A call with a request that has no body."""
        call = self.channel.stream_stream(PROCESS)()
        await call.write(request_headers(path="/v1/models", end=True))
        return call


@pytest.fixture
async def port() -> AsyncIterator[QueueingPort]:
    one = QueueingPort()
    number = await one.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{number}") as channel:
        one.channel = channel
        yield one
    await one.server.stop(0.0)


async def test_a_pick_that_comes_later_routes_the_request(port: QueueingPort) -> None:
    call = await port.get()
    await eventually(lambda: port.pool.pipeline.waiting == 1)
    port.pool.queue.waiting[0].resume(PICK)
    assert (await read(call)).WhichOneof("response") == "request_headers"
    assert port.pool.pipeline.in_flight == 1
    await call.done_writing()
    await eventually(lambda: port.pool.queue.ends == ["closed"])


async def test_a_rejection_that_comes_later_answers_the_client_and_ends_the_call(port: QueueingPort) -> None:
    call = await port.get()
    await eventually(lambda: port.pool.pipeline.waiting == 1)
    port.pool.queue.waiting[0].resume(Rejection("none_healthy", "all are down"))
    answer = (await read(call)).immediate_response
    assert (answer.status.code, orjson.loads(answer.body)["error"]["message"]) == (503, "all are down")
    assert await asyncio.wait_for(call.read(), 10) is grpc.aio.EOF
    assert port.events == [Refused("pool", "", 503, "none_healthy")]


async def test_a_client_that_leaves_meanwhile_cancels_its_request_at_the_stage_that_has_it(port: QueueingPort) -> None:
    call = await port.get()
    await eventually(lambda: port.pool.pipeline.waiting == 1)
    call.cancel()
    await eventually(lambda: port.pool.queue.cancels == port.pool.queue.waiting)
    assert port.events == [Abandoned("pool", "queue")]
    assert not port.pool.queue.waiting[0].resume(PICK)
    assert (port.pool.pipeline.waiting, port.pool.pipeline.in_flight) == (0, 0)


async def test_a_stop_waits_for_the_decision_and_then_ends_the_call(port: QueueingPort) -> None:
    call = await port.get()
    await eventually(lambda: port.pool.pipeline.waiting == 1)
    stopping = asyncio.ensure_future(port.server.stop(20.0))
    await asyncio.sleep(0)
    port.pool.queue.waiting[0].resume(PICK)
    assert (await read(call)).WhichOneof("response") == "request_headers"
    await asyncio.wait_for(stopping, 10)
    assert port.pool.queue.ends == ["lost"]


async def test_a_stop_that_waits_no_longer_cancels_what_is_not_decided(port: QueueingPort) -> None:
    call = await port.get()
    await eventually(lambda: port.pool.pipeline.waiting == 1)
    await port.server.stop(0.0)
    assert port.pool.queue.cancels == port.pool.queue.waiting
    assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stop_keeps_the_calls_of_routed_requests_until_nothing_waits(port: QueueingPort) -> None:
    """Their ends show that there is room for what waits."""
    routed, held = await port.get(), await port.get()
    await eventually(lambda: port.pool.pipeline.waiting == 2)
    first, second = port.pool.queue.waiting
    first.resume(PICK)
    await read(routed)
    stopping = asyncio.ensure_future(port.server.stop(20.0))
    await asyncio.sleep(0)
    assert port.pool.pipeline.in_flight == 1
    await routed.done_writing()
    await eventually(lambda: port.pool.queue.ends == ["closed"])
    assert not stopping.done()
    second.resume(PICK)
    await read(held)
    await asyncio.wait_for(stopping, 10)
    assert port.pool.queue.ends == ["closed", "lost"]


async def test_a_stop_refuses_what_is_held_when_its_time_is_over(port: QueueingPort) -> None:
    held, uploading = await port.get(), port.channel.stream_stream(PROCESS)()
    await uploading.write(request_headers(FULL_DUPLEX))
    await eventually(lambda: port.pool.pipeline.waiting == 1 and port.server.open_streams == 2)
    port.pool.queue.last = Rejection("shutting_down", "The gateway's endpoint picker stops.")
    await port.server.stop(0.0)
    answer = (await read(held)).immediate_response
    assert answer.status.code == 503
    assert await asyncio.wait_for(held.read(), 10) is grpc.aio.EOF
    assert await held.code() is grpc.StatusCode.OK
    assert await uploading.code() is grpc.StatusCode.UNAVAILABLE  # the proxy sends it to another picker
    assert port.events == [Refused("pool", "", 503, "shutting_down")]


async def test_a_request_leaves_nothing_for_the_garbage_collector(port: QueueingPort) -> None:
    """The collector runs rarely in the agent, so cycles of each request would fill the memory between its runs."""
    port.pool.queue.at_once = PICK
    gc.collect()
    gc.disable()
    before = [each for each in gc.get_objects() if isinstance(each, ProcessCall | Ticket)]  # of other tests
    try:
        for _ in range(5):
            call = await port.get()
            await read(call)
            await call.done_writing()
            assert await asyncio.wait_for(call.read(), 10) is grpc.aio.EOF
        await eventually(lambda: port.server.open_streams == 0)
        kept = [each for each in gc.get_objects() if isinstance(each, ProcessCall | Ticket) and each not in before]
    finally:
        gc.enable()
    assert kept == []


class Uploading:
    """A proxy that has sent a body of 100,000 bytes and accepts only 1,000 of what comes back."""

    def __init__(self) -> None:
        events: list[Event] = []
        self.pool = QueueingPool(events)
        self.processor = ExternalProcessor(self.pool, events.append, max_body=1 << 20, max_buffered=1 << 20)
        self.client = Http2Client(GrpcRouter((self.processor,), lambda *_: None), window=1000)
        self.client.acknowledge = False
        self.stream = self.client.open(path=PROCESS)
        body = request_body(b"x" * 100_000)
        self.client.send(self.stream, grpc_message(request_headers(FULL_DUPLEX)) + grpc_message(body))
        self.client.exchange()
        (self.ticket,) = self.pool.queue.waiting

    def counts(self) -> tuple[int, int, int, int]:
        """Open calls, bytes of bodies, tickets that wait, tickets in flight."""
        pipeline = self.pool.pipeline
        return len(self.processor.calls), self.processor.buffered_bytes, pipeline.waiting, pipeline.in_flight


def leave_by_reset(proxy: Uploading) -> None:
    proxy.client.h2.reset_stream(proxy.stream)
    proxy.client.exchange()


def leave_by_disconnect(proxy: Uploading) -> None:
    proxy.client.server.closed()


@pytest.mark.parametrize("leave", [leave_by_reset, leave_by_disconnect])
@pytest.mark.parametrize("decision", [None, PICK])
def test_a_proxy_that_leaves_while_it_reads_slowly_leaves_no_count_behind(leave: Any, decision: Any) -> None:
    proxy = Uploading()
    assert proxy.counts() == (1, 100_000, 1, 0)
    if decision is not None:
        proxy.ticket.resume(decision)
        proxy.client.exchange()
    if decision is PICK:
        assert proxy.counts() == (1, 100_000, 0, 1)  # the body cannot be sent back yet
    leave(proxy)
    assert proxy.counts() == (0, 0, 0, 0)
    assert not proxy.ticket.resume(PICK)


def test_a_body_is_buffered_until_a_proxy_that_reads_slowly_has_taken_it_back() -> None:
    proxy = Uploading()
    proxy.ticket.resume(PICK)
    proxy.client.exchange()
    assert proxy.counts() == (1, 100_000, 0, 1)
    proxy.client.h2.increment_flow_control_window(200_000)
    proxy.client.h2.increment_flow_control_window(200_000, proxy.stream)
    proxy.client.exchange()
    assert proxy.counts() == (1, 0, 0, 1)
    proxy.client.h2.end_stream(proxy.stream)
    proxy.client.exchange()
    assert proxy.counts() == (0, 0, 0, 0)
