"""The interfaces beside OpenAI's completions and chat: how their bodies become completions, and their answers.

    /v1/messages, /v1/responses   as vLLM converts them to a chat. System blocks with a coding agent's attribution line
                                  are left out, `cache_control` is not rendered, and the shapes of the answers are the
                                  recorded ones of vLLM 0.32
    /inference/v1/generate        vLLM's tokens in, tokens out
    /generate                     SGLang (text, input_ids) and TGI (inputs)
    /completion, /infill          llama.cpp
    /v2/models/M/generate         Triton

A stream is offered by the first two. The others answer whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from agent.emulator.answers import FinishedAnswer, Usage
from agent.emulator.requests import bad_field, content_text
from agent.emulator.text import tokenize

Fields = dict[str, Any]

_ATTRIBUTION: Final = "x-anthropic-billing-header"


class AnswerFacts(NamedTuple):
    """What an answer carries beside its text and its usage."""

    id: str
    created: int
    model: str


class Interface(NamedTuple):
    """One interface: `convert` makes the fields of a completion, or of a chat (`chat`), from those of its body. `write`
    writes a whole answer; `stream`: it can be streamed."""

    convert: Callable[[Fields], Fields]
    write: Callable[[AnswerFacts, FinishedAnswer, Usage], bytes]
    chat: bool = False
    stream: bool = False


# -- Anthropic's messages ---------------------------------------------------------------------------------------------


def messages_fields(fields: Fields) -> Fields:
    """The chat of a body of `/v1/messages` or `/v1/messages/count_tokens`. RequestError (400) for a bad one."""
    messages = fields.get("messages")
    if messages is None:
        raise bad_field("missing", "body.messages", "Field required", f"<dict of {len(fields)} items>")
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        raise bad_field("list_type", "body.messages", "Input should be a list of messages", str(messages))
    turns: list[Fields] = []
    system = _system_text(fields.get("system"))
    if system:
        turns.append({"role": "system", "content": system})
    for message in messages:
        turns += _turns_of(message)
    tools = fields.get("tools")
    if isinstance(tools, list):
        tools = [_without_cache_control(tool) for tool in tools]
    return _kept(fields, "stream", "cache_salt", "ignore_eos") | {
        "model": fields.get("model"),
        "messages": turns,
        "tools": tools,
        "max_tokens": fields.get("max_tokens"),
    }


def _system_text(system: Any) -> str:
    if not isinstance(system, list):
        return system if isinstance(system, str) else ""
    texts = [block.get("text") for block in system if isinstance(block, dict) and block.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str) and not text.startswith(_ATTRIBUTION))


def _turns_of(message: Fields) -> list[Fields]:
    """The chat's turns of one message: results of tools are turns of their own, before the rest."""
    role, content = message.get("role", "user"), message.get("content")
    if role == "system":
        text = _system_text([{"type": "text", "text": content}] if isinstance(content, str) else content)
        return [{"role": "system", "content": text}] if text else []
    if not isinstance(content, list):
        return [{"role": role, "content": content}]
    turns: list[Fields] = []
    parts: list[Any] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            turns.append({"role": "tool", "content": block.get("content")})
        elif kind == "tool_use":
            parts.append({"type": "text", "text": orjson.dumps([block.get("name"), block.get("input")]).decode()})
        elif kind == "thinking":
            parts.append({"type": "text", "text": str(block.get("thinking", ""))})
        elif kind != "redacted_thinking":
            parts.append(block)
    if parts or not turns:
        turns.append({"role": role, "content": parts})
    return turns


def _without_cache_control(tool: Any) -> Any:
    return {name: value for name, value in tool.items() if name != "cache_control"} if isinstance(tool, dict) else tool


def _write_message(facts: AnswerFacts, answer: FinishedAnswer, usage: Usage) -> bytes:
    return orjson.dumps(
        {
            "id": facts.id,
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": answer.text}],
            "model": facts.model,
            "stop_reason": _STOP_REASONS[answer.reason],
            "usage": _message_usage(usage),
        }
    )


_STOP_REASONS: Final[Mapping[str, str]] = {"length": "max_tokens", "stop": "end_turn", "abort": "end_turn"}


def _message_usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt,
        "output_tokens": usage.completion,
        "cache_creation_input_tokens": usage.created or 0,
        "cache_read_input_tokens": usage.cached,
    }


class MessageEvents:
    """The events of one streamed message."""

    done: Final = b""

    def __init__(self, facts: AnswerFacts) -> None:
        self._facts = facts
        self._reason = ""

    def role(self, index: int) -> bytes:
        """The beginning of the message."""
        message: dict[str, Any] = {
            "id": self._facts.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self._facts.model,
            "stop_reason": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        return _event("message_start", message=message) + _event(
            "content_block_start", index=0, content_block={"type": "text", "text": ""}
        )

    def text(self, index: int, text: str, reason: str | None, usage: Usage | None, *, last: bool) -> bytes:
        """A piece of the text; `reason` ends it."""
        out = _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text}) if text else b""
        if reason:
            self._reason = _STOP_REASONS[reason]
            out += _event("content_block_stop", index=0)
        return out

    def usage(self, usage: Usage) -> bytes:
        """The end of the message, with its usage."""
        delta = {"stop_reason": self._reason}
        return _event("message_delta", delta=delta, usage=_message_usage(usage)) + _event("message_stop")


def _event(kind: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **members}))


# -- OpenAI's responses -----------------------------------------------------------------------------------------------


def _response_fields(fields: Fields) -> Fields:
    items = fields.get("input")
    if items is None:
        raise bad_field("missing", "body.input", "Field required", f"<dict of {len(fields)} items>")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise bad_field("list_type", "body.input", "Input should be a string or a list of items", str(items))
    turns: list[Fields] = []
    if fields.get("instructions"):
        turns.append({"role": "system", "content": fields["instructions"]})
    for item in items:
        if item.get("type") == "function_call":
            call = orjson.dumps([item.get("name"), item.get("arguments")]).decode()
            turns.append({"role": "assistant", "content": call})
        elif item.get("type") == "function_call_output":
            turns.append({"role": "tool", "content": item.get("output")})
        else:
            turns.append({"role": item.get("role", "user"), "content": item.get("content")})
    return _kept(fields, "stream", "cache_salt", "ignore_eos", "tools") | {
        "model": fields.get("model"),
        "messages": turns,
        "max_tokens": fields.get("max_output_tokens"),
    }


def _write_response(facts: AnswerFacts, answer: FinishedAnswer, usage: Usage) -> bytes:
    return orjson.dumps(_response(facts, answer.text, answer.reason, usage))


def _response(facts: AnswerFacts, text: str, reason: str, usage: Usage | None) -> dict[str, Any]:
    """A response object in the recorded shape; without a usage it is in progress."""
    cut = reason == "length"
    status = "in_progress" if usage is None else "incomplete" if cut else "completed"
    part: dict[str, Any] = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
    message = {
        "id": f"msg_{facts.id.partition('_')[2]}",
        "content": [part],
        "role": "assistant",
        "status": "completed",
        "type": "message",
        "phase": None,
    }
    return {
        "id": facts.id,
        "created_at": facts.created,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": None,
        "metadata": None,
        "model": facts.model,
        "object": "response",
        "output": [] if usage is None else [message],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "none",
        "tools": [],
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": None if usage is None else usage.completion,
        "max_tool_calls": None,
        "previous_response_id": None,
        "prompt": None,
        "reasoning": None,
        "service_tier": "auto",
        "status": status,
        "text": None,
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": None if usage is None else _response_usage(usage),
        "user": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "input_messages": None,
        "output_messages": None,
    }


def _response_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": 0,
            "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        },
        "output_tokens": usage.completion,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": usage.prompt + usage.completion,
    }


class ResponseEvents:
    """The events of one streamed response."""

    done: Final = b""

    def __init__(self, facts: AnswerFacts) -> None:
        self._facts = facts
        self._texts: list[str] = []
        self._reason = ""

    def role(self, index: int) -> bytes:
        """The beginning of the response."""
        return _event("response.created", response=_response(self._facts, "", "", None))

    def text(self, index: int, text: str, reason: str | None, usage: Usage | None, *, last: bool) -> bytes:
        """A piece of the text."""
        self._texts.append(text)
        self._reason = reason or ""
        return _event("response.output_text.delta", output_index=0, content_index=0, delta=text)

    def usage(self, usage: Usage) -> bytes:
        """The end of the response, with its usage."""
        response = _response(self._facts, "".join(self._texts), self._reason, usage)
        return _event(f"response.{response['status']}", response=response)


# -- the engines' own -------------------------------------------------------------------------------------------------


def _tokens_fields(fields: Fields) -> Fields:
    sampling = _object(fields.get("sampling_params"))
    return _kept(fields, "cache_salt") | {
        "model": fields.get("model"),
        "prompt": fields.get("token_ids"),
        "max_tokens": sampling.get("max_tokens", 16),
        "ignore_eos": sampling.get("ignore_eos"),
    }


def _write_tokens(facts: AnswerFacts, answer: FinishedAnswer, usage: Usage) -> bytes:
    choice = {
        "index": 0,
        "logprobs": None,
        "finish_reason": answer.reason,
        "token_ids": tokenize(answer.text).tolist(),
    }
    return orjson.dumps(
        {"request_id": facts.id, "choices": [choice], "prompt_logprobs": None, "kv_transfer_params": None}
    )


def _generate_fields(fields: Fields) -> Fields:
    limits = _object(fields.get("sampling_params")) | _object(fields.get("parameters"))
    prompt = next((fields[name] for name in ("text", "input_ids", "inputs") if fields.get(name) is not None), None)
    return {"prompt": prompt, "max_tokens": limits.get("max_new_tokens", 16)}


def _write_generated(facts: AnswerFacts, answer: FinishedAnswer, usage: Usage) -> bytes:
    """The members of SGLang's answer and of TGI's."""
    about = {
        "id": facts.id,
        "finish_reason": {"type": answer.reason},
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "cached_tokens": usage.cached,
    }
    return orjson.dumps({"text": answer.text, "generated_text": answer.text, "meta_info": about})


def _triton_fields(fields: Fields) -> Fields:
    limits = _object(fields.get("parameters"))
    return {"prompt": fields.get("text_input"), "max_tokens": fields.get("max_tokens", limits.get("max_tokens", 16))}


def _write_triton(facts: AnswerFacts, answer: FinishedAnswer, usage: Usage) -> bytes:
    return orjson.dumps({"model_name": facts.model, "model_version": "1", "text_output": answer.text})


def _llamacpp_fields(fields: Fields) -> Fields:
    return {"prompt": fields.get("prompt"), "max_tokens": fields.get("n_predict", 16)}


def _infill_fields(fields: Fields) -> Fields:
    texts = [content_text(file.get("text")) for file in fields.get("input_extra") or () if isinstance(file, dict)]
    texts += [content_text(fields.get(name)) for name in ("input_prefix", "prompt", "input_suffix")]
    return {"prompt": "".join(texts), "max_tokens": fields.get("n_predict", 16)}


def _write_llamacpp(facts: AnswerFacts, answer: FinishedAnswer, usage: Usage) -> bytes:
    return orjson.dumps(
        {
            "content": answer.text,
            "id_slot": 0,
            "stop": True,
            "model": facts.model,
            "tokens_predicted": usage.completion,
            "tokens_evaluated": usage.prompt,
            "stop_type": "limit" if answer.reason == "length" else "eos",
            "tokens_cached": usage.cached,
        }
    )


def _object(value: Any) -> Fields:
    return value if isinstance(value, dict) else {}


def _kept(fields: Fields, *names: str) -> Fields:
    return {name: fields[name] for name in names if name in fields}


MESSAGES: Final = Interface(messages_fields, _write_message, chat=True, stream=True)
RESPONSES: Final = Interface(_response_fields, _write_response, chat=True, stream=True)
_GENERATE: Final = Interface(_generate_fields, _write_generated)


def interfaces(models: Sequence[str]) -> Mapping[str, Interface]:
    """The interfaces by path; `models` are the names that a path may have."""
    return {
        "/v1/messages": MESSAGES,
        "/v1/responses": RESPONSES,
        "/inference/v1/generate": Interface(_tokens_fields, _write_tokens),
        "/generate": _GENERATE,
        "/completion": Interface(_llamacpp_fields, _write_llamacpp),
        "/infill": Interface(_infill_fields, _write_llamacpp),
        **{f"/v2/models/{model}/generate": Interface(_triton_fields, _write_triton) for model in models},
    }
