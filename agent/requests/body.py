"""Reads a request body: the model, the prompt as bytes in reading order, and the salt of the cache.

A model server renders a request into one sequence of tokens, and two requests share cache blocks as far as these
sequences begin alike. The prompt is not rendered here. Its parts are written in the order in which a chat template
reads them (tools, then the system prompt, then role and content of each turn), with a mark before each part and none
after it. So the text of a longer conversation begins with the text of the conversation before.

    text                 as it is; a content of one text part equals the same content as a plain string
    token ids            four bytes each, because a token of an average text has four bytes
    images, audio, files a digest of 16 bytes of the whole part (its address, or its data)
    sampling settings    ignored: no template reads them

Only a body that cannot be routed is refused. One that is well-formed and has a model is passed on, whatever else is
wrong with it, because the model server decides what it accepts. On unknown paths (`/tokenize`, `/v1/rerank`, an upload
of audio) nothing is refused, and a model and a prompt are read where there are any.

A body of many tiny parts would take seconds to read. So only the first `MAX_PARTS` turns, parts and prompts are read,
far more than a useful request has; the rest is ignored.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
import xxhash

from agent.pick.request import Prompt

Json = Any  # what orjson returns: dict, list, str, int, float, bool or None

MAX_PARTS: Final = 65_536


class BodyRefused(Exception):
    """A body that cannot be routed: `reason` is a row of the table of rejections, `param` the member at fault."""

    def __init__(self, reason: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.param = param


# Marks from the ASCII control range, which hardly occurs in prompts; where one does, two different texts may be equal.
_TURN: Final = b"\x1e"
_PART: Final = b"\x1f"
_FIELD: Final = b"\x1d"

# The fields of a turn beside its role and content, in the order in which templates read them.
_TURN_FIELDS: Final = ("name", "reasoning_content", "reasoning", "tool_calls", "function_call", "tool_call_id")
# Parts that a model reads literally although they are not plain text: tool calls and their results.
_READ_WHOLE: Final = frozenset({"tool_use", "tool_result", "function_call", "function_call_output", "custom_tool_call"})
_TEXT_FIELDS: Final = ("text", "refusal", "thinking")


def parse(body: bytes, path: str, encoding: str = "") -> Prompt:
    """The model, prompt text and salt of a request with this body to this path (a query string is ignored).

    `encoding` is its content-encoding, if it has one: an encoded body is refused, not decoded.

    Raises BodyRefused on the paths of the OpenAI and Anthropic APIs: for a body that is not a JSON
    object in UTF-8 (`invalid_json`), is nested too deep (`invalid_json`), or names no model (`model_required`: a server
    with a single model responds without one, but in a pool of several models the wanted one is unknown). Raises nothing
    else.
    """
    read = _reader(path)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if read is None:
            return Prompt("", b"")
        raise BodyRefused("invalid_json", _unreadable(error, encoding)) from None
    if not isinstance(document, dict):
        if read is None:
            return Prompt("", b"")
        message = f"The body of your request must be a JSON object, not {_kind(document)}."
        raise BodyRefused("invalid_json", message)
    model = document.get("model")
    if read is None:
        read, model = _any, model if isinstance(model, str) else ""
    elif not isinstance(model, str) or not model:
        message = "You must provide a model parameter." if not model else f"model must be a string, not {_kind(model)}."
        raise BodyRefused("model_required", message, "model")
    out: list[bytes] = []
    salt = document.get("cache_salt")
    try:
        read(document, out)
    except RecursionError:
        raise BodyRefused("invalid_json", "The body of your request is nested too deep.") from None
    return Prompt(model, b"".join(out), salt.encode() if isinstance(salt, str) else b"")


def _unreadable(error: orjson.JSONDecodeError, encoding: str) -> str:
    """The error message for a body that is not JSON: what is wrong, and what to change."""
    if encoding and encoding != "identity":
        return f"The body of your request has the content-encoding {encoding[:64]!r}: send it as plain JSON."
    why = str(error)
    if why.startswith("str is not valid UTF-8"):
        why = "it is not in UTF-8"
    return f"We could not parse the JSON body of your request: {why}"


def _reader(path: str) -> Callable[[Mapping[str, Json], list[bytes]], None] | None:
    """The reader of the API by the end of the path, whatever prefix a gateway adds; None for an unknown path.

    A proxy that sends no path sends requests to these APIs alone: the body is read as any of them, and has to be JSON.
    """
    if not path:
        return _any
    path = path.partition("?")[0].rstrip("/")
    for end, read in _READERS:
        if path.endswith(end):
            return read
    return None


def _chat(document: Mapping[str, Json], out: list[bytes]) -> None:
    for tools in ("tools", "functions"):
        _field(document.get(tools), out)
    _turns(document.get("messages"), out)


def _completion(document: Mapping[str, Json], out: list[bytes]) -> None:
    _plain(document.get("prompt"), out)
    _field(document.get("prompt_embeds"), out)


def _embedding(document: Mapping[str, Json], out: list[bytes]) -> None:
    _plain(document.get("input"), out)
    _chat(document, out)


def _response(document: Mapping[str, Json], out: list[bytes]) -> None:
    _field(document.get("tools"), out)
    _system(document.get("instructions"), out)
    for earlier in ("previous_response_id", "conversation"):
        _field(document.get(earlier), out)
    items = document.get("input")
    if isinstance(items, list):
        _turns(items, out)
    elif items is not None:
        out.append(_TURN + b"user")
        _content(items, out)


def _system(content: Json, out: list[bytes]) -> None:
    if content:
        out.append(_TURN + b"system")
        _content(content, out)


def _anthropic(document: Mapping[str, Json], out: list[bytes]) -> None:
    _field(document.get("tools"), out)
    _system(document.get("system"), out)
    _turns(document.get("messages"), out)


def _any(document: Mapping[str, Json], out: list[bytes]) -> None:
    _completion(document, out)
    _embedding(document, out)
    for field in ("query", "text_1", "text_2", "documents"):
        _plain(document.get(field), out)


# The order matters: "/chat/completions" ends with "/completions" too.
_READERS: Final[tuple[tuple[str, Callable[[Mapping[str, Json], list[bytes]], None]], ...]] = (
    ("/chat/completions", _chat),
    ("/completions", _completion),
    ("/embeddings", _embedding),
    ("/responses", _response),
    ("/messages", _anthropic),
)


def _turns(turns: Json, out: list[bytes]) -> None:
    for turn in turns if isinstance(turns, list) else ():
        if len(out) > MAX_PARTS:
            return
        _turn(turn, out)


def _turn(turn: Json, out: list[bytes]) -> None:
    """One turn of a conversation; an item of the Responses API without a role (a tool call or its result) is a part."""
    if not isinstance(turn, dict):
        out.append(_TURN)
        _content(turn, out)
        return
    role = turn.get("role")
    if role is None and "content" not in turn:
        out.append(_TURN)
        _part(turn, out)
        return
    out.append(_TURN + (role.encode() if isinstance(role, str) else _dump(role)))
    content = turn.get("content")
    if isinstance(content, str):
        out.append(_PART + content.encode())
    else:
        _content(content, out)
    if len(turn) > 2 or content is None or role is None:  # more than a role and a content
        for name in _TURN_FIELDS:
            _field(turn.get(name), out)


def _content(content: Json, out: list[bytes]) -> None:
    """The content of a turn: a string, or parts of different types."""
    if isinstance(content, str):
        out.append(_PART + content.encode())
    elif isinstance(content, list):
        for part in content if len(content) <= MAX_PARTS else content[:MAX_PARTS]:
            _part(part, out)
    elif content is not None:
        out.append(_PART + _dump(content))


def _part(part: Json, out: list[bytes]) -> None:
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
            return
    kind = part.get("type")
    dumped = _dump(part)
    if not isinstance(kind, str):
        kind = ""
    if kind in _READ_WHOLE:
        out.append(_PART + dumped)
    else:
        out.append(_PART + kind.encode() + xxhash.xxh3_128_digest(dumped))


def _plain(prompt: Json, out: list[bytes]) -> None:
    """A prompt without turns: a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        out.append(_PART + prompt.encode())
    elif isinstance(prompt, list) and prompt:
        if isinstance(prompt[0], int):
            out.append(_tokens(prompt))
        else:
            for one in prompt if len(prompt) <= MAX_PARTS else prompt[:MAX_PARTS]:
                if isinstance(one, list):
                    out.append(_tokens(one))
                else:
                    _part(one, out)
    elif prompt:
        out.append(_PART + _dump(prompt))


def _tokens(ids: list[Json]) -> bytes:
    """Four bytes for each token. A list of other values is written as JSON; the model server refuses it."""
    try:
        return array("I", ids).tobytes()
    except (TypeError, OverflowError):
        return _PART + _dump(ids)


def _field(value: Json, out: list[bytes]) -> None:
    if value:
        out.append(_FIELD + (value.encode() if isinstance(value, str) else _dump(value)))


def _dump(value: Json) -> bytes:
    """The value as JSON. orjson reads 1,024 levels and writes 254: `parse` refuses a body between the two."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise RecursionError from None


def _kind(value: Json) -> str:
    """The JSON name of the value's type."""
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names[type(value)]
