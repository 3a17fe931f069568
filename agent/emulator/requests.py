"""Request bodies: from bytes to a CompletionRequest, or to the error of the recorded server.

The errors (status, `type`, `param`, `code`, and the text that clients match) are those of the recorded transcripts of
vLLM 0.32. As in vLLM, unknown fields are ignored.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection
from typing import Any, NamedTuple

import orjson

from agent.emulator.text import chat_tokens, tokenize

_MAX_CHOICES = 128


class RequestError(Exception):
    """A request that cannot be served: the HTTP status and the fields of the error object."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        """The error as JSON."""
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}
        )


class CompletionRequest(NamedTuple):
    """A valid completion or chat; `max_tokens` is None if the client set no limit."""

    model: str
    chat: bool
    prompts: tuple[array[int], ...]
    n: int
    max_tokens: int | None
    ignore_eos: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    cache_salt: str
    return_token_ids: bool


def bad_field(kind: str, loc: str, text: str, given: str) -> RequestError:
    """A 400 for an invalid field."""
    detail = f"{{'type': '{kind}', 'loc': '{loc}', 'msg': '{text}', 'input': {given!r}}}"
    return RequestError(400, f"1 validation error:\n  {detail}", "Bad Request", loc)


def parse_json(body: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object in `body`; RequestError (400) if it is not one."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(
            400, "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed", "Bad Request"
        )
    if not body:
        raise bad_field("missing", "body", "Field required", "None")
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        loc = f"body.{error.pos}"
        detail = (
            f"{{'type': 'json_invalid', 'loc': '{loc}', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', "
            f"'ctx': {{'error': {error.msg!r}}}}}"
        )
        raise RequestError(400, f"1 validation error:\n  {detail}", "Bad Request", loc) from error
    if not isinstance(fields, dict):
        raise bad_field("dict_type", "body", "Input should be a valid dictionary", type(fields).__name__)
    return fields


def _integer(fields: dict[str, Any], name: str, minimum: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        text = "Input should be a valid integer"
        if isinstance(value, str):
            raise bad_field("int_parsing", f"body.{name}", f"{text}, unable to parse string as an integer", value)
        raise bad_field("int_type", f"body.{name}", text, str(value))
    if value < minimum:
        raise RequestError(
            400,
            f"{name} must be at least {minimum}, got {value}. (parameter={name}, value={value})",
            "BadRequestError",
            name,
        )
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise bad_field("bool_type", f"body.{name}", "Input should be a valid boolean", str(value))


def requested_model(fields: dict[str, Any], default: str, adapters: Collection[str]) -> str:
    """The requested model, `default` if the field is missing (recorded); RequestError (404) for an unknown one."""
    model = fields.get("model")
    if model is None:
        return default
    if not isinstance(model, str):
        raise bad_field("string_type", "body.model", "Input should be a valid string", str(model))
    if model != default and model not in adapters:
        raise RequestError(
            404, f"The model `{model}` does not exist. Valid aliases: {default}.", "NotFoundError", "model"
        )
    return model


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) and 0 <= item < 1 << 32 for item in value)


def completion_prompts(fields: dict[str, Any]) -> tuple[array[int], ...]:
    """The prompts of a completion: a text, a list of texts, a list of token ids, or a list of such lists.

    RequestError (400) if there is none.
    """
    prompt = fields.get("prompt")
    if prompt is None:
        raise bad_field("missing", "body.prompt", "Field required", f"<dict of {len(fields)} items>")
    prompts: tuple[array[int], ...]
    if isinstance(prompt, str):
        prompts = (tokenize(prompt),)
    elif _is_ids(prompt):
        prompts = (array("I", prompt),)
    elif isinstance(prompt, list) and all(isinstance(item, str) for item in prompt):
        prompts = tuple(tokenize(item) for item in prompt)
    elif isinstance(prompt, list) and all(_is_ids(item) for item in prompt):
        prompts = tuple(array("I", item) for item in prompt)
    else:
        raise bad_field("string_type", "body.prompt", "Input should be a string, token ids, or a list of either", "?")
    if not prompts or not all(prompts):
        raise RequestError(
            400, "The prompt must hold at least one token. (parameter=prompt)", "BadRequestError", "prompt"
        )
    return prompts


def _medium(item: Any) -> str:
    """What stands for a part that is not text: the `uuid` of a medium, by which vLLM identifies it, else its JSON."""
    uuid = item.get("uuid") if isinstance(item, dict) else None
    if isinstance(uuid, str) and uuid:
        return f"{str(item.get('type')).partition('_')[0]} {uuid}"
    return orjson.dumps(item).decode()


def content_text(part: Any) -> str:
    """The text of a message's content; other parts are represented by their JSON or their `uuid`."""
    if part is None:
        return ""
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        return "".join(
            item["text"] if isinstance(item, dict) and isinstance(item.get("text"), str) else _medium(item)
            for item in part
        )
    raise bad_field("string_type", "body.messages.content", "Input should be a string or a list of parts", str(part))


def chat_prompt(fields: dict[str, Any]) -> array[int]:
    """The prompt of a chat's messages and tools."""
    messages = fields.get("messages")
    if messages is None:
        raise bad_field("missing", "body.messages", "Field required", f"<dict of {len(fields)} items>")
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        raise bad_field("list_type", "body.messages", "Input should be a list of messages", str(messages))
    turns = [(str(item.get("role", "user")), content_text(item.get("content"))) for item in messages]
    if fields.get("tools"):
        turns.insert(0, ("tools", orjson.dumps(fields["tools"]).decode()))
    return chat_tokens(turns)


def parse_completion(fields: dict[str, Any], *, chat: bool, model: str, max_model_len: int) -> CompletionRequest:
    """The request in `fields`; RequestError (400) if it is invalid or does not fit the model."""
    temperature = fields.get("temperature")
    if isinstance(temperature, int | float) and temperature < 0:
        value = float(temperature)
        raise RequestError(
            400,
            f"temperature must be non-negative, got {value}. (parameter=temperature, value={value})",
            "BadRequestError",
            "temperature",
        )
    stream = _flag(fields, "stream")
    options = fields.get("stream_options")
    if options is not None and not stream:
        raise RequestError(
            400,
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
            "BadRequestError",
            "stream_options",
        )
    options = options if isinstance(options, dict) else {}
    limit_name = "max_completion_tokens" if chat and fields.get("max_completion_tokens") is not None else "max_tokens"
    limit = _integer(fields, limit_name, 1)
    if limit is not None and limit > max_model_len:
        raise RequestError(
            400,
            f"{limit_name}={limit} cannot be greater than max_model_len={max_model_len}. Please request fewer output "
            f"tokens. (parameter={limit_name}, value={limit})",
            "BadRequestError",
            limit_name,
        )
    prompts = (chat_prompt(fields),) if chat else completion_prompts(fields)
    n = _integer(fields, "n", 1) or 1
    if n * len(prompts) > _MAX_CHOICES:
        raise RequestError(
            400, f"At most {_MAX_CHOICES} answers a request. (parameter=n, value={n})", "BadRequestError", "n"
        )
    for prompt in prompts:
        _check_length(len(prompt), limit, max_model_len)
    salt = fields.get("cache_salt")
    return CompletionRequest(
        model=model,
        chat=chat,
        prompts=prompts,
        n=n,
        max_tokens=limit,
        ignore_eos=_flag(fields, "ignore_eos"),
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("include_usage")) and bool(options.get("continuous_usage_stats")),
        cache_salt=salt if isinstance(salt, str) else "",
        return_token_ids=_flag(fields, "return_token_ids"),
    )


def _check_length(tokens: int, max_tokens: int | None, max_model_len: int) -> None:
    context = f"This model's maximum context length is {max_model_len} tokens. However, "
    if tokens > max_model_len - 1:
        raise RequestError(
            400,
            f"{context}your prompt contains at least {tokens} input tokens, which exceeds this limit even without any "
            f"output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value={tokens})",
            "BadRequestError",
            "input_tokens",
        )
    if max_tokens is not None and tokens + max_tokens > max_model_len:
        raise RequestError(
            400,
            f"{context}you requested {max_tokens} output tokens and your prompt contains {tokens} input tokens, "
            f"{tokens + max_tokens} together. Please reduce either. (parameter=input_tokens, value={tokens})",
            "BadRequestError",
            "input_tokens",
        )


def text_field(fields: dict[str, Any], name: str) -> str:
    """The text field `name`; RequestError (400) if it is missing or not one."""
    value = fields.get(name)
    if value is None:
        raise bad_field("missing", f"body.{name}", "Field required", f"<dict of {len(fields)} items>")
    if not isinstance(value, str):
        raise bad_field("string_type", f"body.{name}", "Input should be a valid string", str(value))
    return value


def token_ids_field(fields: dict[str, Any], name: str) -> list[int]:
    """The list of token ids `name`; RequestError (400) if it is missing or not one."""
    value = fields.get(name)
    if not isinstance(value, list) or not _is_ids(value):
        raise bad_field("list_type", f"body.{name}", "Input should be a list of token ids", str(value))
    return value
