"""The OpenAPI 3.1 document of the admin address, made from the tables that the answers are made from.

`python -m agent.serve.state.openapi` prints it as it stands in `docs/openapi.json`.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Final

import orjson

from agent.accelerators.faults import FAULTS
from agent.accelerators.table import COMBINED, DEVICE_SIGNALS
from agent.serve.state.schema import (
    AMOUNT,
    COUNT,
    NUMBER,
    SCORES,
    SECONDS,
    TEXT,
    Schema,
    described,
    histogram,
    list_of,
    object_of,
    or_null,
    rate,
    ref,
    signal,
)
from agent.signals import HISTOGRAMS, SIGNALS
from agent.state.counter_rates import RATES
from agent.state.health import Health
from exporters.gauge import REASONS

_HEADER: Final[dict[str, Schema]] = {
    "epoch": described(TEXT, "drawn at each start of the agent; versions of different epochs cannot be compared"),
    "version": described(COUNT, "grows with every change"),
    "as_of": described({"type": "string", "format": "date-time"}, "the instant that all ages refer to, in UTC"),
    "uptime_seconds": described(SECONDS, "the same instant in seconds since the epoch began: it never steps"),
}


def _schemas() -> dict[str, Schema]:
    return {
        "Endpoint": object_of(
            "One replica of a model server.",
            {
                "address": described(TEXT, "host:port, or [host]:port for IPv6"),
                "engine": TEXT,
                "health": described({"enum": [each.value for each in Health]}, "only a healthy endpoint is picked"),
                "reason": described(TEXT, "why it is not healthy, one word; empty when it is"),
                "page_age_seconds": described(or_null(SECONDS), "of the last metrics page; null before the first"),
                "failures": described(COUNT, "scrapes that failed since that page"),
                "stale_after_seconds": described(SECONDS, "a page, or a reading, of this age is stale"),
                "work": object_of(
                    "What the agent itself has given to the endpoint and has not seen the end of.",
                    {
                        "requests": COUNT,
                        "prefill_seconds": described(
                            SECONDS, "until their prefill is done, at as_of; a second less each second"
                        ),
                        "prefill_tokens": described(AMOUNT, "the same in uncached prompt tokens"),
                        "rate_tokens_per_second": {"type": "number", "exclusiveMinimum": 0},
                        "rate_source": {"enum": ["configured", "default", "learnt", "pool"]},
                        "corrected": described({"type": "boolean"}, "whether fresh pages keep the estimate true"),
                    },
                ),
                "prefix": object_of(
                    "Prefix cache hits since the agent knows this server.",
                    {
                        "predicted_hit_tokens": described(AMOUNT, "what the agent's index expected"),
                        "measured_hit_tokens": described(or_null(NUMBER), "what the server counted"),
                        "gap_tokens": described(or_null(NUMBER), "predicted minus measured: above 0 the index hopes"),
                    },
                ),
                "histograms": described(
                    object_of(
                        "Those that the configuration asks for, as of the last page.",
                        {name: histogram(row) for name, row in HISTOGRAMS.items()},
                        optional=tuple(HISTOGRAMS),
                    ),
                    "empty unless scrape.histograms names some",
                ),
                "rates": object_of(
                    "What its counters grew by lately, as of the last page.",
                    {row.name: rate(row) for row in RATES.values()},
                ),
                "accelerators": described(
                    list_of(ref("Accelerators")), "what runs under it, one entry for each source"
                ),
                "signals": object_of("What the server reports.", {name: signal(row) for name, row in SIGNALS.items()}),
            },
        ),
        "Accelerators": object_of(
            "What one source says of an endpoint's accelerators, and how old that is.",
            {
                "source": described(TEXT, "the kind of exporter"),
                "exporter": described(TEXT, "who said it; empty where nobody has said anything of this endpoint"),
                "age_seconds": described(or_null(SECONDS), "of the oldest reading; null where there is none"),
                "stale_after_seconds": SECONDS,
                "picked_on": described({"type": "boolean"}, "whether a profile may pick by these readings"),
                "devices": list_of(
                    object_of(
                        "One accelerator, or one part of it.",
                        {
                            **_DEVICE,
                            "fault": described({"enum": ["", *sorted(FAULTS)]}, "why it is sick; empty: it is not"),
                            "detail": TEXT,
                        },
                    )
                ),
                "signals": object_of(
                    "Of all of them together: the busiest, the hottest, or the sum.",
                    {name: signal(DEVICE_SIGNALS[name]) for name in COMBINED},
                ),
            },
        ),
        "Exporters": object_of(
            "Every accelerator exporter, and whose its devices are.",
            {
                "as_of": _HEADER["as_of"],
                "exporters": list_of(
                    object_of(
                        "One exporter.",
                        {
                            "source": TEXT,
                            "address": TEXT,
                            "path": TEXT,
                            "fresh": {"type": "boolean"},
                            "page_age_seconds": described(or_null(SECONDS), "null before the first page"),
                            "stale_after_seconds": SECONDS,
                            "failures": described(COUNT, "scrapes that failed since the last page"),
                            "reason": described(TEXT, "of the last failure; empty when there is none"),
                            "joined": described(
                                {"type": "object", "additionalProperties": list_of(object_of("A device.", _DEVICE))},
                                "endpoint -> its devices",
                            ),
                            "unmatched": described(list_of(object_of("A device.", _DEVICE)), "they fit no endpoint"),
                            "ambiguous": described(list_of(object_of("A device.", _DEVICE)), "they fit several"),
                            "sick": described(
                                {"type": "object", "additionalProperties": TEXT}, "device -> what it suffers from"
                            ),
                        },
                    )
                ),
            },
        ),
        "State": object_of(
            "The state of every pool at as_of.",
            {
                **_HEADER,
                "pools": list_of(object_of("One pool.", {"pool": TEXT, "endpoints": list_of(ref("Endpoint"))})),
            },
        ),
        "Change": object_of(
            "What makes the state at `version` of the one at `since` or any later one. Applying it twice does no harm.",
            {
                **_HEADER,
                "since": COUNT,
                "pools": list_of(
                    object_of(
                        "A pool that changed, or a new one.",
                        {
                            "pool": TEXT,
                            "changed": described(list_of(ref("Endpoint")), "new or different endpoints, whole"),
                            "removed": described(list_of(TEXT), "addresses that are gone"),
                        },
                    )
                ),
                "removed_pools": list_of(TEXT),
            },
        ),
        "Gauges": object_of(
            "Every gauge that an autoscaler could read.",
            {"as_of": _HEADER["as_of"], "gauges": list_of({"oneOf": [ref("Gauge"), ref("WithheldGauge")]})},
        ),
        "Gauge": object_of(
            "A gauge with a value.",
            {
                **_GAUGE,
                "value": {"type": "number"},
                "sample_time": described({"type": "string", "format": "date-time"}, "of the oldest reading in it"),
                "age_seconds": SECONDS,
            },
        ),
        "WithheldGauge": object_of(
            "A gauge without fresh data; " + "; ".join(f"{word}: {text}" for word, text in sorted(REASONS.items())),
            {**_GAUGE, "value": {"type": "null"}, "withheld": {"enum": sorted(REASONS)}},
        ),
        "Picks": object_of(
            "The newest picks, newest first.",
            {
                "as_of": _HEADER["as_of"],
                "picks": list_of(
                    object_of(
                        "One decision and its reasons.",
                        {
                            "pool": TEXT,
                            "request_id": TEXT,
                            "time": {"type": "string", "format": "date-time"},
                            "age_seconds": SECONDS,
                            "endpoint": TEXT,
                            "decided_by": described(TEXT, "only_candidate, tie, or the scorer that decided"),
                            "left_warmest": described({"type": "boolean"}, "another had more of the prompt cached"),
                            "prompt_tokens": AMOUNT,
                            "hit_tokens": described(AMOUNT, "expected in the cache of the endpoint"),
                            "best_hit_tokens": described(AMOUNT, "the most expected at any candidate"),
                            "state_version": described(COUNT, "of the pool's store, not that of /v1/state"),
                            "candidates": list_of(
                                object_of(
                                    "One that could have been picked; the best is first.",
                                    {"address": TEXT, "total": NUMBER, "scores": SCORES},
                                )
                            ),
                        },
                    )
                ),
            },
        ),
        "Health": object_of("Alive.", {"status": {"const": "ok"}}),
        "Readiness": object_of(
            "Whether every pool has been looked at once.", {"ready": {"type": "boolean"}, "reasons": list_of(TEXT)}
        ),
        "Error": object_of(
            "Why there is no answer.",
            {
                "error": object_of(
                    "In the shape of OpenAI's errors.",
                    {"message": TEXT, "type": TEXT, "param": or_null(TEXT), "code": or_null(TEXT)},
                )
            },
        ),
    }


_DEVICE: Final[dict[str, Schema]] = {
    "id": TEXT,
    "number": described(TEXT, "on its machine"),
    "part": described(TEXT, "of a card that is cut up; empty for a whole one"),
    "model": TEXT,
    "node": described(TEXT, "as the exporter calls it; empty where it does not say"),
    "pod": described(TEXT, "NAMESPACE/POD of who uses it; empty where nobody does, or nobody says"),
    "container": TEXT,
}
_GAUGE: Final[dict[str, Schema]] = {
    "name": TEXT,
    "aliases": described(list_of(TEXT), "other names of the same number"),
    "labels": {"type": "object", "additionalProperties": TEXT},
    "unit": TEXT,
}


def _answers(description: str, schema: str, *, media: str = "application/json", **errors: str) -> Schema:
    found: Schema = {"200": {"description": description, "content": {media: {"schema": ref(schema)}}}}
    for status, why in errors.items():
        content = {"application/json": {"schema": ref("Error")}}
        found[status.removeprefix("s")] = {"description": why, "content": content}
    return found


def _parameter(name: str, place: str, description: str) -> Schema:
    return {"name": name, "in": place, "required": False, "description": description, "schema": TEXT}


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
    watch["200"]["content"]["text/event-stream"]["schema"] = {"oneOf": [ref("State"), ref("Change")]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inference gateway agent: shared state",
            "version": "1",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "What the agent knows of the model servers, and how old it is. Unknown is null, never zero. "
            "HEAD answers as GET does, without the body.",
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
                    "responses": _answers("The gauges", "Gauges", s404="no such pool or gauge"),
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
                        "200": {"description": "Ready", "content": {"application/json": {"schema": ref("Readiness")}}},
                        "503": {
                            "description": "Not yet",
                            "content": {"application/json": {"schema": ref("Readiness")}},
                        },
                    },
                }
            },
        },
        "components": {"schemas": _schemas()},
    }


def text() -> bytes:
    """The content of docs/openapi.json."""
    return orjson.dumps(document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    sys.stdout.buffer.write(text())
