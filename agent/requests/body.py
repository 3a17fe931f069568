"""Reads a request body: the model, the prompt as bytes in reading order, and the salt of the cache.

The table of paths (`agent.requests.paths`) defines how a body is read, `agent.requests.rendering` writes its prompt.

Only a body that cannot be routed is refused. One that is well-formed and has a model is passed on, whatever else is
wrong with it, because the model server decides what it accepts. On paths that are not those of the OpenAI and Anthropic
APIs nothing is refused, and a model and a prompt are read where there are any. A body that prefills nothing is not
read at all.

A body with a content-encoding is unpacked to read it, and passed on as it came. With an encoding that is not undone
here (`agent.requests.unpack`) it is passed on unread: no model and no prompt is known of it. JSON that is labelled with
an encoding that it does not have is read as it is, as servers do that ignore the header.
"""

from __future__ import annotations

from typing import Final

import orjson

from agent.pick.request import Prompt
from agent.requests import forms
from agent.requests.paths import PREFILLS, PathMatch, match, model_of_query
from agent.requests.prompt_rules import DEFAULT, PromptRules
from agent.requests.rendering import READERS, Json, salt_of
from agent.requests.unpack import BodyTooLarge, MalformedBody, UnknownEncoding, unpack

# The limit of an unpacked body where none is given: the default of `extProc.maxBody`.
MAX_BODY: Final = 16 << 20
# The members that limit an answer, in the APIs of OpenAI, Anthropic and llama.cpp.
_OUTPUT_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")
_LARGEST_OUTPUT: Final = 1 << 24
_LARGEST_COUNT: Final = 128  # answers to one prompt (`n`)


class BodyRefused(Exception):
    """A body that cannot be routed: `reason` is a row of the table of rejections, `param` the member at fault."""

    def __init__(self, reason: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.param = param


def parse(
    body: bytes,
    path: str,
    encoding: str = "",
    content_type: str = "",
    rules: PromptRules = DEFAULT,
    limit: int = MAX_BODY,
) -> Prompt:
    """The model, prompt text and salt of a request with this body to this path.

    `encoding` is its content-encoding, `limit` that of the unpacked body in bytes, `rules` those of the engine. The
    model is that of the body, else of the path, else of the query.

    Raises BodyRefused for a body that is too large when unpacked (`too_large`), and on the paths of the OpenAI and
    Anthropic APIs: for one that is not what its encoding says (`invalid_encoding`), is not a JSON object in UTF-8 or is
    nested too deep (`invalid_json`), or names no model (`model_required`: a server with a single model responds without
    one, but in a pool of several models the wanted one is unknown). Raises nothing else.
    """
    found = match(path)
    row = found.row
    if row.effect != PREFILLS:
        return _unread(found, path)
    problem, unknown = "", False
    if encoding and encoding != "identity":
        try:
            body = unpack(body, encoding, limit)
        except BodyTooLarge:
            message = f"The unpacked body of your request is over the limit of {limit} bytes."
            raise BodyRefused("too_large", message) from None
        except UnknownEncoding:
            unknown = True
        except MalformedBody as malformed:  # plain JSON with a wrong header is read all the same
            problem = str(malformed)
    document: Json
    if not row.strict and content_type and forms.is_form(content_type):
        document = forms.fields_of(body, content_type)
    else:
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            if not row.strict or unknown:
                return _unread(found, path)
            if problem:
                message = f"The body of your request does not have its content-encoding {encoding[:64]!r}: {problem}."
                raise BodyRefused("invalid_encoding", message) from None
            raise BodyRefused("invalid_json", _unreadable(error)) from None
    if not isinstance(document, dict):
        if not row.strict:
            return _unread(found, path)
        raise BodyRefused("invalid_json", f"The body of your request must be a JSON object, not {_kind(document)}.")
    model = document.get("model")
    if not isinstance(model, str) or not model:
        named = found.model or model_of_query(path)
        if row.strict and (model or not named):
            message = "You must provide a model parameter."
            if model:
                message = f"model must be a string, not {_kind(model)}."
            raise BodyRefused("model_required", message, "model")
        model = named
    out: list[bytes] = []
    try:
        READERS[row.reader](document, out, rules)
    except RecursionError:
        if not row.strict:
            return Prompt(model, b"")
        raise BodyRefused("invalid_json", "The body of your request is nested too deep.") from None
    return Prompt(model, b"".join(out), salt_of(document, rules), _max_output_tokens(document))


def _max_output_tokens(document: dict[str, Json]) -> int:
    """The most tokens that all answers to the request have together, 0 where it does not say so."""
    for name in _OUTPUT_LIMITS:
        limit = document.get(name)
        if type(limit) is int and 0 < limit <= _LARGEST_OUTPUT:
            count = document.get("n")
            return limit * count if type(count) is int and 1 < count <= _LARGEST_COUNT else limit
    return 0


def _unread(found: PathMatch, path: str) -> Prompt:
    """What is known of a request whose body is not read: the model in its path or query."""
    return Prompt(found.model or model_of_query(path), b"")


def _unreadable(error: orjson.JSONDecodeError) -> str:
    """The error message for a body that is not JSON: what is wrong."""
    why = str(error)
    if why.startswith("str is not valid UTF-8"):
        why = "it is not in UTF-8"
    return f"We could not parse the JSON body of your request: {why}"


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
