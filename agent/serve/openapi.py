"""The OpenAPI 3.1 document of the admin address, made from the tables that the answers are made from."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from agent.accelerators.faults import FAULTS
from agent.accelerators.table import COMBINED, DEVICE_SIGNALS
from agent.signals import SIGNALS, Kind, Signal
from agent.state.health import Health
from agent.state.rates import RATES, Rate
from exporters.gauge import REASONS

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_SECONDS: Final[Schema] = {"type": "number", "minimum": 0}
_NUMBER: Final[Schema] = {"type": "number"}
_SCORES: Final[Schema] = {"type": "object", "additionalProperties": _NUMBER}
_AMOUNT: Final[Schema] = {"type": "number", "minimum": 0}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(description: str, properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def _signal(row: Signal) -> Schema:
    value: Schema = _list(_TEXT)
    if row.kind is not Kind.NAMES:
        value = {"type": "number", "minimum": row.low, "maximum": row.high}
    return _known_or_not(row.help, value, row.unit, "null when it was never read")


def _rate(row: Rate) -> Schema:
    value = {**_AMOUNT, "maximum": 1} if row.unit == "ratio" else _AMOUNT
    return _known_or_not(f"{row.help}, over the last 30 seconds", value, row.unit, "null when there is no value")


def _known_or_not(what: str, value: Schema, unit: str, no_age: str) -> Schema:
    """A number with its unit and age, or null with the reason."""
    schema = _object(
        what,
        {
            "value": _or_null(value),
            "unit": {"const": unit},
            "age_seconds": _described(_or_null(_SECONDS), no_age),
            "fresh": _described({"type": "boolean"}, "true exactly when there is a value"),
            "reason": _described({"enum": sorted(REASONS)}, "why there is no value; only there when there is none"),
        },
        optional=("reason",),
    )
    schema["oneOf"] = [
        {"properties": {"fresh": {"const": True}, "value": {"not": {"type": "null"}}, "reason": False}},
        {"properties": {"fresh": {"const": False}, "value": {"type": "null"}}, "required": ["reason"]},
    ]
    return schema


_HEADER: Final[dict[str, Schema]] = {
    "epoch": _described(_TEXT, "drawn at each start of the agent; versions of different epochs cannot be compared"),
    "version": _described(_COUNT, "grows with every change"),
    "as_of": _described({"type": "string", "format": "date-time"}, "the instant that all ages refer to, in UTC"),
    "uptime_seconds": _described(_SECONDS, "the same instant in seconds since the epoch began: it never steps"),
}


def _schemas() -> dict[str, Schema]:
    return {
        "Endpoint": _object(
            "One replica of a model server.",
            {
                "address": _described(_TEXT, "host:port, or [host]:port for IPv6"),
                "engine": _TEXT,
                "health": _described({"enum": [each.value for each in Health]}, "only a healthy endpoint is picked"),
                "reason": _described(_TEXT, "why it is not healthy, one word; empty when it is"),
                "page_age_seconds": _described(_or_null(_SECONDS), "of the last metrics page; null before the first"),
                "failures": _described(_COUNT, "scrapes that failed since that page"),
                "stale_after_seconds": _described(_SECONDS, "a page, or a reading, of this age is stale"),
                "work": _object(
                    "What the agent itself has given to the endpoint and has not seen the end of.",
                    {
                        "requests": _COUNT,
                        "prefill_seconds": _described(
                            _SECONDS, "until their prefill is done, at as_of; a second less each second"
                        ),
                        "prefill_tokens": _described(_AMOUNT, "the same in uncached prompt tokens"),
                        "rate_tokens_per_second": {"type": "number", "exclusiveMinimum": 0},
                        "rate_source": {"enum": ["configured", "default", "learnt", "pool"]},
                        "corrected": _described({"type": "boolean"}, "whether fresh pages keep the estimate true"),
                    },
                ),
                "prefix": _object(
                    "Prefix cache hits since the agent knows this server.",
                    {
                        "predicted_hit_tokens": _described(_AMOUNT, "what the agent's index expected"),
                        "measured_hit_tokens": _described(_or_null({"type": "number"}), "what the server counted"),
                    },
                ),
                "rates": _object(
                    "What its counters grew by lately, as of the last page.",
                    {row.name: _rate(row) for row in RATES.values()},
                ),
                "accelerators": _described(
                    _list(_ref("Accelerators")), "what runs under it, one entry for each source"
                ),
                "signals": _object("What the server reports.", {name: _signal(row) for name, row in SIGNALS.items()}),
            },
        ),
        "Accelerators": _object(
            "What one source says of an endpoint's accelerators, and how old that is.",
            {
                "source": _described(_TEXT, "the kind of exporter"),
                "exporter": _described(_TEXT, "who said it; empty where nobody has said anything of this endpoint"),
                "age_seconds": _described(_or_null(_SECONDS), "of the oldest reading; null where there is none"),
                "stale_after_seconds": _SECONDS,
                "picked_on": _described({"type": "boolean"}, "whether a profile may pick by these readings"),
                "devices": _list(
                    _object(
                        "One accelerator, or one part of it.",
                        {
                            **_DEVICE,
                            "fault": _described({"enum": ["", *sorted(FAULTS)]}, "why it is sick; empty: it is not"),
                            "detail": _TEXT,
                        },
                    )
                ),
                "signals": _object(
                    "Of all of them together: the busiest, the hottest, or the sum.",
                    {name: _signal(DEVICE_SIGNALS[name]) for name in COMBINED},
                ),
            },
        ),
        "Exporters": _object(
            "Every accelerator exporter, and whose its devices are.",
            {
                "as_of": _HEADER["as_of"],
                "exporters": _list(
                    _object(
                        "One exporter.",
                        {
                            "source": _TEXT,
                            "address": _TEXT,
                            "path": _TEXT,
                            "fresh": {"type": "boolean"},
                            "page_age_seconds": _described(_or_null(_SECONDS), "null before the first page"),
                            "stale_after_seconds": _SECONDS,
                            "failures": _described(_COUNT, "scrapes that failed since the last page"),
                            "reason": _described(_TEXT, "of the last failure; empty when there is none"),
                            "joined": _described(
                                {"type": "object", "additionalProperties": _list(_object("A device.", _DEVICE))},
                                "endpoint -> its devices",
                            ),
                            "unmatched": _described(_list(_object("A device.", _DEVICE)), "they fit no endpoint"),
                            "ambiguous": _described(_list(_object("A device.", _DEVICE)), "they fit several"),
                            "sick": _described(
                                {"type": "object", "additionalProperties": _TEXT}, "device -> what it suffers from"
                            ),
                        },
                    )
                ),
            },
        ),
        "State": _object(
            "The state of every pool at as_of.",
            {**_HEADER, "pools": _list(_object("One pool.", {"pool": _TEXT, "endpoints": _list(_ref("Endpoint"))}))},
        ),
        "Change": _object(
            "What makes the state at `version` of the one at `since` or any later one. Applying it twice does no harm.",
            {
                **_HEADER,
                "since": _COUNT,
                "pools": _list(
                    _object(
                        "A pool that changed, or a new one.",
                        {
                            "pool": _TEXT,
                            "changed": _described(_list(_ref("Endpoint")), "new or different endpoints, whole"),
                            "removed": _described(_list(_TEXT), "addresses that are gone"),
                        },
                    )
                ),
                "removed_pools": _list(_TEXT),
            },
        ),
        "Gauges": _object(
            "Every gauge that an autoscaler could read.",
            {"as_of": _HEADER["as_of"], "gauges": _list({"oneOf": [_ref("Gauge"), _ref("WithheldGauge")]})},
        ),
        "Gauge": _object(
            "A gauge with a value.",
            {
                **_GAUGE,
                "value": {"type": "number"},
                "sample_time": _described({"type": "string", "format": "date-time"}, "of the oldest reading in it"),
                "age_seconds": _SECONDS,
            },
        ),
        "WithheldGauge": _object(
            "A gauge without fresh data; " + "; ".join(f"{word}: {text}" for word, text in sorted(REASONS.items())),
            {**_GAUGE, "value": {"type": "null"}, "withheld": {"enum": sorted(REASONS)}},
        ),
        "Picks": _object(
            "The newest picks, newest first.",
            {
                "as_of": _HEADER["as_of"],
                "picks": _list(
                    _object(
                        "One decision and its reasons.",
                        {
                            "pool": _TEXT,
                            "request_id": _TEXT,
                            "time": {"type": "string", "format": "date-time"},
                            "age_seconds": _SECONDS,
                            "endpoint": _TEXT,
                            "decided_by": _described(_TEXT, "only_candidate, tie, or the scorer that decided"),
                            "left_warmest": _described({"type": "boolean"}, "another had more of the prompt cached"),
                            "prompt_tokens": _AMOUNT,
                            "hit_tokens": _described(_AMOUNT, "expected in the cache of the endpoint"),
                            "best_hit_tokens": _described(_AMOUNT, "the most expected at any candidate"),
                            "state_version": _described(_COUNT, "of the pool's store, not that of /v1/state"),
                            "candidates": _list(
                                _object(
                                    "One that could have been picked; the best is first.",
                                    {"address": _TEXT, "total": _NUMBER, "scores": _SCORES},
                                )
                            ),
                        },
                    )
                ),
            },
        ),
        "Health": _object("Alive.", {"status": {"const": "ok"}}),
        "Readiness": _object(
            "Whether every pool has been looked at once.", {"ready": {"type": "boolean"}, "reasons": _list(_TEXT)}
        ),
        "Error": _object(
            "Why there is no answer.",
            {
                "error": _object(
                    "In the shape of OpenAI's errors.",
                    {"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)},
                )
            },
        ),
    }


_DEVICE: Final[dict[str, Schema]] = {
    "id": _TEXT,
    "number": _described(_TEXT, "on its machine"),
    "part": _described(_TEXT, "of a card that is cut up; empty for a whole one"),
    "model": _TEXT,
    "node": _described(_TEXT, "as the exporter calls it; empty where it does not say"),
    "pod": _described(_TEXT, "NAMESPACE/POD of who uses it; empty where nobody does, or nobody says"),
    "container": _TEXT,
}
_GAUGE: Final[dict[str, Schema]] = {
    "name": _TEXT,
    "aliases": _described(_list(_TEXT), "other names of the same number"),
    "labels": {"type": "object", "additionalProperties": _TEXT},
    "unit": _TEXT,
}


def _answers(description: str, schema: str, *, media: str = "application/json", **errors: str) -> Schema:
    found: Schema = {"200": {"description": description, "content": {media: {"schema": _ref(schema)}}}}
    for status, why in errors.items():
        content = {"application/json": {"schema": _ref("Error")}}
        found[status.removeprefix("s")] = {"description": why, "content": content}
    return found


def _parameter(name: str, place: str, description: str) -> Schema:
    return {"name": name, "in": place, "required": False, "description": description, "schema": _TEXT}


@cache
def document() -> Schema:
    """The document; one object, not to be changed."""
    pool = _parameter("pool", "query", "only this pool")
    watch = _answers(
        "Server-sent events: `state` (a State) first, unless the reader resumes, then `change` (a Change) for as long "
        "as the reader keeps up. The id of each is `<epoch>.<version>`. Comments carry epoch, version, as_of and "
        "uptime_seconds: nothing has changed up to then.",
        "State",
        media="text/event-stream",
        s400="`since` is no event id",
        s503="too many readers (Retry-After says when to come back), or the state is over the size limit",
    )
    watch["200"]["content"]["text/event-stream"]["schema"] = {"oneOf": [_ref("State"), _ref("Change")]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inference gateway agent: shared state",
            "version": "1",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "What the agent knows of the model servers, and how old it is. Unknown is null, never zero.",
        },
        "paths": {
            "/v1/state": {
                "get": {
                    "operationId": "getState",
                    "summary": "The state of every pool, endpoint and signal",
                    "parameters": [pool],
                    "responses": _answers(
                        "The state", "State", s404="no such pool", s503="the state is over the size limit"
                    ),
                }
            },
            "/v1/state/watch": {
                "get": {
                    "operationId": "watchState",
                    "summary": "The state and its changes, as they happen",
                    "parameters": [
                        _parameter("since", "query", "the id of the last event that was seen"),
                        _parameter("Last-Event-ID", "header", "the same, as browsers send it; it goes before `since`"),
                    ],
                    "responses": watch,
                }
            },
            "/v1/gauges": {
                "get": {
                    "operationId": "getGauges",
                    "summary": "Every gauge that an autoscaler could read, its sample time, or why it is withheld",
                    "parameters": [pool, _parameter("name", "query", "only gauges of this name or alias")],
                    "responses": _answers("The gauges", "Gauges", s404="no such pool"),
                }
            },
            "/v1/accelerators": {
                "get": {
                    "operationId": "getAccelerators",
                    "summary": "Every accelerator exporter, how old its page is, and whose its devices are",
                    "responses": _answers("The exporters", "Exporters"),
                }
            },
            "/v1/picks": {
                "get": {
                    "operationId": "getPicks",
                    "summary": "The last picks and why each endpoint was picked",
                    "parameters": [_parameter("limit", "query", "how many, 1 to 256; 20 when it is not given")],
                    "responses": _answers("The picks", "Picks", s400="limit is no such number"),
                }
            },
            "/healthz": {
                "get": {
                    "operationId": "getHealth",
                    "summary": "200 while the agent lives",
                    "responses": _answers("Alive", "Health"),
                }
            },
            "/readyz": {
                "get": {
                    "operationId": "getReadiness",
                    "summary": "200 once every endpoint that the agent started with was asked at least once",
                    "responses": {
                        "200": {"description": "Ready", "content": {"application/json": {"schema": _ref("Readiness")}}},
                        "503": {
                            "description": "Not yet",
                            "content": {"application/json": {"schema": _ref("Readiness")}},
                        },
                    },
                }
            },
        },
        "components": {"schemas": _schemas()},
    }
