"""The prompt is what the engine renders: what it leaves out, joins and identifies, and the bodies of its own paths."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.pick.request import Prompt
from agent.prefix.blocks import chain, seed
from agent.requests.body import parse
from agent.requests.paths import PATHS, PREFILLS
from agent.requests.prompt_rules import ATTRIBUTION, DEFAULT, RULES, PromptRules, masked, rules_of
from agent.requests.rendering import MAX_PARTS, READERS
from tests.requests.test_forms import BOUNDARY, TYPE, multipart
from tests.requests.test_paths import filled

MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
CHAT = "/v1/chat/completions"
TEXT = "section of the manual " * 910
IDS = list(range(1000, 6000))
VLLM, SGLANG, LLAMACPP = RULES["vllm"], RULES["sglang"], RULES["llamacpp"]
engines = pytest.mark.parametrize("rules", RULES.values(), ids=RULES)


def line(nonce: str) -> str:
    return f"{ATTRIBUTION}: cc_version=9.9.9.0a1; cc_entrypoint=cli; cch={nonce};"


def text_of(path: str, rules: PromptRules = DEFAULT, **fields: Any) -> bytes:
    return parse(orjson.dumps({"model": "m", **fields}), path, rules=rules).text


def blocks(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


# -- what is left out -------------------------------------------------------------------------------------------------


@engines
def test_an_attribution_line_that_changes_with_each_request_changes_no_prompt(rules: PromptRules) -> None:
    def prompt(nonce: str) -> bytes:
        system = blocks(line(nonce), "You are a careful helper.", "Project instructions.")
        return text_of(MESSAGES, rules, system=system, messages=[{"role": "user", "content": "hi"}])

    assert prompt("a5145") == prompt("00f1e")
    assert b"careful helper" in prompt("a5145")


@pytest.mark.parametrize("rules", [VLLM, SGLANG], ids=["vllm", "sglang"])
def test_a_request_with_the_attribution_line_is_the_request_without_it(rules: PromptRules) -> None:
    messages = [{"role": "user", "content": "hi"}]
    without = text_of(MESSAGES, rules, system=blocks("a", "b"), messages=messages)
    assert text_of(MESSAGES, rules, system=blocks(line("a5145"), "a", "b"), messages=messages) == without
    assert text_of(MESSAGES, rules, system=blocks("a", line("a5145"), "b"), messages=messages) == without
    alone = text_of(MESSAGES, rules, system=blocks(line("a5145")), messages=messages)
    assert alone == text_of(MESSAGES, rules, messages=messages)


def test_a_string_with_the_attribution_line_is_rendered_by_vllm_and_masked_by_llamacpp() -> None:
    def prompt(rules: PromptRules, nonce: str) -> bytes:
        return text_of(MESSAGES, rules, system=line(nonce) + "Be brief.", messages=[])

    assert prompt(VLLM, "a5145") != prompt(VLLM, "00f1e")
    assert prompt(LLAMACPP, "a5145") == prompt(LLAMACPP, "00f1e")
    assert b"cch=fffff;Be brief." in prompt(LLAMACPP, "a5145")


@given(before=st.text(max_size=20), nonce=st.text(max_size=8), after=st.text(max_size=20))
@example(before=ATTRIBUTION + ": cch=", nonce="a5145", after=";")
@example(before=ATTRIBUTION + ": cch=", nonce="a5145", after="")
@example(before=ATTRIBUTION + ": c", nonce="", after="")
def test_a_masked_text_differs_in_five_characters_at_most(before: str, nonce: str, after: str) -> None:
    text = before + nonce + after
    made = masked(text)
    assert len(made) == len(text)
    assert sum(one != other for one, other in zip(made, text, strict=True)) <= 5
    assert text.startswith(ATTRIBUTION + ":") or made == text
    assert masked(made) == made


def test_the_attribution_line_is_left_out_of_inline_system_messages_and_nowhere_else() -> None:
    inline = [{"role": "user", "content": "hi"}, {"role": "system", "content": line("a5145")}]
    assert text_of(MESSAGES, messages=inline) == text_of(MESSAGES, messages=inline[:1])
    user = [{"role": "user", "content": blocks(line("a5145"))}]
    assert line("a5145").encode() in text_of(MESSAGES, messages=user)
    assert line("a5145").encode() in text_of(CHAT, messages=[{"role": "system", "content": blocks(line("a5145"))}])


@engines
@pytest.mark.parametrize(
    "last",
    [
        {"type": "text", "text": "question"},
        {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"},
        {"type": "tool_result", "tool_use_id": "call_1", "content": blocks("sunny")},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "x"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "document", "title": "a"},
    ],
    ids=["text", "tool_result", "tool_result_blocks", "tool_use", "image", "document"],
)
def test_a_cache_breakpoint_that_moves_changes_no_prompt(rules: PromptRules, last: dict[str, Any]) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}

    def prompt(marked: bool) -> bytes:
        part = {**mark, **last} if marked else last
        tool = {"name": "weather", "input_schema": {}}
        return text_of(
            MESSAGES,
            rules,
            tools=[{**mark, **tool} if marked else tool],
            system=[{**blocks("brief")[0], **(mark if marked else {})}],
            messages=[{"role": "user", "content": [part]}],
        )

    assert prompt(marked=True) == prompt(marked=False)


def test_blocks_of_the_system_prompt_are_one_text_as_the_engine_joins_them() -> None:
    for rules, joined in ((VLLM, "ab"), (SGLANG, "a\nb"), (LLAMACPP, "ab")):
        assert text_of(MESSAGES, rules, system=blocks("a", "b"), messages=[]) == text_of(
            MESSAGES, rules, system=joined, messages=[]
        )
        # The same system prompt in a chat.
        assert text_of(MESSAGES, rules, system=blocks("a", "b"), messages=[]) == text_of(
            CHAT, rules, messages=[{"role": "system", "content": joined}]
        )


def test_thoughts_that_cannot_be_read_are_left_out() -> None:
    opaque = {"type": "redacted_thinking", "data": "AAAA"}
    thought = {"type": "thinking", "thinking": "hmm", "signature": "s1"}
    other = {**thought, "signature": "s2"}
    prompts = [
        text_of(MESSAGES, messages=[{"role": "assistant", "content": parts}])
        for parts in ([opaque, thought], [thought], [other])
    ]
    assert len(set(prompts)) == 1


def test_an_image_in_the_result_of_a_tool_counts_as_a_digest() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [*blocks("a screenshot"), image]}
    text = text_of(MESSAGES, messages=[{"role": "user", "content": [result]}])
    assert b"a screenshot" in text
    assert len(text) < 200


# -- media ------------------------------------------------------------------------------------------------------------


def media(**part: Any) -> bytes:
    rules = part.pop("rules", VLLM)
    return text_of(CHAT, rules, messages=[{"role": "user", "content": [part]}])


def test_media_with_one_uuid_are_one_content_whatever_their_address_or_bytes() -> None:
    one = media(type="image_url", image_url={"url": "http://a/1.png"}, uuid="sku-1")
    assert one == media(type="image_url", image_url={"url": "http://b/2.png?signature=x"}, uuid="sku-1")
    assert one == media(type="image_url", image_url=None, uuid="sku-1")
    assert one == media(type="image_pil", image_pil=None, uuid="sku-1")
    assert one != media(type="image_url", image_url={"url": "http://a/1.png"}, uuid="sku-2")
    assert one != media(type="image_url", image_url={"url": "http://a/1.png"})
    assert one != media(type="input_audio", input_audio=None, uuid="sku-1")


@pytest.mark.parametrize("rules", [SGLANG, LLAMACPP], ids=["sglang", "llamacpp"])
def test_an_engine_without_uuids_goes_by_the_content(rules: PromptRules) -> None:
    one = media(type="image_url", image_url={"url": "http://a/1.png"}, uuid="sku-1", rules=rules)
    assert one == media(type="image_url", image_url={"url": "http://a/1.png"}, rules=rules)
    assert one != media(type="image_url", image_url={"url": "http://b/1.png"}, uuid="sku-1", rules=rules)


def test_the_same_image_is_the_same_in_every_interface() -> None:
    data = base64.b64encode(b"an image").decode()
    url = f"data:image/png;base64,{data}"
    part = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    chat = media(type="image_url", image_url={"url": url, "detail": "high"})
    assert chat == text_of(MESSAGES, messages=[{"role": "user", "content": [part]}])
    assert chat == text_of(RESPONSES, input=[{"role": "user", "content": [{"type": "input_image", "image_url": url}]}])


# -- the engines' own paths -------------------------------------------------------------------------------------------

NATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "vllm tokens": ("/inference/v1/generate", {"token_ids": IDS, "sampling_params": {"max_tokens": 1}}),
    "sglang text": ("/generate", {"text": TEXT, "sampling_params": {"max_new_tokens": 1}}),
    "sglang ids": ("/generate", {"input_ids": IDS}),
    "sglang batch": ("/generate", {"text": [TEXT[: len(TEXT) // 2]] * 2}),
    "sglang batch of ids": ("/generate", {"input_ids": [IDS[:2500], IDS[2500:]]}),
    "tgi": ("/generate", {"inputs": TEXT, "parameters": {"max_new_tokens": 1}}),
    "tgi stream": ("/generate_stream", {"inputs": TEXT}),
    "tgi root": ("/", {"inputs": TEXT}),
    "triton": ("/v2/models/chat/generate", {"text_input": TEXT, "max_tokens": 1}),
    "triton stream": ("/v2/models/chat/versions/1/generate_stream", {"text_input": TEXT}),
    "triton infer": (
        "/v2/models/chat/infer",
        {
            "inputs": [
                {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": [TEXT]},
                {"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "data": [7]},
            ]
        },
    ),
    "triton infer ids": (
        "/v2/models/chat/infer",
        {"inputs": [{"name": "input_ids", "shape": [1, 5000], "datatype": "INT32", "data": [IDS]}]},
    ),
    "llamacpp": ("/completion", {"prompt": TEXT, "n_predict": 1}),
    "llamacpp ids": ("/completion", {"prompt": IDS}),
    "llamacpp mixed": ("/completion", {"prompt": [*IDS[:2500], TEXT[: len(TEXT) // 2]]}),
    "llamacpp media": ("/completion", {"prompt": {"prompt_string": TEXT, "multimodal_data": ["A" * 9000]}}),
    "llamacpp infill": ("/infill", {"input_prefix": TEXT, "input_suffix": "", "n_predict": 1}),
    "pooling": ("/pooling", {"model": "m", "input": TEXT}),
    "classify": ("/classify", {"model": "m", "input": TEXT}),
    "score": ("/v1/score", {"model": "m", "text_1": TEXT, "text_2": "x"}),
    "score queries": ("/v1/score", {"model": "m", "queries": "x", "documents": [TEXT]}),
    "score data": ("/score", {"model": "m", "data_1": TEXT, "data_2": "x"}),
    "rerank": ("/v2/rerank", {"model": "m", "query": "x", "documents": [TEXT]}),
    "rerank texts": ("/rerank", {"query": "x", "texts": [TEXT]}),
    "embed": ("/embed", {"inputs": [TEXT]}),
    "llamacpp embedding": ("/embedding", {"content": TEXT}),
    "ollama": ("/api/generate", {"model": "m", "prompt": TEXT}),
    "ollama chat": ("/api/chat", {"model": "m", "messages": [{"role": "user", "content": TEXT}]}),
    "speech": ("/v1/audio/speech", {"model": "m", "input": TEXT, "voice": "x"}),
    "vertex": ("/v1/models/chat:predict", {"instances": [{"prompt": TEXT}]}),
    "vertex texts": ("/vertex_generate", {"instances": [{"text": TEXT}]}),
    "invocations": ("/invocations", {"messages": [{"role": "user", "content": TEXT}]}),
    "batch of chats": ("/v1/chat/completions/batch", {"messages": [[{"role": "user", "content": TEXT}]]}),
    "unknown": ("/custom", {"prompt": TEXT}),
}


@pytest.mark.parametrize("name", NATIVE)
def test_the_prompt_of_an_engines_own_path_is_as_long_as_on_the_paths_of_openai(name: str) -> None:
    path, fields = NATIVE[name]
    prompt = parse(orjson.dumps(fields), path)
    assert prompt.model == ("chat" if "/models/chat" in path else fields.get("model", ""))
    assert 5000 <= -(-len(prompt.text) // 4) <= 5016
    assert parse(orjson.dumps(fields), path) == prompt


def test_several_texts_between_token_ids_are_read_in_their_order() -> None:
    mixed = parse(orjson.dumps({"prompt": [1, "two", 3, "four"]}), "/completion").text
    assert mixed.startswith(parse(orjson.dumps({"prompt": [1, "two", 3]}), "/completion").text)
    assert mixed.index(b"two") < mixed.index(b"four")


def test_infill_is_written_as_llamacpp_renders_it() -> None:
    text = text_of(
        "/infill",
        LLAMACPP,
        input_prefix="before",
        input_suffix="behind",
        prompt="begun",
        input_extra=[{"filename": "a.py", "text": "other file"}],
    )
    words = (b"a.py", b"other file", b"before", b"begun", b"behind")
    assert [text.index(word) for word in words] == sorted(text.index(word) for word in words)


@pytest.mark.parametrize(
    ("path", "body", "content_type", "model"),
    [
        ("/v2/models/chat/generate?model=other", b"{}", "", "chat"),
        ("/generate?model=q", b'{"text":"x"}', "", "q"),
        ("/generate?model=q", b'{"text":"x","model":"b"}', "", "b"),
        ("/v1/chat/completions?model=q", b'{"messages":[]}', "", "q"),
        ("/v1/chat/completions?x=1&model=org%2Fq", b'{"messages":[],"model":null}', "", "org/q"),
        ("/v1/audio/transcriptions", multipart({"model": "whisper", "file": b"RIFF"}), TYPE, "whisper"),
        ("/v1/audio/transcriptions", b"model=whisper", "application/x-www-form-urlencoded", "whisper"),
        ("/v1/audio/transcriptions?model=q", multipart({"file": b"RIFF"}), TYPE, "q"),
        ("/custom", multipart({"model": "m"}), TYPE, "m"),
        ("/tokenize?model=q", b"{}", "", "q"),
        ("/generate?" + "a=1&" * 1000 + "model=q", b"{}", "", ""),
    ],
)
def test_the_model_is_that_of_the_body_the_path_or_the_query(
    path: str, body: bytes, content_type: str, model: str
) -> None:
    assert parse(body, path, content_type=content_type).model == model


def test_an_upload_is_part_of_the_prompt_by_its_digest() -> None:
    def text(data: bytes, prompt: str = "") -> bytes:
        fields: dict[str, str | bytes] = {"model": "w", "file": data, **({"prompt": prompt} if prompt else {})}
        return parse(multipart(fields), "/v1/audio/transcriptions", content_type=TYPE).text

    assert text(b"a" * 10_000) == text(b"a" * 10_000)
    assert text(b"a" * 10_000) != text(b"b" * 10_000)
    assert len(text(b"a" * 10_000)) < 100
    assert b"names" in text(b"a", "names")
    assert BOUNDARY.encode() not in text(b"a", "names")


def test_a_salt_is_what_the_engine_separates_its_cache_by() -> None:
    def salt(rules: PromptRules, **fields: Any) -> bytes:
        return parse(orjson.dumps({"model": "m", "prompt": "x", **fields}), "/v1/completions", rules=rules).salt

    assert salt(VLLM, cache_salt="a", extra_key="b") == salt(VLLM, cache_salt="a") == b"a"
    assert salt(SGLANG, extra_key="b") == b"b"
    assert salt(SGLANG, lora_path="c") not in {b"", salt(SGLANG, extra_key="b")}
    assert salt(SGLANG) == salt(SGLANG, cache_salt=7) == b""


# -- properties -------------------------------------------------------------------------------------------------------

READ = [row for row in PATHS if row.effect == PREFILLS]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
members = st.sampled_from(
    (
        "messages input inputs prompt text input_ids token_ids text_input instances system instructions tools content"
        " query queries documents texts text_1 data_2 input_extra input_prefix images uuid image_url source type data"
        " datatype name role cache_control cch multimodal_data prompt_string tool_calls output"
    ).split()
)
documents = st.dictionaries(members, st.recursive(values, lambda v: st.dictionaries(members, v) | st.lists(v)))


@given(document=documents, row=st.sampled_from(READ), rules=st.sampled_from([*RULES.values()]))
def test_any_document_is_read_by_every_reader(document: Any, row: Any, rules: PromptRules) -> None:
    prompt = parse(orjson.dumps({"model": "m", **document}), filled(row.pattern), rules=rules)
    assert isinstance(prompt, Prompt)
    assert prompt.model == "m"


@given(body=st.binary(max_size=100), row=st.sampled_from(READ), content_type=st.sampled_from(["", TYPE, "text/plain"]))
def test_no_bytes_are_refused_where_the_interface_is_not_openais(body: bytes, row: Any, content_type: str) -> None:
    if not row.strict:
        assert isinstance(parse(body, filled(row.pattern), content_type=content_type), Prompt)


# A prompt in the place where each reader finds its first text.
PLACES: dict[str, Any] = {
    "any": lambda text: {"prompt": text},
    "chat": lambda text: {"messages": [{"role": "user", "content": text}]},
    "chats": lambda text: {"messages": [[{"role": "user", "content": text}]]},
    "completion": lambda text: {"prompt": text},
    "embedding": lambda text: {"input": text},
    "generate": lambda text: {"text": text},
    "infill": lambda text: {"input_prefix": text},
    "instances": lambda text: {"instances": [{"prompt": text}]},
    "messages": lambda text: {"messages": [{"role": "user", "content": text}]},
    "ollama": lambda text: {"prompt": text},
    "pooling": lambda text: {"input": text},
    "response": lambda text: {"input": text},
    "score": lambda text: {"query": text},
    "speech": lambda text: {"input": text},
    "tensors": lambda text: {"inputs": [{"name": "text_input", "datatype": "BYTES", "data": [text]}]},
    "audio": lambda text: {"prompt": text},
}
letters = st.text("abcdef", max_size=60)


@given(common=letters, one=letters, other=letters, row=st.sampled_from(READ), rules=st.sampled_from([*RULES.values()]))
def test_prompts_share_exactly_the_blocks_that_their_texts_share(
    common: str, one: str, other: str, row: Any, rules: PromptRules
) -> None:
    """The common beginning of two prompts is that of the bytes written for them, and so are their common blocks."""

    def text(content: str) -> bytes:
        return parse(orjson.dumps({"model": "m", **PLACES[row.reader](content)}), filled(row.pattern), rules=rules).text

    def shared(first: bytes | str, second: bytes | str) -> int:
        return next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), -1)

    first, second = text(common + one), text(common + other)
    before = len(text("a")) - 1
    in_prompts, in_bytes = shared(common + one, common + other), shared(first, second)
    assert (in_bytes == in_prompts == -1) or in_bytes == before + in_prompts
    size = 4
    chains = [chain(each, size, seed("m", b""), 1000) for each in (first, second)]
    blocks_shared = next((at for at, pair in enumerate(zip(*chains, strict=False)) if pair[0] != pair[1]), None)
    if blocks_shared is not None:
        assert blocks_shared == in_bytes // size


def test_every_reader_has_a_place_in_these_tests() -> None:
    assert PLACES.keys() == READERS.keys()
    assert {row.reader for row in READ} | {"any"} == READERS.keys()


@given(text=st.text(max_size=40).filter(bool))
def test_only_interpreted_paths_have_a_limit_of_nesting(text: str) -> None:
    deep = b'{"model":"m","prompt":' + b"[" * 600 + b"]" * 600 + b"}"
    deeper = b"[" * 100_000
    for row in PATHS:
        if not row.strict:
            for body in (deep, deeper):
                assert parse(body, filled(row.pattern)).text == b""
    assert rules_of(text) is RULES.get(text, DEFAULT)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (
            MESSAGES,
            lambda n: {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{}]}] * n}]},
        ),
        (MESSAGES, lambda n: {"system": blocks("a") * n}),
        ("/generate", lambda n: {"text": ["x"] * n}),
        ("/completion", lambda n: {"prompt": [1, *(["x"] * n)]}),
        ("/v2/models/m/infer", lambda n: {"inputs": [{"datatype": "BYTES", "data": ["x"]}] * n}),
        ("/infill", lambda n: {"input_extra": [{"filename": "f", "text": "t"}] * n}),
        ("/vertex_generate", lambda n: {"instances": [{"prompt": "x"}] * n}),
        ("/v1/chat/completions/batch", lambda n: {"messages": [[{"role": "user", "content": "x"}]] * n}),
    ],
)
def test_parts_beyond_the_limit_are_ignored(path: str, fields: Any) -> None:
    assert text_of(path, **fields(2 * MAX_PARTS)) == text_of(path, **fields(3 * MAX_PARTS))
    assert text_of(path, **fields(100)) != text_of(path, **fields(200))
