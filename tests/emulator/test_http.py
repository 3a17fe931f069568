"""The emulator answers over HTTP as the recorded vLLM did: status, headers, shapes, and error messages."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from agent.emulator.jobs import JobSpec
from tests.emulator.running_emulator import (
    CONFIG,
    MODEL,
    TRANSCRIPTS,
    RunningEmulator,
    Transcript,
    run_emulator,
    shape,
    sse,
    transcript,
)
from tests.waiting import eventually

WHOLE = (
    "completion completion_tokenids_prompt completion_two_prompts_n2 completion_request_id_header chat"
    " err_no_model_field unknown_extra_field load version models tokenize_prompt tokenize_chat detokenize"
    " reset_prefix_cache is_sleeping anthropic_messages responses_api"
).split()
STREAMS = (
    "completion_stream completion_stream_usage completion_stream_continuous_usage chat_stream chat_stream_usage"
).split()
ERRORS = (
    "err_empty_body err_include_usage_without_stream err_malformed_json err_prompt_plus_max_tokens_too_long"
    " err_temperature_range err_unknown_model err_unknown_model_chat_stream err_unknown_path err_wrong_content_type"
    " err_wrong_method err_wrong_type"
).split()


@pytest_asyncio.fixture
async def emulator() -> AsyncIterator[RunningEmulator]:
    async with run_emulator() as emulator:
        yield emulator


async def replayed(emulator: RunningEmulator, recorded: Transcript) -> tuple[int, dict[str, str], str]:
    data = recorded.data.encode() if recorded.data is not None else None
    async with emulator.session.request(
        recorded.method, emulator.url + recorded.path, data=data, headers=recorded.headers
    ) as r:
        return r.status, {k.lower(): v for k, v in r.headers.items()}, (await r.read()).decode()


@pytest.mark.parametrize("name", WHOLE)
async def test_a_whole_answer_has_the_recorded_shape(emulator, name):
    recorded = transcript(name)
    status, headers, body = await replayed(emulator, recorded)
    assert status == recorded.status == 200
    assert headers["content-type"] == recorded.answer_headers["content-type"]
    assert shape(json.loads(body)) == shape(json.loads(recorded.body))
    if "choices" in body:
        ours, theirs = json.loads(body), json.loads(recorded.body)
        assert ours["usage"]["completion_tokens"] == theirs["usage"]["completion_tokens"]
        assert len(ours["choices"]) == len(theirs["choices"])
        assert [c["finish_reason"] for c in ours["choices"]] == [c["finish_reason"] for c in theirs["choices"]]


@pytest.mark.parametrize("name", ["health", "ping"])
async def test_a_health_probe_has_an_empty_answer(emulator, name):
    assert (await replayed(emulator, transcript(name)))[::2] == (200, "")


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_has_the_recorded_events(emulator, name):
    recorded = transcript(name)
    status, headers, body = await replayed(emulator, recorded)
    assert status == 200
    assert headers["content-type"] == recorded.answer_headers["content-type"]
    assert headers["transfer-encoding"] == "chunked"
    ours, theirs = sse(body), sse(recorded.body)
    assert ours[-1] == theirs[-1] == "[DONE]"
    first, last = json.loads(ours[0]), json.loads(ours[-2])
    assert shape(first) == shape(json.loads(theirs[0]))
    assert shape(last) == shape(json.loads(theirs[-2]))
    # Tokens that are due together share an event, as recorded under load: each shape occurs in the recording.
    shapes = [shape(json.loads(event)) for event in theirs[:-1]]
    assert all(shape(json.loads(event)) in shapes for event in ours[:-1])
    assert len({json.loads(event)["id"] for event in ours[:-1]}) == 1
    text = "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or ""
        for event in ours[:-1]
        for choice in json.loads(event)["choices"]
    )
    assert len(text) == 4 * 6


@pytest.mark.parametrize("name", ERRORS)
async def test_an_error_is_the_recorded_one(emulator, name):
    recorded = transcript(name)
    status, headers, body = await replayed(emulator, recorded)
    assert status == recorded.status
    assert headers["content-type"] == "application/json"
    if name == "err_malformed_json":  # the JSON parser's message differs
        cut = re.compile(r"'error': '.*?'")
        assert cut.sub("", body) == cut.sub("", recorded.body)
    elif name.startswith("err_unknown_model"):
        assert json.loads(body) == json.loads(recorded.body)
    else:
        assert body == recorded.body
    if name == "err_wrong_method":
        assert headers["allow"] == "POST"


async def test_adapters_are_loaded_listed_and_unloaded_as_recorded(emulator):
    for name in ("lora_load", "lora_load_again", "lora_unload", "lora_unload_again"):
        recorded = transcript(name)
        status, _, body = await replayed(emulator, recorded)
        assert (status, body) == (recorded.status, recorded.body)
        listed = {m["id"]: m["parent"] for m in json.loads((await emulator.get("/v1/models"))[1])["data"]}
        base = {"tiny": None, "lora-a": "tiny", "lora-b": "tiny"}
        assert listed == base | ({"lora-c": "tiny"} if name.startswith("lora_load") else {})


async def test_a_full_queue_is_the_recorded_503():
    recorded = json.loads((TRANSCRIPTS / "err_503_queue_full_chat.txt").read_text().partition("\n\n")[2])
    async with run_emulator(replace(CONFIG, max_num_seqs=1, max_num_queued_reqs=1, step_seconds=0.2)) as emulator:
        request = {"model": "tiny", "prompt": "x", "max_tokens": 500, "ignore_eos": True}
        running = asyncio.create_task(emulator.post("/v1/completions", request))
        await eventually(lambda: emulator.server.queue_lengths == (1, 0))
        waiting = asyncio.create_task(emulator.post("/v1/completions", request))
        await eventually(lambda: emulator.server.queue_lengths == (1, 1))
        for stream in (False, True):
            assert await emulator.post("/v1/completions", request | {"stream": stream}) == (503, recorded)
        page = (await emulator.get("/metrics"))[1].decode()
        assert 'admission_rejections_total{model_name="tiny",reason="max_num_queued_reqs"} 2.0' in page
        for task in (running, waiting):
            task.cancel()
        # A client that disconnects aborts its request.
        await eventually(lambda: emulator.server.queue_lengths == (0, 0))


async def test_a_stream_is_aborted_when_its_client_disconnects(emulator):
    request = {"model": "tiny", "prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    async with emulator.session.post(emulator.url + "/v1/completions", json=request) as response:
        await response.content.readline()
        assert emulator.server.queue_lengths[0] == 1
        response.close()
    await eventually(lambda: emulator.server.queue_lengths == (0, 0))
    assert (await emulator.get("/load"))[1] == b'{"server_load":0}'


async def test_the_second_turn_of_a_chat_hits_the_first_turn_and_its_answer_in_the_cache(emulator):
    messages = [{"role": "system", "content": "Be brief. " * 40}, {"role": "user", "content": "Tell me all of it."}]
    request = {"model": "tiny", "messages": messages, "max_tokens": 40}
    _, first = await emulator.post("/v1/chat/completions", request)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    content = first["choices"][0]["message"]["content"]
    more = [*messages, {"role": "assistant", "content": content}, {"role": "user", "content": "And then?"}]
    _, second = await emulator.post("/v1/chat/completions", request | {"messages": more})
    whole = first["usage"]["total_tokens"] - 1  # the KV entries of the last token are not computed
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == whole // 32 * 32
    _, other = await emulator.post("/v1/chat/completions", request | {"messages": more, "cache_salt": "tenant"})
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    _, adapter = await emulator.post("/v1/chat/completions", request | {"messages": more, "model": "lora-a"})
    assert adapter["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_tokenize_usage_and_detokenize_agree(emulator):
    text = "Grüße, 世界! " * 9
    _, tokens = await emulator.post("/tokenize", {"model": "tiny", "prompt": text})
    assert tokens["count"] == len(tokens["tokens"]) == -(-len(text.encode()) // 4)
    _, answer = await emulator.post("/v1/completions", {"model": "tiny", "prompt": text, "max_tokens": 1})
    assert answer["usage"]["prompt_tokens"] == tokens["count"]
    assert (await emulator.post("/detokenize", {"model": "tiny", "tokens": tokens["tokens"]}))[1] == {"prompt": text}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
    _, counted = await emulator.post("/tokenize", chat)
    _, answer = await emulator.post("/v1/chat/completions", chat | {"max_tokens": 1})
    assert answer["usage"]["prompt_tokens"] == counted["count"]


async def test_an_answer_ends_at_answer_tokens_unless_ignore_eos_is_set(emulator):
    request = {"model": "tiny", "prompt": "x"}
    for fields, tokens, reason in (
        ({}, 40, "stop"),
        ({"max_tokens": 7}, 7, "length"),
        ({"max_tokens": 500}, 40, "stop"),
        ({"max_tokens": 90, "ignore_eos": True}, 90, "length"),
    ):
        _, answer = await emulator.post("/v1/completions", request | fields)
        assert answer["usage"]["completion_tokens"] == tokens
        assert answer["choices"][0]["finish_reason"] == reason


async def test_equal_prompts_get_equal_answers_and_different_ones_different_answers(emulator):
    answers = [
        (await emulator.post("/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": 20}))[1]["choices"][0]
        for prompt in ("a", "a", "b")
    ]
    assert answers[0] == answers[1] != answers[2]


async def test_a_whole_answer_has_a_load_report_if_requested(emulator):
    request = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    for requested, report in (
        ("TEXT", "TEXT named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc=0.0"),
        ("json", 'JSON {"named_metrics": {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.0}}'),
        ("BIN", None),
    ):
        headers = {"endpoint-load-metrics-format": requested}
        for stream in (False, True):
            async with emulator.session.post(
                emulator.url + "/v1/completions", json=request | {"stream": stream}, headers=headers
            ) as response:
                assert response.headers.get("endpoint-load-metrics") == (None if stream else report)


async def test_the_page_counts_the_answered_requests(emulator):
    for place in range(3):
        await emulator.post("/v1/completions", {"model": "tiny", "prompt": "x" * 400, "max_tokens": 5 + place})
    await emulator.get("/nowhere")
    async with emulator.session.get(emulator.url + "/metrics") as response:
        assert response.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
        page = await response.text()
    for line in (
        'vllm:generation_tokens_total{engine="0",model_name="tiny"} 18.0',
        'vllm:prompt_tokens_total{engine="0",model_name="tiny"} 300.0',
        'vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 192.0',
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 3.0',
        'vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.0',
        'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 3.0',
        'http_requests_total{handler="none",method="GET",status="4xx"} 1.0',
    ):
        assert line in page.splitlines()
    assert 'handler="/metrics"' not in page


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {}, "body.prompt"),
        ("/v1/completions", {"prompt": {}}, "body.prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "n": 1000}, "n"),
        ("/v1/completions", {"prompt": "x", "stream": "yes"}, "body.stream"),
        ("/v1/completions", {"prompt": "x" * 9000}, "input_tokens"),
        ("/v1/completions", {"prompt": "x" * 8000, "max_tokens": 100}, "input_tokens"),
        ("/v1/completions", {"prompt": "x", "model": 3}, "body.model"),
        ("/v1/chat/completions", {}, "body.messages"),
        ("/v1/chat/completions", {"messages": "hello"}, "body.messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "body.messages.content"),
        ("/tokenize", {}, "body.prompt"),
        ("/detokenize", {"tokens": ["a"]}, "body.tokens"),
        ("/v1/load_lora_adapter", {}, "body.lora_name"),
    ],
)
async def test_a_bad_field_is_a_400_that_names_it(emulator, path, fields, param):
    status, answer = await emulator.post(path, fields)
    assert status == 400
    assert answer["error"]["param"] == param
    assert answer["error"]["code"] == 400


@pytest.mark.parametrize("body", [b"[1, 2]", b"null", b"\xff\xfe", b"{" * 1000])
async def test_a_body_that_is_not_an_object_is_a_400(emulator, body):
    headers = {"content-type": "application/json"}
    async with emulator.session.post(emulator.url + "/v1/completions", data=body, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == 400


async def test_a_stopping_server_ends_streams_with_an_error_and_closes_the_port_at_once():
    async with run_emulator() as emulator:
        request = {"model": "tiny", "prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        async with emulator.session.post(emulator.url + "/v1/completions", json=request) as response:
            await response.content.readline()
            stopping = asyncio.create_task(emulator.server.stop())
            events = sse((await response.read()).decode())
            await stopping
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["error"]["code"] == 500
        with pytest.raises(OSError, match=str(emulator.port)):
            await emulator.get("/health")


async def test_the_port_opens_after_the_start_up_time():
    config = replace(CONFIG, startup_seconds=0.3)
    async with run_emulator(config) as emulator:
        engine = emulator.server._driver.engine
        assert emulator.server._clock.now() >= engine.ready_at
        assert engine.submit(emulator.server._clock.now(), JobSpec(1, 1)) == 1


async def test_without_lora_no_adapter_can_be_loaded():
    async with run_emulator(replace(CONFIG, max_loras=0), replace(MODEL, adapters=())) as emulator:
        status, answer = await emulator.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "y"})
        assert status == 400
        assert "--max-loras" in answer["error"]["message"]


async def test_a_request_id_of_any_bytes_is_accepted():
    body = b'{"model":"tiny","max_tokens":1,"prompt":"hello"}'
    async with run_emulator() as emulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", emulator.port)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-id: a\xe9\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert b'"id":"cmpl-a?' in await reader.readuntil(b",")
        writer.close()


async def test_a_client_that_disconnects_before_its_stream_is_not_an_error(emulator, caplog, monkeypatch):
    read = web.BaseRequest.read

    async def read_and_disconnect(request: web.BaseRequest) -> bytes:
        body = await read(request)
        assert request.transport is not None
        request.transport.abort()
        return body

    monkeypatch.setattr(web.BaseRequest, "read", read_and_disconnect)
    with pytest.raises(aiohttp.ClientError):
        await emulator.post("/v1/completions", {"model": "tiny", "max_tokens": 5, "stream": True, "prompt": "hello"})
    assert (await emulator.get("/health"))[0] == 200
    assert caplog.records == []
