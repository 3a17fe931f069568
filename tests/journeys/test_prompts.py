"""Through a real Envoy to emulated engines: what the picker predicts to be cached is what the engine serves."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio
import zstandard

from agent.emulator.config import EmulatorConfig, ModelSpec
from agent.emulator.text import tokenize
from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from agent.events.requests import Picked
from agent.events.scraping import CacheEmptied
from agent.pick.decision import Pick
from tests.app.live import Live, document, running
from tests.emulator.running_emulator import RunningEmulator, run_emulator
from tests.waiting import eventually

CONFIG = EmulatorConfig(num_blocks=20_000, max_model_len=65_536, step_seconds=0.001, prefill_tokens_per_second=1e6)
MODEL = ModelSpec("emulated", answer_tokens=4)
TEXT = "section of the manual " * 910
TOKENS = 5000
WORDS = "list read write open close check merge build test branch file line path value".split()
BLOCK = 64  # tokens of one block of the prefix index


class Journey:
    """Two emulated engines, the agent, and an Envoy before them."""

    def __init__(self, live: Live, servers: list[RunningEmulator], client: aiohttp.ClientSession, url: str) -> None:
        self.live = live
        self.servers = {f"127.0.0.1:{server.port}": server for server in servers}
        self.client = client
        self.url = url
        self.picks: list[Pick] = []

    async def send(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Picked, float]:
        """Status and answer, the pick, and the prompt tokens that the picked server then served from its cache."""
        before = {address: _hits(server) for address, server in self.servers.items()}
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        fields = {"content-type": "application/json"} | {name.replace("_", "-"): it for name, it in headers.items()}
        seen = len(self.live.recorder.of(Picked))
        async with self.client.post(self.url + path, data=data, headers=fields) as response:
            answer = await response.read()
            status = response.status
        await eventually(lambda: self.live.pool.in_flight == 0)
        picked = self.live.recorder.of(Picked)[seen]
        return status, answer, picked, _hits(self.servers[picked.endpoint]) - before[picked.endpoint]

    def held(self, address: str) -> int:
        blocks: int = self.live.pool.index.blocks(address)
        return blocks


def _hits(server: RunningEmulator) -> float:
    return server.server._driver.engine.counters.prefix_hits


@pytest_asyncio.fixture
async def journey(tmp_path) -> AsyncIterator[Journey]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(run_emulator(CONFIG, MODEL)) for _ in range(2)]
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        path = tmp_path / "igw.yaml"
        path.write_text(document(addresses, "scrape: {interval: 100ms}\n"), encoding="utf-8")
        live = await stack.enter_async_context(running(path, healthy=2))
        pools = (EnvoyPool("pool", tuple(addresses), live.picker),)
        config = EnvoyConfig(pools, (EnvoyListener("in", "127.0.0.1:0", "pool", PickMode.FULL_DUPLEX),))
        envoy = await process.start(bootstrap(config), tmp_path / "envoy")
        stack.push_async_callback(envoy.stop)
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        yield Journey(live, servers, client, f"http://127.0.0.1:{envoy.ports['in']}")


NATIVE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "emulated", "prompt": TEXT, "max_tokens": 1},
    "/v1/chat/completions": {"model": "emulated", "messages": [{"role": "user", "content": TEXT}]},
    "/v1/messages": {"model": "emulated", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 1},
    "/v1/responses": {"model": "emulated", "input": TEXT, "instructions": "Be brief.", "max_output_tokens": 1},
    "/inference/v1/generate": {"model": "emulated", "token_ids": tokenize(TEXT).tolist(), "sampling_params": {}},
    "/generate": {"text": TEXT, "sampling_params": {"max_new_tokens": 1}},
    "/completion": {"prompt": TEXT, "n_predict": 1},
    "/infill": {"input_prefix": TEXT, "input_suffix": "", "n_predict": 1},
    "/v2/models/emulated/generate": {"text_input": TEXT, "max_tokens": 1},
}


@pytest.mark.parametrize("path", NATIVE)
async def test_a_repeated_prompt_is_predicted_and_served_on_every_path(journey: Journey, path: str) -> None:
    status, _, first, served = await journey.send(path, NATIVE[path])
    assert (status, first.predicted_hit_tokens, served) == (200, 0, 0)
    assert TOKENS <= first.prompt_tokens <= TOKENS + 16
    status, _, second, served = await journey.send(path, NATIVE[path])
    assert (status, second.endpoint) == (200, first.endpoint)
    assert abs(second.predicted_hit_tokens - served) <= BLOCK
    assert served >= TOKENS - BLOCK


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"model": "emulated", "prompt": TEXT}),
        ("/v1/messages/count_tokens", {"model": "emulated", "messages": [{"role": "user", "content": TEXT}]}),
    ],
)
async def test_a_prompt_that_was_only_counted_is_cached_nowhere(journey: Journey, path: str, body: Any) -> None:
    status, _, counted, _ = await journey.send(path, body)
    assert (status, counted.prompt_tokens, counted.predicted_hit_tokens) == (200, 0, 0)
    assert [journey.held(address) for address in journey.servers] == [0, 0]
    sent = "/v1/completions" if path == "/tokenize" else "/v1/messages"
    status, _, picked, served = await journey.send(sent, {"max_tokens": 1, **body})
    assert (status, picked.predicted_hit_tokens, served) == (200, 0, 0)


async def test_turns_of_coding_agents_stay_where_their_prompts_are_cached(journey: Journey) -> None:
    """Their first system block changes with each request, and their cache breakpoint moves with each turn."""
    predicted = served = moved = 0.0
    for session in range(4):
        rng = random.Random(session)
        base = " ".join(rng.choice(WORDS) for _ in range(1500))
        messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "begin"}]}]
        before = ""
        for turn in range(4):
            system = [
                {
                    "type": "text",
                    "text": f"x-anthropic-billing-header: cc_version=9.9.9; cch={rng.getrandbits(20):05x};",
                },
                {"type": "text", "text": base, "cache_control": {"type": "ephemeral"}},
            ]
            sent = orjson.loads(orjson.dumps(messages))
            sent[-1]["content"][-1]["cache_control"] = {"type": "ephemeral"}
            body = {"model": "emulated", "max_tokens": 4, "system": system, "messages": sent}
            status, _, picked, hits = await journey.send("/v1/messages", body)
            assert status == 200
            predicted += picked.predicted_hit_tokens
            served += hits
            moved += bool(before) and picked.endpoint != before
            before = picked.endpoint
            call = {"type": "tool_use", "id": f"c{turn}", "name": "read", "input": {"path": f"file{turn}"}}
            result = " ".join(rng.choice(WORDS) for _ in range(400))
            messages.append({"role": "assistant", "content": [call]})
            messages.append(
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": result}]}
            )
    assert moved == 0
    assert served > 4 * 3 * 1500
    assert abs(predicted - served) <= 0.05 * served


async def test_media_with_one_uuid_are_predicted_and_served_whatever_their_address(journey: Journey) -> None:
    def body(url: str, uuid: str) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": url}, "uuid": uuid}
        content = [image, {"type": "text", "text": TEXT}]
        return {"model": "emulated", "messages": [{"role": "user", "content": content}], "max_tokens": 1}

    await journey.send("/v1/chat/completions", body("http://a/1.png", "sku-1"))
    _, _, other, served = await journey.send("/v1/chat/completions", body("http://a/1.png", "sku-2"))
    assert (other.predicted_hit_tokens, served) == (0, 0)
    _, _, same, served = await journey.send("/v1/chat/completions", body("http://b/9.png", "sku-1"))
    assert abs(same.predicted_hit_tokens - served) <= BLOCK
    assert served >= TOKENS - BLOCK


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstandard.compress)],
    ids=["gzip", "deflate", "zstd"],
)
async def test_an_encoded_body_is_read_for_the_pick_and_passed_on_as_it_came(
    journey: Journey, encoding: str, pack: Any
) -> None:
    body = {"model": "emulated", "prompt": TEXT, "max_tokens": 1}
    await journey.send("/v1/completions", body)
    packed = pack(orjson.dumps(body))
    # The emulated engine unpacks gzip and deflate; a server that does not know an encoding answers for itself.
    status, _, picked, _ = await journey.send("/v1/completions", packed, content_encoding=encoding)
    assert status in {200, 400}
    assert TOKENS <= picked.prompt_tokens <= TOKENS + 16
    assert picked.predicted_hit_tokens >= TOKENS - BLOCK


async def test_a_bomb_is_answered_413(journey: Journey) -> None:
    bomb = gzip.compress(b'{"model":"emulated","prompt":"' + b"x" * (64 << 20) + b'"}')
    async with journey.client.post(
        journey.url + "/v1/completions",
        data=bomb,
        headers={"content-type": "application/json", "content-encoding": "gzip"},
    ) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("through", ["the picker", "the server"])
@pytest.mark.parametrize("path", ["/reset_prefix_cache", "/sleep?level=1"])
async def test_a_server_whose_cache_was_emptied_is_not_picked_for_it(journey: Journey, path: str, through: str) -> None:
    body = {"model": "emulated", "prompt": TEXT, "max_tokens": 1}
    _, _, first, _ = await journey.send("/v1/completions", body)
    _, _, warm, served = await journey.send("/v1/completions", body)
    assert warm.endpoint == first.endpoint
    assert served >= TOKENS - BLOCK
    if through == "the server":
        async with journey.client.post(f"http://{first.endpoint}{path}", data=b"") as response:
            assert response.status == 200
    else:
        # The picker sends it to either server, so it is repeated until the warm one had it.
        while (await journey.send(path, b""))[2].endpoint != first.endpoint:
            pass
    await eventually(lambda: journey.held(first.endpoint) == 0, what="the index forgets the endpoint")
    reasons = {event.reason for event in journey.live.recorder.of(CacheEmptied) if event.endpoint == first.endpoint}
    assert reasons & {"reset", "asleep", "request"}
    if path.startswith("/sleep"):
        for address in journey.servers:
            async with journey.client.post(f"http://{address}/wake_up", data=b"") as response:
                assert response.status == 200
        await eventually(lambda: len(journey.live.healthy()) == 2)
    _, _, after, served = await journey.send("/v1/completions", body)
    assert (after.predicted_hit_tokens, served) == (0, 0)
