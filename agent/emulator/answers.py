"""Answer bodies: completions, chats, stream chunks and model lists in the shapes of the recorded transcripts.

The constant part of a stream's chunks is encoded once per request. The text of an answer is ASCII letters and spaces,
so it needs no escaping, and a chunk costs one concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

FINGERPRINT: Final = "igw-emulator"
DONE: Final = b"data: [DONE]\n\n"
_END: Final = b',"system_fingerprint":"%s"}\n\n' % FINGERPRINT.encode()
BUSY: Final = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)
ENGINE_FAILED: Final = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class FinishedAnswer(NamedTuple):
    """One finished answer: its text, its finish reason, and the token ids where the client requested them."""

    text: str
    reason: str
    prompt_ids: Sequence[int] | None = None
    ids: Sequence[int] | None = None


class Usage(NamedTuple):
    """Token counts of one request; `created` counts those new in the prefix cache, None where vLLM has null."""

    prompt: int
    completion: int
    cached: int
    created: int | None

    def fields(self) -> dict[str, Any]:
        """The `usage` of a whole answer."""
        return self.short() | {
            "prompt_tokens_details": {
                "cached_tokens": self.cached,
                "created_cache_tokens": self.created,
                "multimodal_tokens": None,
            },
            "completion_tokens_details": None,
        }

    def short(self) -> dict[str, Any]:
        """The `usage` of a chunk in a stream with continuous usage."""
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
        }

    def last(self) -> dict[str, Any]:
        """The `usage` of the last chunk of a stream."""
        details = {"cached_tokens": self.cached}
        if self.created is not None:
            details["created_cache_tokens"] = self.created
        return self.short() | {"prompt_tokens_details": details}


def completion(id: str, created: int, model: str, answers: Sequence[FinishedAnswer], usage: Usage) -> bytes:
    """A whole completion."""
    return orjson.dumps(
        {
            "id": id,
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": [
                {
                    "index": index,
                    "text": answer.text,
                    "logprobs": None,
                    "finish_reason": answer.reason,
                    "stop_reason": None,
                    "token_ids": answer.ids,
                    "prompt_logprobs": None,
                    "prompt_token_ids": answer.prompt_ids,
                    "routed_experts": None,
                }
                for index, answer in enumerate(answers)
            ],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage.fields(),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
    )


def chat(id: str, created: int, model: str, answers: Sequence[FinishedAnswer], usage: Usage) -> bytes:
    """A whole chat answer."""
    return orjson.dumps(
        {
            "id": id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [
                {
                    "index": index,
                    "message": {
                        "role": "assistant",
                        "content": answer.text,
                        "refusal": None,
                        "annotations": None,
                        "audio": None,
                        "function_call": None,
                        "reasoning": None,
                    },
                    "logprobs": None,
                    "finish_reason": answer.reason,
                    "stop_reason": None,
                    "token_ids": answer.ids,
                    "routed_experts": None,
                }
                for index, answer in enumerate(answers)
            ],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage.fields(),
            "prompt_logprobs": None,
            "prompt_token_ids": answers[0].prompt_ids,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
    )


class ChunkWriter:
    """The chunks of one stream."""

    done: Final = DONE

    def __init__(self, id: str, created: int, model: str, *, chat: bool) -> None:
        self._chat = chat
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = orjson.dumps({"id": id, "object": kind, "created": created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['

    def role(self, index: int) -> bytes:
        """The first chunk of one answer of a chat, with the role."""
        return (
            self._head
            + b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
            b'"prompt_token_ids":null,"prompt_text":null}\n\n' % index
        )

    def text(self, index: int, text: str, reason: str | None, usage: Usage | None, *, last: bool) -> bytes:
        """A chunk with text, which must need no escaping; `reason` ends the answer, `last` ends the stream."""
        ends = b'"%s"' % reason.encode() if reason else b"null"
        if self._chat:
            stop = b',"stop_reason":null' if reason else b""
            body = b'{"index":%d,"delta":{"content":"%s"},"logprobs":null,"finish_reason":%s%s,"token_ids":null}]' % (
                index,
                text.encode(),
                ends,
                stop,
            )
        else:
            body = (
                b'{"index":%d,"text":"%s","logprobs":null,"finish_reason":%s,"stop_reason":null,'
                b'"prompt_token_ids":null,"token_ids":null}]' % (index, text.encode(), ends)
            )
        tail = b',"usage":' + orjson.dumps(usage.short()) if usage else b""
        return self._head + body + tail + (_END if last else b"}\n\n")

    def usage(self, usage: Usage) -> bytes:
        """The last chunk: the usage, without a choice."""
        return self._head + b'],"usage":' + orjson.dumps(usage.last()) + _END


def error_event(message: str, kind: str, code: int) -> bytes:
    """An error inside a stream. `[DONE]` follows it, so `[DONE]` does not prove success (recorded)."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return b"data: " + orjson.dumps({"error": error}) + b"\n\n"


def model_list(base: str, adapters: Sequence[str], created: int, max_model_len: int) -> bytes:
    """The body of `/v1/models`: the base model, then its adapters, whose parent it is."""

    def entry(name: str, parent: str | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": name,
            "parent": parent,
            "max_model_len": None if parent else max_model_len,
            "permission": [
                {
                    "id": f"modelperm-{name}",
                    "object": "model_permission",
                    "created": created,
                    "allow_create_engine": False,
                    "allow_sampling": True,
                    "allow_logprobs": True,
                    "allow_search_indices": False,
                    "allow_view": True,
                    "allow_fine_tuning": False,
                    "organization": "*",
                    "group": None,
                    "is_blocking": False,
                }
            ],
        }

    return orjson.dumps({"object": "list", "data": [entry(base, None), *(entry(name, base) for name in adapters)]})


def load_report(format: str, waiting: int, kv_usage: float) -> str | None:
    """The `endpoint-load-metrics` header in `format`, TEXT or JSON; None for another format."""
    if format.upper() == "JSON":
        return (
            f'JSON {{"named_metrics": {{"num_requests_waiting": {float(waiting)}, "kv_cache_usage_perc": {kv_usage}}}}}'
        )
    if format.upper() == "TEXT":
        return f"TEXT named_metrics.num_requests_waiting={float(waiting)}, named_metrics.kv_cache_usage_perc={kv_usage}"
    return None
