"""A header that replaces the model, through a real Envoy: the model server receives the changed body whole."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from agent.envoy.render import PickMode
from tests.envoy.gateway import Gateway, chat, run_gateway

HEADER = "x-llm-d-model-name-rewrite"
HELD = {"send_body_without_waiting_for_header_response": True}


async def post(gateway: Gateway, mode: PickMode, body: bytes, chunks: int = 0) -> Any:
    """Send a body, with its length or in chunks; the response."""
    data: Any = io.BytesIO(body)
    if chunks:

        async def pieces() -> Any:
            for start in range(0, len(body), chunks):
                yield body[start : start + chunks]

        data = pieces()
    headers = {HEADER: "canary-of-another-length", "content-type": "application/json"}
    return await gateway.client.post(gateway.url(mode), data=data, headers=headers)


@pytest.mark.parametrize(
    ("mode", "processing", "options"),
    [
        (PickMode.BUFFERED, {}, {}),
        (PickMode.BUFFERED, {"request_body_mode": "BUFFERED_PARTIAL"}, {}),
        (PickMode.FULL_DUPLEX, {}, {}),
        (PickMode.BUFFERED, {"request_body_mode": "STREAMED"}, HELD),
    ],
    ids=["buffered", "partial", "full-duplex", "held"],
)
@pytest.mark.parametrize(("size", "chunks"), [(10, 0), (10, 5), (400_000, 0), (400_000, 30_000)])
async def test_the_model_server_receives_the_body_with_the_other_model(
    tmp_path: Path,
    mode: PickMode,
    processing: Mapping[str, str],
    options: Mapping[str, Any],
    size: int,
    chunks: int,
) -> None:
    async with run_gateway(tmp_path, servers=1, processing_mode=processing, filter_options=options) as gateway:
        document = chat("x" * size)
        response = await post(gateway, mode, orjson.dumps(document), chunks)
        assert response.status == 200, await response.text()
        (received,) = gateway.servers[0].requests
        assert orjson.loads(received.body) == {**document, "model": "canary-of-another-length"}
        assert HEADER not in received.headers
        assert [prompt.model for _, prompt, _ in gateway.pool.requests] == ["canary-of-another-length"]
        assert gateway.events == []


async def test_a_long_buffered_body_is_replaced_whole(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, servers=1) as gateway:
        document = chat("x" * 9_000_000)
        response = await post(gateway, PickMode.BUFFERED, orjson.dumps(document))
        assert response.status == 200, await response.text()
        (received,) = gateway.servers[0].requests
        assert orjson.loads(received.body)["model"] == "canary-of-another-length"
        assert len(received.body) == int(received.headers["content-length"])


async def test_where_envoy_sends_no_body_the_client_is_told_why(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, servers=1, processing_mode={"request_body_mode": "NONE"}) as gateway:
        response = await post(gateway, PickMode.BUFFERED, orjson.dumps(chat()))
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "model_rewrite_failed"
        assert gateway.servers[0].requests == []
