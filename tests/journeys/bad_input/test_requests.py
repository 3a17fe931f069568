"""A request that cannot be served gets an OpenAI error and is counted, and the next one is served as before."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from agent.envoy.render import PickMode
from tests.journeys.bad_input.fleet import CHAT, MODES, Counts, GatewayFleet, a_fleet, chat
from tests.waiting import found

pytestmark = pytest.mark.asyncio(loop_scope="module")
both = pytest.mark.parametrize("way", MODES, ids=[way.value for way in MODES])
POOL = "pool"
MEGABYTE = 1_000_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayFleet]:
    async with a_fleet(tmp_path_factory.mktemp("bad requests"), 2, lambda healthy: {POOL: healthy}) as started:
        await found(started.counts, lambda seen: seen.of("igw_pool_endpoints_by_health", state="healthy") == 2)
        await is_served(started, PickMode.BUFFERED)
        yield started


class BadRequest(NamedTuple):
    """The body that the client sends, the error in the response, and the reason that is counted."""

    body: Callable[[], Any]
    status: int
    code: str
    reason: str
    param: str | None = None
    encoding: str = "identity"


async def in_pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    """The body in chunks of this size, for a request without a length."""
    for at in range(0, len(body), size):
        yield body[at : at + size]


def without_model() -> bytes:
    return json.dumps({key: value for key, value in chat().items() if key != "model"}).encode()


TABLE = {
    "is-not-JSON": BadRequest(lambda: b"model=emulated&prompt=hello", 400, "invalid_json", "invalid_json"),
    "is-cut-JSON": BadRequest(lambda: json.dumps(chat()).encode()[:-1], 400, "invalid_json", "invalid_json"),
    "is-an-array": BadRequest(lambda: b"[1, 2, 3]", 400, "invalid_json", "invalid_json"),
    "is-not-UTF-8": BadRequest(lambda: b'{"model":"\xff\xfe"}', 400, "invalid_json", "invalid_json"),
    "is-empty": BadRequest(lambda: b"", 400, "invalid_json", "invalid_json"),
    "nests-too-deep": BadRequest(lambda: b"[" * 100_000, 400, "invalid_json", "invalid_json"),
    "has-no-model": BadRequest(without_model, 400, "model_required", "model_required", "model"),
    "has-a-number-for-a-model": BadRequest(lambda: b'{"model":7}', 400, "model_required", "model_required", "model"),
    "announces-20-MB": BadRequest(lambda: io.BytesIO(b" " * 20 * MEGABYTE), 413, "request_too_large", "too_large"),
    "unpacks-to-20-MB": BadRequest(
        lambda: gzip.compress(b" " * 20 * MEGABYTE), 413, "request_too_large", "too_large", encoding="gzip"
    ),
    "is-not-gzip": BadRequest(lambda: b"\x1f\x8b?", 400, "invalid_encoding", "invalid_encoding", encoding="gzip"),
    "is-cut-gzip": BadRequest(
        lambda: gzip.compress(json.dumps(chat()).encode())[:-1],
        400,
        "invalid_encoding",
        "invalid_encoding",
        encoding="gzip",
    ),
    "sends-20-MB": BadRequest(lambda: in_pieces(b" " * 20 * MEGABYTE, MEGABYTE), 413, "request_too_large", "too_large"),
}


async def is_served(fleet: GatewayFleet, way: PickMode) -> None:
    """No request is in flight, and the next one is answered."""
    await fleet.idle(POOL)
    status, body = await fleet.send(POOL, way)
    assert (status, body["object"]) == (200, "chat.completion")
    await fleet.idle(POOL)


@both
@pytest.mark.parametrize("name", TABLE)
async def test_a_request_that_cannot_be_served_gets_its_reason_and_is_counted(
    fleet: GatewayFleet, way: PickMode, name: str
) -> None:
    bad = TABLE[name]
    before = await fleet.counts()
    status, answer = await fleet.send(
        POOL, way, data=bad.body(), headers={"content-type": "application/json", "content-encoding": bad.encoding}
    )
    assert status == bad.status
    message = answer["error"].pop("message")
    assert message
    assert answer == {"error": {"type": "invalid_request_error", "param": bad.param, "code": bad.code}}
    reported = {"pool": POOL, "status": str(bad.status), "reason": bad.reason}

    def counted(seen: Counts) -> float:
        # A body that is too large may exceed Envoy's buffer before the agent has answered its headers.
        by_envoy = (
            seen.of("igw_requests_abandoned_total", pool=POOL) if bad.status == 413 and way is PickMode.BUFFERED else 0
        )
        return seen.of("igw_requests_rejected_total", **reported) + by_envoy

    await found(fleet.counts, lambda seen: counted(seen) == counted(before) + 1)
    await is_served(fleet, way)


@both
async def test_a_body_in_chunks_of_one_byte_is_served(fleet: GatewayFleet, way: PickMode) -> None:
    body = json.dumps(chat("one byte at a time")).encode()
    status, answer = await fleet.send(POOL, way, data=in_pieces(body, 1), headers={"content-type": "application/json"})
    assert (status, answer["object"]) == (200, "chat.completion")
    await is_served(fleet, way)


@both
async def test_a_client_that_disconnects_during_its_upload_is_counted_and_not_in_flight(
    fleet: GatewayFleet, way: PickMode
) -> None:
    name = "igw_requests_abandoned_total"
    before = (await fleet.counts()).of(name, pool=POOL)

    async def calls() -> int:
        """Open calls to the picker port, that of Envoy's access log among them."""
        async with fleet.client.get(f"{fleet.envoy.admin}/stats?filter={POOL}-picker.upstream_rq_active$") as answer:
            return int((await answer.text()).rpartition(":")[2])

    idle = await calls()
    _, writer = await asyncio.open_connection("127.0.0.1", fleet.port(POOL, way))
    writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1000\r\n\r\n".encode() + b'{"model":')
    await writer.drain()

    await found(calls, lambda count: count > idle)
    writer.transport.abort()
    await found(fleet.counts, lambda seen: seen.of(name, pool=POOL) > before)
    await is_served(fleet, way)
    after = await fleet.counts()
    assert after.of(name, pool=POOL) == before + 1
    assert after.of("igw_pool_in_flight_requests", pool=POOL) == 0


@both
async def test_a_client_that_disconnects_during_the_response_is_counted_and_not_in_flight(
    fleet: GatewayFleet, way: PickMode
) -> None:
    before = (await fleet.counts()).of("igw_requests_ended_total", pool=POOL, result="closed")
    body = json.dumps(chat("write a long story", stream=True) | {"max_tokens": 4000, "ignore_eos": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port(POOL, way))
    writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(body)}\r\n".encode())
    writer.write(b"content-type: application/json\r\n\r\n" + body)
    await asyncio.wait_for(reader.readuntil(b"\n\n"), 20)
    assert (await fleet.counts()).of("igw_pool_in_flight_requests", pool=POOL) == 1
    writer.transport.abort()
    await found(
        fleet.counts, lambda seen: seen.of("igw_requests_ended_total", pool=POOL, result="closed") == before + 1
    )
    await is_served(fleet, way)


REFUSED_BY_ENVOY = {
    "no host": (b"GET /v1/models HTTP/1.1\r\n\r\n", 400, "missing_host_header"),
    "an upgrade": (b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", 403, "upgrade_failed"),
    "no HTTP": (b"\x16\x03\x01\x02 hello\r\n\r\n", 400, "codec_error"),
    "two lengths": (
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        400,
        "codec_error",
    ),
    "100 kB of headers": (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", 431, "headers_too_large"),
}


@both
@pytest.mark.parametrize("name", REFUSED_BY_ENVOY)
async def test_a_request_that_envoy_refuses_gets_an_openai_error_with_the_reason(
    fleet: GatewayFleet, way: PickMode, name: str
) -> None:
    request, status, why = REFUSED_BY_ENVOY[name]
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port(POOL, way))
    writer.write(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\ncontent-type: application/json\r\n" in head
    (error,) = json.loads(await asyncio.wait_for(reader.readuntil(b"}}"), 20)).values()
    writer.close()
    assert why in error.pop("message")
    assert error == {"type": "invalid_request_error", "param": None, "code": "bad_request"}
    await is_served(fleet, way)


async def test_at_the_end_every_request_is_accounted_for(fleet: GatewayFleet) -> None:
    await fleet.idle(POOL)
    counts = await fleet.counts()
    assert counts.of("igw_picks_total", pool=POOL) == counts.of("igw_requests_ended_total", pool=POOL, result="closed")
    assert counts.by("reason", "igw_stream_errors_total", pool=POOL) == {}
    assert counts.of("igw_endpoint_in_flight_requests", pool=POOL) == 0
    assert "Traceback" not in fleet.agent.output()
