"""A client that opens 10,000 streams and sends no end of a body: the memory is bounded, and other requests go on."""

from __future__ import annotations

import hpack
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from agent.events import Event
from agent.events.requests import Refused
from agent.serve.ext_proc.server import ExternalProcessor
from agent.serve.grpc.router import GrpcRouter
from agent.serve.http2.frames import (
    DATA,
    END_HEADERS,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    UINT32,
    WINDOW_UPDATE,
    ErrorCode,
    frame,
)
from tests.fakes.ext_proc import BODY, BUFFERED, FULL_DUPLEX, PROCESS, picked, request_body, request_headers
from tests.fakes.http2_client import FIELDS, Http2Client, grpc_connection, grpc_message
from tests.fakes.scripted_pool import ScriptedPool

STREAMS = 10_000
CHUNK = 4_000
BUDGET = 8_000_000
ADMITTED = BUDGET // CHUNK
UPLOAD = grpc_message(request_headers(FULL_DUPLEX)) + grpc_message(request_body(b"x" * CHUNK, end=False))


class Port:
    """A picker port without a socket, and two clients of it: `client`, and one that opens streams as raw frames."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.pool = ScriptedPool("10.0.0.1:8000", hook=self.events.append)
        self.processor = ExternalProcessor(self.pool, self.events.append, max_body=1 << 20, max_buffered=BUDGET)
        router = GrpcRouter((self.processor,), lambda *_: None)
        self.client = Http2Client(router, window=1 << 20)
        self.many = grpc_connection(router)
        self.answers: list[bytes] = []

    def open_streams(self) -> None:
        """Begin STREAMS uploads, none of which ends."""
        encoder = hpack.Encoder()
        encoder.header_table_size = 0
        encoder.encode([])
        fields = encoder.encode([(name, PROCESS if name == ":path" else value) for name, value in FIELDS])
        self.many.receive(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(WINDOW_UPDATE, 0, 0, UINT32.pack(1 << 30)))
        for number in range(STREAMS):
            stream = 2 * number + 1
            self.many.receive(frame(HEADERS, END_HEADERS, stream, fields) + frame(DATA, 0, stream, UPLOAD))
            self.answers.append(self.many.outgoing())

    def send(self, *messages: bytes) -> list[pb.ProcessingResponse]:
        """The answers to a call with these messages."""
        stream = self.client.call(PROCESS, *messages, end=False)
        return [pb.ProcessingResponse.FromString(each) for each in self.client.responses(stream)]


@pytest.fixture(scope="module")
def port() -> Port:
    """A port at which that client has begun all its streams."""
    one = Port()
    one.open_streams()
    return one


def test_of_10000_bodies_without_an_end_the_port_buffers_as_many_as_it_may_and_answers_429_to_the_others(
    port: Port,
) -> None:
    processor = port.processor
    assert processor.buffered_bytes == BUDGET
    assert len(processor.calls) == ADMITTED
    refused = [event for event in port.events if isinstance(event, Refused)]
    assert len(refused) == STREAMS - ADMITTED
    assert {(event.status, event.reason) for event in refused} == {(429, "body_budget")}
    assert b"overloaded" not in b"".join(port.answers[:ADMITTED])
    for answer in port.answers[ADMITTED:]:
        assert b'"code":"overloaded"' in answer
        assert b"grpc-status" in answer  # the stream has ended


def test_beside_them_a_request_without_a_body_is_picked_and_one_with_a_body_when_one_of_them_leaves(port: Port) -> None:
    (get,) = port.send(request_headers(FULL_DUPLEX, path="/v1/models", end=True))
    assert picked(get) == "10.0.0.1:8000"
    post = (request_headers(BUFFERED), request_body(BODY))
    assert port.send(*post)[1].immediate_response.status.code == 429
    port.many.receive(frame(RST_STREAM, 0, 1, UINT32.pack(ErrorCode.CANCEL)))
    assert picked(port.send(*post)[1]) == "10.0.0.1:8000"
    assert port.processor.buffered_bytes == BUDGET - CHUNK


def test_when_the_connection_of_that_client_ends_nothing_is_left(port: Port) -> None:
    port.many.closed()
    assert port.processor.buffered_bytes == 0
    assert len(port.processor.calls) == port.pool.in_flight == 2  # the picked ones of the other client
