"""Chunks of a response body: our bytes are those of the protobuf library."""

from __future__ import annotations

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from agent.serve.ext_proc.response_chunks import ResponseChunk, echo, read_chunk

bodies = st.binary(max_size=300) | st.integers(120, 20_000).map(lambda size: b"x" * size)


@given(bodies, st.booleans())
def test_a_chunk_of_envoy_is_read(body: bytes, end: bool) -> None:
    message = pb.ProcessingRequest()
    message.response_body.SetInParent()
    message.response_body.body = body
    message.response_body.end_of_stream = end
    assert read_chunk(message.SerializeToString()) == ResponseChunk(body, end)


@given(bodies, st.booleans())
def test_what_is_sent_back_is_the_message_of_the_protocol(body: bytes, end: bool) -> None:
    found = pb.ProcessingResponse.FromString(echo(ResponseChunk(body, end)))
    expected = pb.ProcessingResponse()
    chunk = expected.response_body.response.body_mutation.streamed_response
    chunk.SetInParent()
    chunk.body, chunk.end_of_stream = body, end
    assert found == expected


def other_messages() -> list[pb.ProcessingRequest]:
    found = []
    for kind in ("request_headers", "response_headers", "request_body", "request_trailers", "response_trailers"):
        message = pb.ProcessingRequest()
        getattr(message, kind).SetInParent()
        found.append(message)
    with_more = pb.ProcessingRequest()
    with_more.response_body.body = b"x"
    with_more.metadata_context.filter_metadata["envoy.lb"].fields["a"].string_value = "b"
    compressed = pb.ProcessingRequest()
    compressed.response_body.body = b"x"
    compressed.response_body.grpc_message_compressed = True
    return [*found, with_more, compressed]


@pytest.mark.parametrize("message", other_messages(), ids=lambda message: str(message)[:20])
def test_a_message_of_another_kind_or_with_more_is_left_to_the_library(message: pb.ProcessingRequest) -> None:
    assert read_chunk(message.SerializeToString()) is None


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"\x2a" + data))
def test_whatever_arrives_is_read_as_the_library_reads_it_or_not_at_all(data: bytes) -> None:
    found = read_chunk(data)
    if found is not None:
        message = pb.ProcessingRequest.FromString(data)
        assert (message.response_body.body, message.response_body.end_of_stream) == found
