"""The table of paths: how the body of a request is read, and what the request does to a server's prefix cache.

A row applies to every path that ends with its pattern, whatever prefix a gateway adds; the longest pattern counts. A
segment in braces stands for any text without a slash; `{model}` is the requested model. The query is not part of the
pattern. A path without a row is `UNKNOWN`: a model and a prompt are read where the body has any, and nothing is
refused.

The paths are those of the servers' own documents and routes: vLLM 0.32, SGLang, TGI, Triton's generate extension and
KServe's inference protocol, llama.cpp's server, Ollama, and the OpenAI, Anthropic, Cohere and Vertex AI interfaces that
these servers offer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qs, unquote

# What a request does to the prefix cache of its server.
PREFILLS: Final = "prefills"  # its prompt is prefilled there, and then in the cache
NOTHING: Final = "nothing"  # it neither uses nor fills the cache
EMPTIES: Final = "empties"  # the cache is empty afterwards

EFFECTS: Final[Mapping[str, str]] = {
    PREFILLS: "the prompt is prefilled, and then in the prefix cache",
    NOTHING: "no prompt is prefilled: the body is not read, and the prefix index is left alone",
    EMPTIES: "the prefix cache is empty afterwards: the prefix index forgets the endpoint's blocks",
}
# How a body is read: the key of a reader in `agent.requests.rendering`, or one of these.
UNREAD: Final = ""

# Segments of a pattern: more of a path are not compared.
_MAX_SEGMENTS: Final = 5
_QUERY_FIELDS: Final = 100


class PathRow(NamedTuple):
    """One row. `reader`: how the body is read (`agent.requests.rendering.READERS`), empty where it is not.

    `strict`: a body that is not a JSON object, or names no model, is refused, as its API defines it. `methods`: the
    methods for which the effect holds.
    """

    pattern: str
    reader: str
    effect: str
    strict: bool = False
    methods: tuple[str, ...] = ("POST",)


def _prefills(reader: str, *patterns: str) -> tuple[PathRow, ...]:
    return tuple(PathRow(pattern, reader, PREFILLS) for pattern in patterns)


def _strict(reader: str, pattern: str) -> PathRow:
    return PathRow(pattern, reader, PREFILLS, strict=True)


def _nothing(*patterns: str) -> tuple[PathRow, ...]:
    return tuple(PathRow(pattern, UNREAD, NOTHING) for pattern in patterns)


def _empties(*patterns: str, methods: tuple[str, ...] = ("POST",)) -> tuple[PathRow, ...]:
    return tuple(PathRow(pattern, UNREAD, EMPTIES, methods=methods) for pattern in patterns)


UNKNOWN: Final = PathRow("", "any", PREFILLS)
# A proxy that sends no path sends requests of these APIs alone: the body is read as any of them, and has to be JSON.
NO_PATH: Final = PathRow("", "any", PREFILLS, strict=True)
ROOT: Final = PathRow("/", "generate", PREFILLS)  # TGI's root; a path that is no more than this

PATHS: Final[tuple[PathRow, ...]] = (
    # OpenAI and Anthropic APIs
    _strict("chat", "/chat/completions"),
    _strict("completion", "/completions"),
    _strict("embedding", "/embeddings"),
    _strict("response", "/responses"),
    _strict("messages", "/messages"),
    *_prefills("chats", "/chat/completions/batch"),
    *_prefills("audio", "/audio/transcriptions", "/audio/translations"),
    *_prefills("speech", "/audio/speech"),
    # vLLM
    *_prefills("generate", "/inference/v1/generate"),
    *_prefills("pooling", "/pooling", "/classify"),
    *_prefills("score", "/score", "/rerank", "/reranking", "/generative_scoring"),
    *_prefills("any", "/invocations"),
    # SGLang, TGI, Triton, KServe
    ROOT,
    *_prefills("generate", "/generate", "/generate_stream", "/encode"),
    *_prefills("generate", "/models/{model}/generate", "/models/{model}/generate_stream"),
    *_prefills("generate", "/models/{model}/versions/{version}/generate"),
    *_prefills("generate", "/models/{model}/versions/{version}/generate_stream"),
    *_prefills("tensors", "/models/{model}/infer", "/models/{model}/versions/{version}/infer"),
    *_prefills("pooling", "/embed", "/embed_all", "/embed_sparse", "/predict"),
    *_prefills("score", "/similarity"),
    # Vertex AI
    *_prefills("instances", "/models/{model}:predict", "/vertex_generate"),
    *_prefills("instances", "/endpoints/{endpoint}:predict", "/endpoints/{endpoint}:rawPredict"),
    # llama.cpp
    *_prefills("completion", "/completion"),
    *_prefills("infill", "/infill"),
    *_prefills("embedding", "/embedding"),
    # Ollama
    *_prefills("ollama", "/api/generate"),
    *_prefills("chat", "/api/chat"),
    *_prefills("embedding", "/api/embed", "/api/embeddings"),
    # Prompts that are counted, rendered or tokenized
    *_nothing("/tokenize", "/detokenize", "/chat_tokenize", "/tokenizer_info", "/tokenize/count"),
    *_nothing("/count_tokens", "/input_tokens", "/models/{model}:countTokens"),
    *_nothing("/chat/completions/render", "/completions/render", "/messages/render", "/responses/render"),
    *_nothing("/chat/completions/derender", "/completions/derender", "/apply-template"),
    # States of a server
    *_nothing("/health", "/health_generate", "/healthz", "/ping", "/ready", "/live", "/version", "/metrics", "/load"),
    *_nothing("/info", "/server_info", "/get_server_info", "/model_info", "/get_model_info", "/props", "/get_load"),
    *_nothing("/models", "/models/{model}", "/models/{model}/ready", "/models/{model}/config", "/slots", "/slots/{id}"),
    *_nothing("/api/tags", "/api/show", "/api/ps", "/api/pull", "/api/version"),
    *_nothing("/is_sleeping", "/is_paused", "/resume", "/reset_mm_cache", "/reset_encoder_cache", "/weight_info"),
    *_nothing("/abort_request", "/abort_requests", "/responses/{id}", "/responses/{id}/cancel", "/files", "/batches"),
    *_nothing("/load_lora_adapter", "/unload_lora_adapter", "/lora-adapters", "/start_profile", "/stop_profile"),
    *_nothing("/open_session", "/close_session", "/repository/index"),
    # vLLM's development mode, SGLang, llama.cpp's router, Triton: the cache is lost
    *_empties("/sleep", "/wake_up", "/reset_prefix_cache", "/release_kv_cache_memory", "/pause"),
    *_empties("/update_weights", "/finish_weight_update"),
    *_empties("/flush_cache", methods=("GET", "POST")),
    *_empties("/update_weights_from_disk", "/update_weights_from_tensor", "/update_weights_from_distributed"),
    *_empties("/update_weights_from_ipc", "/release_memory_occupation", "/resume_memory_occupation"),
    *_empties("/models/load", "/models/unload"),
    *_empties("/repository/models/{model}/load", "/repository/models/{model}/unload"),
)

_LITERAL: Final = {row.pattern: row for row in PATHS if "{" not in row.pattern and row is not ROOT}


def _compiled(row: PathRow) -> tuple[int, re.Pattern[str], PathRow]:
    parts = re.split(r"\{(\w+)\}", row.pattern)
    text = "".join(re.escape(part) if place % 2 == 0 else f"(?P<{part}>[^/]+?)" for place, part in enumerate(parts))
    return row.pattern.count("/"), re.compile(text), row


# The longest first: of two patterns that fit, the one with more segments counts, and a literal before a variable.
_VARIABLE: Final = sorted((_compiled(row) for row in PATHS if "{" in row.pattern), key=lambda each: -each[0])


class PathMatch(NamedTuple):
    """The row of a path, and the model that the path names, or an empty text."""

    row: PathRow
    model: str = ""


_UNKNOWN: Final = PathMatch(UNKNOWN)
_NO_PATH: Final = PathMatch(NO_PATH)
# The paths without a prefix but the version: found by one look-up.
_MATCHES: Final = {prefix + pattern: PathMatch(row) for prefix in ("", "/v1") for pattern, row in _LITERAL.items()} | {
    ROOT.pattern: PathMatch(ROOT)
}


def match(path: str) -> PathMatch:
    """The row of the path, and the model in it."""
    known = _MATCHES.get(path)
    if known is not None:
        return known
    if not path:
        return _NO_PATH
    path = path.partition("?")[0]
    known = _MATCHES.get(path)
    if known is not None:
        return known
    segments = path.rstrip("/").rsplit("/", _MAX_SEGMENTS)
    if len(segments) < 2:
        return _UNKNOWN
    for first in range(1, len(segments)):
        end = "/" + "/".join(segments[first:])
        row = _LITERAL.get(end)
        if row is not None:
            return PathMatch(row)
        count = len(segments) - first
        for length, pattern, variable in _VARIABLE:
            if length == count:
                found = pattern.fullmatch(end)
                if found is not None:
                    return PathMatch(variable, unquote(found.groupdict().get("model", "")))
    return _UNKNOWN


def model_of_query(path: str) -> str:
    """The value of `model` in the path's query, or an empty text."""
    query = path.partition("?")[2]
    if "model=" not in query:
        return ""
    try:
        return parse_qs(query, max_num_fields=_QUERY_FIELDS).get("model", [""])[0]
    except ValueError:  # more fields than a request of these interfaces has
        return ""


def empties(path: str, method: str) -> bool:
    """Whether a request with this path and method leaves its server with an empty prefix cache."""
    row = match(path).row
    return row.effect == EMPTIES and method in row.methods
