"""The interfaces beside OpenAI's completions and chat, and sleep: one engine and one prefix cache serve them all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from agent.emulator.engine import EngineSimulation
from agent.emulator.interfaces import interfaces
from agent.emulator.jobs import Finished, FirstToken, JobSpec
from agent.emulator.text import tokenize
from tests.emulator.running_emulator import CONFIG, RunningEmulator, run_emulator
from tests.waiting import eventually

TEXT = "section of the manual " * 60  # 330 tokens
LINE = "x-anthropic-billing-header: cc_version=9.9.9; cc_entrypoint=cli; cch=%s;"


@pytest_asyncio.fixture
async def emulator() -> AsyncIterator[RunningEmulator]:
    async with run_emulator(replace(CONFIG, max_model_len=4096)) as emulator:
        yield emulator


async def hits(emulator: RunningEmulator) -> float:
    """The prompt tokens that were found in the cache so far."""
    _, page = await emulator.get("/metrics")
    (line,) = [line for line in page.decode().splitlines() if line.startswith("vllm:prefix_cache_hits_total{")]
    return float(line.rpartition(" ")[2])


BODIES: dict[str, dict[str, Any]] = {
    "/v1/messages": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 2},
    "/v1/responses": {"input": TEXT, "max_output_tokens": 2},
    "/inference/v1/generate": {"token_ids": tokenize(TEXT).tolist(), "sampling_params": {"max_tokens": 2}},
    "/generate": {"text": TEXT, "sampling_params": {"max_new_tokens": 2}},
    "/completion": {"prompt": TEXT, "n_predict": 2},
    "/infill": {"input_prefix": TEXT, "input_suffix": "end", "n_predict": 2},
    "/v2/models/tiny/generate": {"text_input": TEXT, "max_tokens": 2},
}


def test_every_interface_has_a_body_here() -> None:
    assert BODIES.keys() == interfaces(["tiny"]).keys()


@pytest.mark.parametrize("path", BODIES)
async def test_a_repeated_prompt_is_served_from_the_cache(emulator, path):
    status, first = await emulator.post(path, BODIES[path])
    assert status == 200, first
    assert await hits(emulator) == 0
    status, _ = await emulator.post(path, BODIES[path])
    assert status == 200
    assert await hits(emulator) == 320


async def test_one_prompt_is_the_same_on_all_paths_that_take_a_text(emulator):
    await emulator.post("/v1/completions", {"prompt": TEXT, "max_tokens": 1})
    for number, body in enumerate(
        (
            ("/generate", {"inputs": TEXT}),
            ("/generate", {"input_ids": tokenize(TEXT).tolist()}),
            ("/completion", {"prompt": TEXT}),
            ("/v2/models/tiny/generate", {"text_input": TEXT}),
            ("/inference/v1/generate", {"token_ids": tokenize(TEXT).tolist(), "sampling_params": {}}),
        ),
        1,
    ):
        await emulator.post(*body)
        assert await hits(emulator) == 320 * number, body[0]


async def test_a_message_is_the_chat_that_vllm_converts_it_to(emulator):
    chat = {
        "messages": [{"role": "system", "content": "ab"}, {"role": "user", "content": TEXT}],
        "tools": [{"name": "weather"}],
        "max_tokens": 1,
    }
    await emulator.post("/v1/chat/completions", chat)
    cache_control = {"cache_control": {"type": "ephemeral"}}
    message = {
        "system": [
            {"type": "text", "text": LINE % "a5145"},
            {"type": "text", "text": "a"},
            {"type": "text", "text": "b", **cache_control},
        ],
        "messages": [{"role": "user", "content": [{"type": "text", "text": TEXT, **cache_control}]}],
        "tools": [{"name": "weather", **cache_control}],
        "max_tokens": 1,
    }
    status, answer = await emulator.post("/v1/messages", message)
    assert status == 200
    assert answer["usage"]["cache_read_input_tokens"] >= 320
    status, count = await emulator.post("/v1/messages/count_tokens", message)
    assert (status, count) == (200, {"input_tokens": answer["usage"]["input_tokens"]})


async def test_results_of_tools_are_turns_and_their_calls_are_rendered(emulator):
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "what is it like"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "weather", "input": {"city": "x"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": TEXT}]},
    ]
    counts = []
    for end in range(1, 4):
        status, answer = await emulator.post("/v1/messages/count_tokens", {"messages": turns[:end]})
        assert status == 200
        counts.append(answer["input_tokens"])
    assert counts[0] < counts[1] < counts[2] - 300


async def test_media_with_one_uuid_are_one_content(emulator):
    def body(url: str) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": url}, "uuid": "sku-1"}
        content = [image, {"type": "text", "text": TEXT}]
        return {"messages": [{"role": "user", "content": content}], "max_tokens": 1}

    await emulator.post("/v1/chat/completions", body("http://a/1.png"))
    await emulator.post("/v1/chat/completions", body("http://b/2.png"))
    assert await hits(emulator) >= 320


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_a_stream_has_the_events_of_its_interface_and_the_text_of_the_whole_answer(emulator, path):
    _, whole = await emulator.post(path, BODIES[path])
    async with emulator.session.post(emulator.url + path, json={**BODIES[path], "stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        text = (await response.read()).decode()
    events = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert events == [each["type"] for each in data]
    if path == "/v1/messages":
        assert [events[0], events[1], *events[-3:]] == [
            "message_start",
            "content_block_start",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        deltas = [each["delta"]["text"] for each in data if each["type"] == "content_block_delta"]
        assert "".join(deltas) == whole["content"][0]["text"]
        assert data[-2]["usage"]["output_tokens"] == 2
    else:
        assert [events[0], events[-1]] == ["response.created", "response.incomplete"]
        deltas = [each["delta"] for each in data if each["type"] == "response.output_text.delta"]
        assert "".join(deltas) == whole["output"][0]["content"][0]["text"]
        assert data[-1]["response"]["usage"]["input_tokens_details"]["cached_tokens"] == 320


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/messages", {}, "body.messages"),
        ("/v1/messages", {"messages": [7]}, "body.messages"),
        ("/v1/messages/count_tokens", {}, "body.messages"),
        ("/v1/responses", {}, "body.input"),
        ("/v1/responses", {"input": 7}, "body.input"),
        ("/inference/v1/generate", {}, "body.prompt"),
        ("/generate", {}, "body.prompt"),
    ],
)
async def test_a_bad_body_is_a_400_that_names_its_field(emulator, path, fields, param):
    status, answer = await emulator.post(path, fields)
    assert (status, answer["error"]["param"]) == (400, param)


# -- sleep ------------------------------------------------------------------------------------------------------------


async def sleep_states(emulator: RunningEmulator) -> dict[str, float]:
    _, page = await emulator.get("/metrics")
    found = {}
    for line in page.decode().splitlines():
        if line.startswith("vllm:engine_sleep_state{"):
            found[line.partition('sleep_state="')[2].partition('"')[0]] = float(line.rpartition(" ")[2])
    return found


@pytest.mark.parametrize(("level", "state"), [("", "weights_offloaded"), ("?level=2", "discard_all")])
async def test_a_server_that_slept_has_an_empty_cache_and_its_page_shows_its_sleep(emulator, level, state):
    body = {"prompt": TEXT, "max_tokens": 1}
    await emulator.post("/v1/completions", body)
    async with emulator.session.post(f"{emulator.url}/sleep{level}") as response:
        assert (response.status, await response.read()) == (200, b"")
    assert await sleep_states(emulator) == {"awake": 0.0, "weights_offloaded": 0.0, "discard_all": 0.0, state: 1.0}
    assert await emulator.get("/is_sleeping") == (200, b'{"is_sleeping":true}')
    assert (await emulator.get("/health"))[0] == 200
    waiting = asyncio.ensure_future(emulator.post("/v1/completions", body))
    await eventually(lambda: emulator.server.queue_lengths == (0, 1))
    async with emulator.session.post(f"{emulator.url}/wake_up") as response:
        assert response.status == 200
    status, answer = await waiting
    assert (status, answer["usage"]["prompt_tokens_details"]["cached_tokens"]) == (200, 0)
    assert (await sleep_states(emulator))["awake"] == 1.0


async def test_a_level_that_vllm_does_not_have_is_a_400(emulator):
    async with emulator.session.post(f"{emulator.url}/sleep?level=9") as response:
        assert response.status == 400
    assert await emulator.get("/is_sleeping") == (200, b'{"is_sleeping":false}')


def test_sleep_aborts_what_runs_at_the_end_of_its_step_and_drops_its_blocks() -> None:
    engine = EngineSimulation(CONFIG, 0.0)
    spec = JobSpec(prompt_tokens=320, output_tokens=50, hashes=tuple(range(1, 11)))
    job = engine.submit(0.0, spec)
    assert any(isinstance(event, FirstToken) for event in engine.advance(0.01))
    engine.sleep(0.0101, 1)
    events = engine.advance(1.0)
    assert [(event.id, event.reason) for event in events if isinstance(event, Finished)] == [(job, "abort")]
    assert (engine.running, engine.waiting, engine.cache.used, engine.cache.idle) == (0, 0, 0, 0)
    again = engine.submit(1.0, spec)
    assert engine.next_event_at() is None
    assert engine.advance(5.0) == []
    engine.wake(5.0)
    assert engine.next_event_at() == 5.0
    first = next(event for event in engine.advance(6.0) if isinstance(event, FirstToken))
    assert (first.id, first.cached_tokens) == (again, 0)
    assert first.at > 5.0
