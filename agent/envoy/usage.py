"""Envoy filters that read the token usage of responses, so that the access log has it: the agent sees no body.

A stream of events is read as it passes. A response that is one JSON object is kept by Envoy until it is complete, which
such a response is at once; one that is larger than Envoy's buffer would be answered with 500. So only those of paths
that generate text are read: responses of embeddings are large and have little to count.
"""

from __future__ import annotations

from typing import Any, Final

from agent.requests.exchange import CACHED_TOKENS, COMPLETION_TOKENS, PROMPT_TOKENS, USAGE

Data = dict[str, Any]

_TYPE: Final = "type.googleapis.com/envoy.extensions."
_SSE: Final = "envoy.filters.http.sse_to_metadata"
_JSON: Final = "envoy.filters.http.json_to_metadata"
# Envoy's default of 8 KiB is less than an event with the log probabilities of a token may have.
_MAX_EVENT_BYTES: Final = 1 << 20
_GENERATING: Final = r".*/(chat/completions|completions|responses|messages)"
# Where an API has its usage: OpenAI's completions and responses, Anthropic's messages; in a stream the latter two have
# it in an object of an event. Several places of one number are alternatives.
_PLACES: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    (PROMPT_TOKENS, ("usage", "prompt_tokens")),
    (PROMPT_TOKENS, ("usage", "input_tokens")),
    (PROMPT_TOKENS, ("response", "usage", "input_tokens")),
    (PROMPT_TOKENS, ("message", "usage", "input_tokens")),
    (COMPLETION_TOKENS, ("usage", "completion_tokens")),
    (COMPLETION_TOKENS, ("usage", "output_tokens")),
    (COMPLETION_TOKENS, ("response", "usage", "output_tokens")),
    (CACHED_TOKENS, ("usage", "prompt_tokens_details", "cached_tokens")),
    (CACHED_TOKENS, ("usage", "input_tokens_details", "cached_tokens")),
    (CACHED_TOKENS, ("usage", "cache_read_input_tokens")),
    (CACHED_TOKENS, ("response", "usage", "input_tokens_details", "cached_tokens")),
    (CACHED_TOKENS, ("message", "usage", "cache_read_input_tokens")),
)


def usage_filters() -> list[Data]:
    """The HTTP filters; that of whole JSON objects is disabled but for the route of `usage_route`."""
    parser = {
        "name": "envoy.content_parsers.json",
        "typed_config": {
            "@type": f"{_TYPE}content_parsers.json.v3.JsonContentParser",
            "rules": [{"rule": rule} for rule in _rules()],
        },
    }
    stream = {
        "@type": f"{_TYPE}filters.http.sse_to_metadata.v3.SseToMetadata",
        "response_rules": {"content_parser": parser, "max_event_size": _MAX_EVENT_BYTES},
    }
    return [
        {"name": _SSE, "typed_config": stream},
        {"name": _JSON, "typed_config": _json(), "disabled": True},
    ]


def usage_route(action: Data) -> Data:
    """The route of the paths that generate text, with the filter of whole JSON objects."""
    enabled = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": _json()}
    return {
        "match": {"safe_regex": {"regex": _GENERATING}},
        "route": action,
        "typed_per_filter_config": {_JSON: enabled},
    }


def _json() -> Data:
    return {
        "@type": f"{_TYPE}filters.http.json_to_metadata.v3.JsonToMetadata",
        "response_rules": {
            "rules": _rules(),
            "allow_content_types_regex": {"regex": r"application/json(\s*;.*)?"},
        },
    }


def _rules() -> list[Data]:
    return [
        {
            "selectors": [{"key": key} for key in place],
            "on_present": {"metadata_namespace": USAGE, "key": name, "type": "NUMBER"},
        }
        for name, place in _PLACES
    ]
