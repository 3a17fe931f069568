"""Writes the prompt of a request body as bytes, in the order in which the model reads it.

A model server renders a request into one sequence of tokens, and two requests share cache blocks as far as these
sequences begin alike. The prompt is not rendered here. Its parts are written in the order in which a chat template
reads them (tools, then the system prompt, then role and content of each turn), with a mark before each part and none
after it. So the text of a longer conversation begins with the text of the conversation before.

    text                 as it is; a content of one text part equals the same content as a plain string
    token ids            four bytes each, because a token of an average text has four bytes
    images, audio, files a digest of 16 bytes of the data or the address; of the `uuid` where the engine goes by it
    cache_control        left out: no engine renders it
    sampling settings    ignored: no template reads them

`agent.requests.prompt_rules` has the differences between engines.

A body of many tiny parts would take seconds to read. So only the first `MAX_PARTS` turns, parts and prompts are read,
far more than a useful request has; the rest is ignored.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
import xxhash

from agent.requests.prompt_rules import ATTRIBUTION, PromptRules, masked

Json = Any  # what orjson returns: dict, list, str, int, float, bool or None
Reader = Callable[[Mapping[str, Json], list[bytes], PromptRules], None]

MAX_PARTS: Final = 65_536

# Marks from the ASCII control range, which hardly occurs in prompts; where one does, two different texts may be equal.
_TURN: Final = b"\x1e"
_PART: Final = b"\x1f"
_FIELD: Final = b"\x1d"

# The fields of a turn beside its role and content, in the order in which templates read them.
_TURN_FIELDS: Final = ("name", "reasoning_content", "reasoning", "tool_calls", "function_call", "tool_call_id")
# Parts that a model reads literally although they are not plain text: tool calls.
_READ_WHOLE: Final = frozenset({"tool_use", "function_call", "custom_tool_call"})
# Results of tools: a turn of their own, with the content of this member.
_RESULTS: Final = {"tool_result": "content", "function_call_output": "output", "custom_tool_call_output": "output"}
# Members of a part or an item that say nothing to the model.
_UNRENDERED: Final = frozenset({"cache_control", "status"})
_TEXT_FIELDS: Final = ("text", "refusal", "thinking", "prompt_string")
# Parts that no engine renders.
_LEFT_OUT: Final = frozenset({"redacted_thinking"})
# The kinds of media by the type of a part: two types of one kind with the same content are the same.
_MEDIA: Final[Mapping[str, str]] = {
    "image_url": "image",
    "input_image": "image",
    "image": "image",
    "image_pil": "image",
    "image_embeds": "image",
    "audio_url": "audio",
    "input_audio": "audio",
    "audio_embeds": "audio",
    "video_url": "video",
    "input_video": "video",
    "video": "video",
}


def _chat(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    for field in ("tools", "functions", "documents"):
        _field(document.get(field), out)
    _turns(document.get("messages"), out, rules)


def _chats(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    """Several conversations with the same tools: each is a prompt of its own."""
    _field(document.get("tools"), out)
    conversations = document.get("messages")
    for turns in conversations if isinstance(conversations, list) else ():
        if len(out) > MAX_PARTS:
            return
        _turns(turns if isinstance(turns, list) else [turns], out, rules)


def _completion(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    _plain(document.get("prompt"), out, rules)
    _field(document.get("prompt_embeds"), out)


def _embedding(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    for name in ("input", "content", "prompt"):
        _plain(document.get(name), out, rules)
    _chat(document, out, rules)


def _pooling(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    for name in ("input", "inputs", "text", "texts", "input_ids", "data"):
        _plain(document.get(name), out, rules)
    _chat(document, out, rules)


def _score(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    """Pairs: what all of them begin with first. The names of vLLM's releases, of Cohere, Jina and TEI."""
    for name in ("query", "queries", "text_1", "data_1", "documents", "texts", "items", "text_2", "data_2", "inputs"):
        _plain(document.get(name), out, rules)


def _speech(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    _instructions(document.get("instructions"), out, rules)
    _plain(document.get("input"), out, rules)


def _audio(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    """A form: the file, then the text that guides its transcription."""
    upload = document.get("file")
    if upload:
        data = upload if isinstance(upload, bytes) else _dump(upload)
        out.append(_PART + b"audio" + xxhash.xxh3_128_digest(data))
    _plain(document.get("prompt"), out, rules)


def _generate(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    """A prompt under the names of vLLM (token_ids), SGLang (text, input_ids), TGI (inputs) and Triton (text_input)."""
    for name in ("token_ids", "text", "input_ids", "inputs", "text_input", "prompt"):
        _plain(document.get(name), out, rules)
    for name in ("input_embeds", "features", "image_data", "audio_data", "video_data", "image"):
        value = document.get(name)
        if value:
            out.append(_PART + name.encode() + xxhash.xxh3_128_digest(_dump(value)))


def _tensors(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    """KServe's protocol: tensors with a name, a type and data. Texts and token ids are read, in the order given."""
    tensors = document.get("inputs")
    for tensor in tensors if isinstance(tensors, list) else ():
        if len(out) > MAX_PARTS:
            return
        if not isinstance(tensor, dict):
            continue
        name = tensor.get("name")
        if tensor.get("datatype") == "BYTES" or (isinstance(name, str) and name.lower() in ("input_ids", "prompt_ids")):
            _tensor(tensor.get("data"), out, rules)


def _tensor(data: Json, out: list[bytes], rules: PromptRules) -> None:
    """The elements of a tensor, whatever its shape."""
    while isinstance(data, list) and len(data) == 1 and isinstance(data[0], list):
        data = data[0]
    _plain(data, out, rules)


def _infill(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    """llama.cpp renders other files first, then what stands before the gap, then what stands behind it."""
    files = document.get("input_extra")
    for file in files if isinstance(files, list) else ():
        if len(out) > MAX_PARTS:
            return
        if isinstance(file, dict):
            _field(file.get("filename"), out)
            _plain(file.get("text"), out, rules)
    for name in ("input_prefix", "prompt", "input_suffix"):
        _plain(document.get(name), out, rules)


def _ollama(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    _instructions(document.get("system"), out, rules)
    _images(document.get("images"), out)
    _plain(document.get("prompt"), out, rules)
    _field(document.get("suffix"), out)


def _instances(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    """Vertex AI: a list of bodies, or of prompts."""
    instances = document.get("instances")
    for instance in instances if isinstance(instances, list) else ():
        if len(out) > MAX_PARTS:
            return
        if isinstance(instance, dict):
            _any(instance, out, rules)
        else:
            _plain(instance, out, rules)
    if instances is None:
        _any(document, out, rules)


def _response(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    _field(document.get("tools"), out)
    _instructions(document.get("instructions"), out, rules)
    for earlier in ("previous_response_id", "conversation"):
        _field(document.get(earlier), out)
    items = document.get("input")
    if isinstance(items, list):
        _turns(items, out, rules)
    elif items is not None:
        out.append(_TURN + b"user")
        _content(items, out, rules)


def _messages(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    tools = document.get("tools")
    if isinstance(tools, list):
        tools = [_rendered(tool) if isinstance(tool, dict) else tool for tool in tools[:MAX_PARTS]]
    _field(tools, out)
    _system(document.get("system"), out, rules)
    turns = document.get("messages")
    for turn in turns if isinstance(turns, list) else ():
        if len(out) > MAX_PARTS:
            return
        if isinstance(turn, dict) and turn.get("role") == "system":  # vLLM renders it in its place
            content = turn.get("content")
            _system([content] if isinstance(content, str) else content, out, rules)
        else:
            _turn(turn, out, rules)


def _any(document: Mapping[str, Json], out: list[bytes], rules: PromptRules) -> None:
    _generate(document, out, rules)
    for name in ("input", "content"):
        _plain(document.get(name), out, rules)
    _chat(document, out, rules)
    for name in ("query", "queries", "text_1", "text_2", "data_1", "data_2", "texts", "items"):
        _plain(document.get(name), out, rules)


# The readers by name: the column `reader` of the table of paths.
READERS: Final[Mapping[str, Reader]] = {
    "any": _any,
    "audio": _audio,
    "chat": _chat,
    "chats": _chats,
    "completion": _completion,
    "embedding": _embedding,
    "generate": _generate,
    "infill": _infill,
    "instances": _instances,
    "messages": _messages,
    "ollama": _ollama,
    "pooling": _pooling,
    "response": _response,
    "score": _score,
    "speech": _speech,
    "tensors": _tensors,
}


def salt_of(document: Mapping[str, Json], rules: PromptRules) -> bytes:
    """What separates the blocks of this request in the cache from those of others with the same prompt."""
    if len(rules.salts) == 1:
        salt = document.get(rules.salts[0])
        return salt.encode() if isinstance(salt, str) else b""
    found: list[str] = []
    for name in rules.salts:
        value = document.get(name)
        if isinstance(value, str):
            found.append(value)
    return "\0".join(found).encode()


def _instructions(content: Json, out: list[bytes], rules: PromptRules) -> None:
    if content:
        out.append(_TURN + b"system")
        _content(content, out, rules)


def _system(content: Json, out: list[bytes], rules: PromptRules) -> None:
    """The system prompt of the Anthropic API. The text blocks of a list are one text: engines join them first."""
    if isinstance(content, list):
        texts: list[str] = []
        for block in content if len(content) <= MAX_PARTS else content[:MAX_PARTS]:
            text = block.get("text") if isinstance(block, dict) else block
            if not isinstance(text, str):  # engines render no other blocks here
                continue
            if text and not (rules.drops_attribution and text.startswith(ATTRIBUTION)):
                texts.append(masked(text) if rules.masks_attribution else text)
        content = rules.system_separator.join(texts)
    elif rules.masks_attribution and isinstance(content, str):
        content = masked(content)
    _instructions(content, out, rules)


def _turns(turns: Json, out: list[bytes], rules: PromptRules) -> None:
    for turn in turns if isinstance(turns, list) else ():
        if len(out) > MAX_PARTS:
            return
        _turn(turn, out, rules)


def _turn(turn: Json, out: list[bytes], rules: PromptRules) -> None:
    """One turn of a conversation; an item of the Responses API without a role (a tool call or its result) is a part."""
    if not isinstance(turn, dict):
        out.append(_TURN)
        _content(turn, out, rules)
        return
    role = turn.get("role")
    if role is None and "content" not in turn:
        out.append(_TURN)
        _part(turn, out, rules)
        return
    out.append(_TURN + (role.encode() if isinstance(role, str) else _dump(role)))
    content = turn.get("content")
    if isinstance(content, str):
        out.append(_PART + content.encode())
    else:
        _content(content, out, rules)
    if len(turn) > 2 or content is None or role is None:  # more than a role and a content
        for name in _TURN_FIELDS:
            _field(turn.get(name), out)
        if "images" in turn:
            _images(turn["images"], out)


def _content(content: Json, out: list[bytes], rules: PromptRules) -> None:
    """The content of a turn: a string, or parts of different types."""
    if isinstance(content, str):
        out.append(_PART + content.encode())
    elif isinstance(content, list):
        for part in content if len(content) <= MAX_PARTS else content[:MAX_PARTS]:
            _part(part, out, rules)
    elif content is not None:
        out.append(_PART + _dump(content))


def _part(part: Json, out: list[bytes], rules: PromptRules) -> None:
    if isinstance(part, str):
        out.append(_PART + part.encode())
        return
    if not isinstance(part, dict):
        out.append(_PART + _dump(part))
        return
    for name in _TEXT_FIELDS:
        text = part.get(name)
        if isinstance(text, str):
            out.append(_PART + text.encode())
            if name == "prompt_string":
                _images(part.get("multimodal_data"), out)
            return
    kind = part.get("type")
    if not isinstance(kind, str):
        kind = ""
    result = _RESULTS.get(kind)
    if result is not None:
        out.append(_TURN + b"tool")
        if len(out) <= MAX_PARTS:
            _content(part.get(result), out, rules)
    elif kind in _READ_WHOLE:
        out.append(_PART + _dump(_rendered(part)))
    elif kind not in _LEFT_OUT:
        out.append(_PART + _MEDIA.get(kind, kind).encode() + _identity(part, kind, rules))


def _rendered(part: dict[str, Json]) -> dict[str, Json]:
    """The part without the members that say nothing to the model."""
    if _UNRENDERED.isdisjoint(part):
        return part
    return {name: value for name, value in part.items() if name not in _UNRENDERED}


def _identity(part: dict[str, Json], kind: str, rules: PromptRules) -> bytes:
    """The digest of a medium: of its `uuid`, else of its data or its address, else of the whole part."""
    if kind in _MEDIA:
        uuid = part.get("uuid")
        if rules.media_uuids and isinstance(uuid, str) and uuid:
            return xxhash.xxh3_128_digest(b"uuid" + uuid.encode())
        for value in (part.get(kind), part.get("image_url"), part.get("source")):
            if isinstance(value, dict):
                value = value.get("url") or value.get("data") or value.get("file_id")
            if isinstance(value, str) and value:
                # The data of a `data:` address are what stands behind its comma.
                data = value.partition(",")[2] if value.startswith("data:") else value
                return xxhash.xxh3_128_digest(data.encode())
    return xxhash.xxh3_128_digest(_dump(_rendered(part)))


def _images(images: Json, out: list[bytes]) -> None:
    if images:
        out.append(_PART + b"image" + xxhash.xxh3_128_digest(_dump(images)))


def _plain(prompt: Json, out: list[bytes], rules: PromptRules) -> None:
    """A prompt without turns: a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        if prompt:
            out.append(_PART + prompt.encode())
    elif isinstance(prompt, list) and prompt:
        if isinstance(prompt[0], int):
            _tokens(prompt, out, rules)
        else:
            for one in prompt if len(prompt) <= MAX_PARTS else prompt[:MAX_PARTS]:
                if isinstance(one, list):
                    _tokens(one, out, rules)
                elif isinstance(one, int):
                    _tokens([one], out, rules)
                else:
                    _part(one, out, rules)
    elif isinstance(prompt, dict) and isinstance(prompt.get("content"), list):
        _content(prompt["content"], out, rules)
    elif isinstance(prompt, dict):
        _part(prompt, out, rules)
    elif prompt:
        out.append(_PART + _dump(prompt))


def _tokens(ids: list[Json], out: list[bytes], rules: PromptRules) -> None:
    """Four bytes for each token. llama.cpp takes texts between the ids; a list of other values is written as JSON, and
    the model server refuses it."""
    try:
        out.append(array("I", ids).tobytes())
    except (TypeError, OverflowError):
        if not all(isinstance(one, str | int) for one in ids[:MAX_PARTS]):
            out.append(_PART + _dump(ids))
            return
        for one in ids[:MAX_PARTS]:
            if isinstance(one, int) and 0 <= one < 1 << 32:
                out.append(one.to_bytes(4, "little"))
            else:
                _part(one, out, rules)


def _field(value: Json, out: list[bytes]) -> None:
    if value:
        out.append(_FIELD + (value.encode() if isinstance(value, str) else _dump(value)))


def _dump(value: Json) -> bytes:
    """The value as JSON. orjson reads 1,024 levels and writes 254. Raises RecursionError between the two."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise RecursionError from None
