"""The gRPC access log service, with a client of another implementation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy.service.accesslog.v3 import als_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from agent.events.exchange import NO_USAGE, Exchange, TokenUsage
from agent.requests.exchange_text import TAG, read_exchange
from agent.requests.response import RESULTS, result_of
from agent.serve.access_log import SERVICE, response_of
from agent.serve.ext_proc.server import ExtProcServer
from tests.fakes.scripted_pool import ScriptedPool
from tests.waiting import eventually

METHOD = f"/{SERVICE}/StreamAccessLogs"
SERVER = "10.0.0.1"


def entry(
    message: Any, request_id: str, status: int, *, host: str = SERVER, port: int = 8000, flags: Iterable[str] = ()
) -> Any:
    log = message.http_logs.log_entry.add()
    log.request.request_id = request_id
    log.response.response_code.value = status
    log.common_properties.upstream_remote_address.socket_address.address = host
    log.common_properties.upstream_remote_address.socket_address.port_value = port
    for flag in flags:
        setattr(log.common_properties.response_flags, flag, True)
    return log


class LogClient:
    def __init__(self, pool: ScriptedPool, channel: Any) -> None:
        self.pool = pool
        self.channel = channel

    def call(self) -> Any:
        return self.channel.stream_unary(METHOD)()


@pytest.fixture
async def client() -> AsyncIterator[LogClient]:
    pool = ScriptedPool("a:1")
    server = ExtProcServer(pool, lambda _: None, address="127.0.0.1:0")
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield LogClient(pool, channel)
    await server.stop(0.0)


async def test_the_entries_of_a_batch_reach_the_pool_in_their_order(client: LogClient) -> None:
    call = client.call()
    batch = pb.StreamAccessLogsMessage()
    entry(batch, "first", 200)
    entry(batch, "second", 500, host="fd00::1")
    entry(batch, "third", 0, host="", flags=["downstream_connection_termination"])
    await call.write(batch.SerializeToString())
    await eventually(lambda: len(client.pool.log) == 3)
    assert client.pool.open_logs == 1
    assert [(name, response.status, response.served, response.client_left) for name, response in client.pool.log] == [
        ("first", 200, f"{SERVER}:8000", False),
        ("second", 500, "[fd00::1]:8000", False),
        ("third", 0, "", True),
    ]
    await call.done_writing()
    assert await call == pb.StreamAccessLogsResponse().SerializeToString()
    await eventually(lambda: client.pool.open_logs == 0)


async def test_an_intermediate_entry_of_a_long_response_is_no_result(client: LogClient) -> None:
    call = client.call()
    batch = pb.StreamAccessLogsMessage()
    entry(batch, "begun", 200).common_properties.intermediate_log_entry = True
    entry(batch, "over", 200)
    await call.write(batch.SerializeToString())
    await eventually(lambda: bool(client.pool.log))
    assert [name for name, _ in client.pool.log] == ["over"]


async def test_a_message_that_is_no_log_ends_its_stream_and_no_other(client: LogClient) -> None:
    good, bad = client.call(), client.call()
    await bad.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await bad
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    batch = pb.StreamAccessLogsMessage()
    entry(batch, "good", 200)
    await good.write(batch.SerializeToString())
    await eventually(lambda: bool(client.pool.log))
    assert client.pool.open_logs == 1


async def test_a_proxy_that_disconnects_ends_its_log(client: LogClient) -> None:
    call = client.call()
    await call.write(pb.StreamAccessLogsMessage().SerializeToString())
    await eventually(lambda: client.pool.open_logs == 1)
    call.cancel()
    await eventually(lambda: client.pool.open_logs != 1)
    assert client.pool.open_logs == 0


FLAGS = [
    field.name
    for field in pb.StreamAccessLogsMessage()
    .http_logs.log_entry.add()
    .common_properties.response_flags.DESCRIPTOR.fields
    if field.type == field.TYPE_BOOL
]


@given(status=st.integers(0, 2**32 - 1), flags=st.sets(st.sampled_from(FLAGS)), details=st.text(), address=st.text())
def test_any_entry_has_a_result(status: int, flags: set[str], details: str, address: str) -> None:
    batch = pb.StreamAccessLogsMessage()
    log = entry(batch, "r", status, host=address.encode("utf-8", "ignore").decode(), flags=flags)
    log.response.response_code_details = details.encode("utf-8", "ignore").decode()
    assert result_of(response_of(log), queue_full=False) in RESULTS


@pytest.mark.parametrize(
    ("flags", "result"),
    [
        ({"upstream_connection_failure"}, "connect_failure"),
        ({"upstream_remote_reset"}, "reset"),
        ({"upstream_connection_termination"}, "reset"),
        ({"upstream_protocol_error"}, "reset"),
        ({"upstream_request_timeout"}, "timeout"),
        ({"stream_idle_timeout"}, "timeout"),
        ({"downstream_connection_termination"}, "client_left"),
        ({"downstream_remote_reset"}, "client_left"),
        ({"upstream_connection_termination", "downstream_connection_termination"}, "reset"),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else value,
)
def test_the_flags_of_an_entry_say_who_broke_off(flags: set[str], result: str) -> None:
    log = entry(pb.StreamAccessLogsMessage(), "r", 200, flags=flags)
    assert result_of(response_of(log), queue_full=False) == result


exchanges = st.builds(
    Exchange,
    st.floats(0, 1e5),
    st.none() | st.floats(0, 1e5),
    st.floats(0, 1e5),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    st.booleans(),
    st.builds(TokenUsage, *[st.none() | st.integers(0, 1 << 40)] * 3),
)


def written(number: float | None) -> str:
    return "-" if number is None else str(round(number))


def line(exchange: Exchange) -> str:
    """The tag of an entry as Envoy writes it."""
    first = None if exchange.first_token is None else exchange.first_token * 1e6
    numbers = [exchange.duration * 1e6, first, exchange.last_token * 1e6, exchange.request_bytes]
    kind = "text/event-stream; charset=utf-8" if exchange.streamed else "application/json"
    return " ".join([*map(written, (*numbers, exchange.response_bytes, *exchange.usage)), kind])


def logged_as(text: str) -> Any:
    log = entry(pb.StreamAccessLogsMessage(), "r", 200)
    log.common_properties.duration.FromMilliseconds(1500)
    log.common_properties.custom_tags[TAG] = text
    return log


@given(exchanges)
def test_what_envoy_measured_is_read_and_what_it_did_not_is_unknown(exchange: Exchange) -> None:
    found = response_of(logged_as(line(exchange))).exchange
    assert found is not None
    if exchange.usage.prompt is not None or exchange.usage.completion is not None:
        assert found.usage == exchange.usage
    else:
        assert found.usage == NO_USAGE
    assert found[3:6] == exchange[3:6]
    assert found.duration == pytest.approx(exchange.duration, abs=1e-6)
    assert (found.first_token is None) == (exchange.first_token is None)
    assert found.last_token >= (found.first_token or 0.0)


def test_an_exchange_that_the_client_did_not_receive_to_its_end_lasted_until_the_entry() -> None:
    found = response_of(logged_as("- 200 300 1 2 - - - text/event-stream")).exchange
    assert found == Exchange(1.5, 0.0002, 0.0003, 1, 2, True)


@pytest.mark.parametrize("text", ["", "-", "-5", "1e3", "\u0663", "9" * 40, "nan", "1.5", "+1", "1_0"])
def test_a_number_that_is_none_is_unknown(text: str) -> None:
    found = response_of(logged_as(f"100 {text} 100 {text} {text} {text} 7 {text} application/json")).exchange
    assert found is not None
    assert (found.first_token, found.request_bytes, found.response_bytes) == (None, 0, 0)
    assert found.usage == TokenUsage(None, 7, None)


@given(st.text(max_size=40))
def test_no_text_of_a_tag_breaks_the_log(text: str) -> None:
    found = read_exchange(text, 1.0)
    assert found is None or found.duration >= 0


def test_a_proxy_that_measures_nothing_reports_the_status_alone() -> None:
    response = response_of(entry(pb.StreamAccessLogsMessage(), "r", 200))
    assert (response.status, response.exchange) == (200, None)
