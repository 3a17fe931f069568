"""A request body becomes model, prompt text and salt, or a refusal with the correction."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from agent.pick.request import Prompt
from agent.requests.body import BodyRefused, parse
from agent.requests.paths import PREFILLS, match
from agent.requests.rejections import REJECTIONS
from agent.requests.rendering import MAX_PARTS

CHAT = "/v1/chat/completions"
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
    "identity": bytes,
}
PATHS = (CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")

texts = st.text(max_size=40)
paths = st.sampled_from((*PATHS, "/tokenize", "/", "", "/openai/v1/completions?x=1", "/v1/messages/count_tokens"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda kind, more: {"type": kind, **more}, json_values, st.dictionaries(texts, json_values, max_size=2)),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, texts),
    json_values,
)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts | st.lists(parts, max_size=3)},
    optional={"tool_calls": json_values, "name": texts, "refusal": st.none()},
)
names = ("messages", "prompt", "input", "tools", "system", "instructions", "cache_salt", "functions", "documents")
documents = st.fixed_dictionaries(
    {"model": texts | json_values},
    optional={name: json_values | st.lists(turns, max_size=3) for name in names},
)


def read(path: str = CHAT, **document: Any) -> Prompt:
    return parse(orjson.dumps({"model": "m", **document}), path)


def refusal(body: bytes, path: str = CHAT) -> BodyRefused:
    with pytest.raises(BodyRefused) as caught:
        parse(body, path)
    return caught.value


@given(body=st.binary(max_size=200), path=paths)
@example(body=b"[" * 2000, path=CHAT)
@example(body=b'{"model":"m","messages":[{"role":"user","content":[' + b"[" * 500 + b"]" * 500 + b"]}]}", path=CHAT)
@example(body=b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', path=CHAT)
@example(body=b'{"model":"m","prompt":[1,-1]}', path="/v1/completions")
@example(body=b'{"model":"m","messages":[{"role":"user","content":[{"type":["x"]}]}]}', path=CHAT)
@example(body=b'{"model":"m","input":[{"type":{"a":1}}]}', path="/v1/responses")
@example(body=b'{"prompt":' + b"[" * 500 + b"]" * 500 + b"}", path="/tokenize")
def test_any_bytes_are_read_or_refused_with_400_and_nothing_else(body: bytes, path: str) -> None:
    outcome: Prompt | BodyRefused
    try:
        outcome = parse(body, path)
    except BodyRefused as refused:
        outcome = refused
    assert isinstance(outcome, Prompt) or (REJECTIONS[outcome.reason].status == 400 and outcome.message)


@given(document=documents, path=paths)
def test_any_json_document_is_read_or_refused_with_400_and_nothing_else(document: Any, path: str) -> None:
    try:
        prompt = parse(orjson.dumps(document, option=orjson.OPT_PASSTHROUGH_SUBCLASS, default=str), path)
    except (orjson.JSONEncodeError, BodyRefused):
        return
    model = document["model"]
    read_at_all = match(path).row.effect == PREFILLS
    assert prompt.model == (model if isinstance(model, str) and read_at_all else "")


@given(
    head=st.lists(turns, min_size=1, max_size=4),
    more=st.lists(turns, max_size=3),
    path=st.sampled_from((CHAT, "/v1/messages")),
)
def test_a_longer_conversation_begins_with_the_text_of_the_conversation_before(head: Any, more: Any, path: str) -> None:
    def clean(turn: Any) -> Any:
        return orjson.loads(
            orjson.dumps(
                {"role": turn["role"], "content": "x" if not isinstance(turn["content"], str) else turn["content"]}
            )
        )

    head, more = [clean(turn) for turn in head], [clean(turn) for turn in more]
    assert read(path, messages=head + more).text.startswith(read(path, messages=head).text)


@given(common=texts, one=texts, other=texts, path=st.sampled_from(PATHS))
def test_prompts_with_a_common_beginning_have_texts_with_a_common_beginning(
    common: str, one: str, other: str, path: str
) -> None:
    def text(content: str) -> bytes:
        field: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
        if path == "/v1/completions":
            field = {"prompt": content}
        elif path in ("/v1/embeddings", "/v1/responses"):
            field = {"input": content}
        return read(path, **field).text

    both = text(common)
    assert text(common + one).startswith(both)
    assert text(common + other).startswith(both)


@given(ids=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50), cut=st.integers(0, 50))
def test_token_ids_are_four_bytes_each_and_share_the_beginning_of_their_prompts(ids: list[int], cut: int) -> None:
    whole = read("/v1/completions", prompt=ids).text
    assert len(whole) == 4 * len(ids)
    if ids[:cut]:
        assert whole.startswith(read("/v1/completions", prompt=ids[:cut]).text)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "param", "code", "word"),
    [
        (b"", None, "invalid_json", "parse"),
        (b"{", None, "invalid_json", "parse"),
        (b"<html>", None, "invalid_json", "parse"),
        (b'{"model":"\xff"}', None, "invalid_json", "not in UTF-8"),
        ('{"model":"m"}'.encode("utf-16"), None, "invalid_json", "not in UTF-8"),
        (b'\xef\xbb\xbf{"model":"m"}', None, "invalid_json", "byte order mark"),
        (b"[1]", None, "invalid_json", "an array"),
        (b"null", None, "invalid_json", "null"),
        (b'"m"', None, "invalid_json", "a string"),
        (b"{}", "model", "model_required", "provide"),
        (b'{"model":""}', "model", "model_required", "provide"),
        (b'{"model":null}', "model", "model_required", "provide"),
        (b'{"model":7}', "model", "model_required", "a number"),
        (b'{"model":["m"]}', "model", "model_required", "an array"),
    ],
)
def test_a_body_that_cannot_be_routed_is_refused_with_the_problem(
    path: str, body: bytes, param: str | None, code: str, word: str
) -> None:
    refused = refusal(body, path)
    assert (refused.param, refused.reason, REJECTIONS[refused.reason].code) == (param, code, code)
    assert word in refused.message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"--boundary\r\n", b"{}", b'{"model":3}'])
def test_on_an_unknown_path_no_body_is_refused(body: bytes) -> None:
    assert parse(body, "/v1/audio/transcriptions") == Prompt("", b"")


def test_on_an_unknown_path_a_model_and_a_prompt_are_read_if_present() -> None:
    prompt = read("/custom", prompt="hello")
    assert prompt.model == "m"
    assert b"hello" in prompt.text
    assert b"q" in read("/v1/rerank", query="q", documents=["d"]).text


def test_a_path_is_matched_by_its_end_without_its_query() -> None:
    for path in ("/v1/chat/completions?a=b/c", "/team-a/v1/chat/completions", "/v1/chat/completions/"):
        assert refusal(b"{}", path).param == "model"


def test_a_chat_is_written_in_reading_order() -> None:
    text = read(
        tools=[{"type": "function", "function": {"name": "weather"}}],
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "first"}, {"type": "text", "text": "second"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1"}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        temperature=0.5,
    ).text
    words = (
        b"weather",
        b"system",
        b"be brief",
        b"user",
        b"first",
        b"second",
        b"assistant",
        b"call_1",
        b"tool",
        b"sunny",
    )
    at = -1
    for word in words:
        at = text.find(word, at + 1)
        assert at >= 0, (word, text)
    assert b"0.5" not in text


def test_the_system_prompt_and_tools_of_the_anthropic_and_responses_apis_come_first() -> None:
    tools = [{"name": "weather"}]
    anthropic = read(
        "/v1/messages",
        messages=[{"role": "user", "content": "hi"}],
        system=[{"type": "text", "text": "brief"}],
        tools=tools,
    )
    responses = read("/v1/responses", input="hi", instructions="brief", tools=tools)
    for prompt in (anthropic, responses):
        assert prompt.text.index(b"weather") < prompt.text.index(b"brief") < prompt.text.index(b"hi")


def test_items_of_the_responses_api_are_read_in_order() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "what is it like"}]},
        {"type": "function_call", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "sunny"},
    ]
    text = read("/v1/responses", input=items).text
    assert text.index(b"what is it like") < text.index(b"weather") < text.index(b"sunny")


def test_a_content_of_one_text_part_equals_the_plain_string() -> None:
    plain = read(messages=[{"role": "user", "content": "hi"}])
    assert read(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]) == plain
    assert read(messages=[{"role": "user", "content": "hi", "tool_calls": None, "refusal": None}]) == plain


def test_an_image_counts_as_a_digest_that_differs_with_the_image() -> None:
    def text(data: bytes) -> bytes:
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        return read(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]).text

    assert text(b"a" * 100_000) == text(b"a" * 100_000)
    assert text(b"a" * 100_000) != text(b"a" * 99_999 + b"b")
    assert len(text(b"a" * 100_000)) < 100


def test_several_prompts_are_all_read() -> None:
    assert read("/v1/completions", prompt=["one", "two"]).text.startswith(read("/v1/completions", prompt="one").text)
    assert len(read("/v1/completions", prompt=[[1, 2], [3]]).text) == 12
    assert b"two" in read("/v1/embeddings", input=["one", "two"]).text


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, lambda times: {"messages": [0] * times}),
        (CHAT, lambda times: {"messages": [{"role": "user", "content": [{}] * times}]}),
        (CHAT, lambda times: {"messages": [{"role": "user", "content": [{}] * 10}] * (times // 10)}),
        ("/v1/completions", lambda times: {"prompt": [[1]] * times}),
        ("/v1/completions", lambda times: {"prompt": ["x"] * times}),
        ("/v1/responses", lambda times: {"input": [0] * times}),
        ("/v1/messages", lambda times: {"messages": [0] * times}),
    ],
)
def test_parts_beyond_the_limit_are_ignored(path: str, fields: Callable[[int], dict[str, Any]]) -> None:
    assert read(path, **fields(2 * MAX_PARTS)) == read(path, **fields(3 * MAX_PARTS))
    assert read(path, **fields(100)) != read(path, **fields(200))


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "deflate", "zstd", "identity", "deflate, gzip", "GZIP"])
def test_a_body_is_read_as_if_it_had_no_encoding(name: str) -> None:
    packed = body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi " * 500}]})
    for one in name.lower().split(", "):
        packed = PACK[one](packed)
    assert parse(packed, CHAT, name) == parse(body, CHAT)


def test_a_body_over_the_limit_when_unpacked_is_refused_as_a_plain_one_would_be() -> None:
    body = gzip.compress(orjson.dumps({"model": "m", "prompt": "x" * 5000}))
    for path in ("/v1/completions", "/generate", "/custom"):
        with pytest.raises(BodyRefused, match="4000 bytes") as caught:
            parse(body, path, "gzip", limit=4000)
        assert (caught.value.reason, REJECTIONS[caught.value.reason].status) == ("too_large", 413)
        assert parse(body, path, "gzip", limit=6000).model == "m"
    assert parse(body, "/tokenize", "gzip", limit=4000) == Prompt("", b"")


def test_a_body_that_does_not_have_its_encoding_is_refused_and_plain_json_is_read() -> None:
    body = orjson.dumps({"model": "m", "prompt": "x"})
    assert parse(body, "/v1/completions", "gzip") == parse(body, "/v1/completions")
    for bad in (gzip.compress(body)[:-9], b"\x1f\x8bnonsense", b"", zlib.compress(body)):
        with pytest.raises(BodyRefused, match="content-encoding 'gzip'") as caught:
            parse(bad, CHAT, "gzip")
        assert caught.value.reason == "invalid_encoding"
        assert parse(bad, "/generate", "gzip") == Prompt("", b"")
    with pytest.raises(BodyRefused, match="UTF-8"):
        parse(gzip.compress(body), CHAT, "identity")


@pytest.mark.parametrize("path", [*PATHS, "/generate", "/custom?model=m"])
def test_a_body_with_an_encoding_that_is_not_undone_is_passed_on_without_a_prompt(path: str) -> None:
    assert parse(b"\x8b\x02\x80{}\x03", path, "br") == Prompt("m" if "?" in path else "", b"")


def test_a_zstd_body_that_is_cut_off_is_not_json() -> None:
    body = zstandard.compress(orjson.dumps({"model": "m", "prompt": [*range(10_000)]}))
    with pytest.raises(BodyRefused) as caught:
        parse(body[: len(body) // 2], CHAT, "zstd")
    assert REJECTIONS[caught.value.reason].status == 400


def test_the_salt_is_not_part_of_the_text() -> None:
    prompt = read(messages=[{"role": "user", "content": "hi"}], cache_salt="tenant-a")
    assert prompt.salt == b"tenant-a"
    assert b"tenant-a" not in prompt.text
    assert read(cache_salt=7).salt == b""


@pytest.mark.parametrize("turn", [{"role": "assistant"}, {"content": "x"}, {"role": "assistant", "content": "x"}])
def test_a_tool_call_is_read_whatever_else_is_in_its_turn(turn: dict[str, Any]) -> None:
    calls = [{"id": "call_1", "function": {"name": "weather"}}]
    assert b"weather" in read(messages=[{**turn, "tool_calls": calls}]).text


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ({}, 0),
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 50, "max_tokens": 100}, 50),
        ({"max_output_tokens": 70}, 70),
        ({"n_predict": 30}, 30),
        ({"n_predict": -1}, 0),
        ({"max_tokens": 100, "n": 3}, 300),
        ({"max_tokens": 100, "n": 1}, 100),
        ({"max_tokens": 100, "n": 0}, 100),
        ({"max_tokens": 100, "n": 129}, 100),
        ({"max_tokens": 100, "n": True}, 100),
        ({"max_tokens": True}, 0),
        ({"max_tokens": 1.5}, 0),
        ({"max_tokens": "100"}, 0),
        ({"max_tokens": None, "n": 2}, 0),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": -5}, 0),
        ({"max_tokens": 1 << 24}, 1 << 24),
        ({"max_tokens": (1 << 24) + 1}, 0),
        ({"max_tokens": 1 << 63}, 0),
        ({"max_completion_tokens": -1, "max_tokens": 9}, 9),
    ],
)
def test_the_limit_of_the_output_is_what_the_request_allows_for_all_answers_together(
    members: dict[str, object], tokens: int
) -> None:
    body = orjson.dumps({"model": "m", "prompt": "x", **members})
    assert parse(body, "/v1/completions").max_output_tokens == tokens


@given(json_values, json_values)
def test_whatever_limits_a_request_sets_the_output_is_a_number_from_0(limit: object, count: object) -> None:
    body = json.dumps({"model": "m", "prompt": "x", "max_tokens": limit, "n": count}).encode()
    assert 0 <= parse(body, "/v1/completions").max_output_tokens <= 128 << 24
