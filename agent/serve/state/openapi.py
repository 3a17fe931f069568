"""The OpenAPI 3.1 document of the admin address. Its schemas are made from the types of `agent.serve.state.schema`.

`python -m agent.serve.state.openapi` prints docs/openapi.json.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Final

import msgspec

from agent.serve.state.flow_schema import FlowJson
from agent.serve.state.scaling_schema import ScalingJson
from agent.serve.state.schema import (
    REF,
    RULES,
    ChangeJson,
    ErrorJson,
    ExportersJson,
    GaugesJson,
    HeaderJson,
    LivenessJson,
    PicksJson,
    ReadinessJson,
    ReplicasJson,
    Schema,
    StateJson,
)
from agent.state.health import Health

_DOCUMENTS: Final = (
    HeaderJson,
    StateJson,
    ChangeJson,
    GaugesJson,
    FlowJson,
    ScalingJson,
    ExportersJson,
    ReplicasJson,
    PicksJson,
    LivenessJson,
    ReadinessJson,
    ErrorJson,
)


def _component(name: str) -> str:
    return name.removesuffix("Json")


def _cleaned(node: Any) -> Any:
    """A schema without titles, on one line where a docstring has several, and with the names of components."""
    if isinstance(node, list):
        return [_cleaned(each) for each in node]
    if not isinstance(node, dict):
        return node
    cleaned = {}
    for key, value in node.items():
        if key == "$ref":
            cleaned[key] = _component(value)
        elif key == "description" and isinstance(value, str):
            cleaned[key] = " ".join(value.split())
        elif key != "title":
            cleaned[key] = _cleaned(value)
    return cleaned


def _schemas() -> dict[str, Schema]:
    _, components = msgspec.json.schema_components(_DOCUMENTS, ref_template=REF + "{name}")
    for described, rules in RULES.items():
        components[described.__name__] |= rules
    components[Health.__name__]["description"] = "The health of an endpoint."  # mypyc drops the docstring of an enum
    return {_component(name): _cleaned(schema) for name, schema in sorted(components.items())}


def _ref(name: str) -> Schema:
    return {"$ref": f"{REF}{name}"}


def _responses(description: str, schema: str, **errors: str) -> Schema:
    """A 200 of this schema, and errors by status (`s404`)."""
    found = {"200": _json(description, schema)}
    return found | {status.removeprefix("s"): _json(why, "Error") for status, why in errors.items()}


def _json(description: str, schema: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


def _parameter(name: str, description: str, *, place: str = "query") -> Schema:
    schema = {"type": "string"}
    return {"name": name, "in": place, "required": False, "description": description, "schema": schema}


def _get(operation: str, summary: str, responses: Schema, *parameters: Schema) -> Schema:
    found: Schema = {"operationId": operation, "summary": summary}
    if parameters:
        found["parameters"] = list(parameters)
    return {"get": found | {"responses": responses}}


def _public(path: Schema) -> Schema:
    """A path that is answered without credentials."""
    return {"get": path["get"] | {"security": []}}


_POOL: Final = _parameter("pool", "only this pool")
_UNKNOWN: Final = "unknown parameter"


def _watch() -> Schema:
    responses = _responses(
        "Server-sent events: `state` (a State) first, unless the reader resumes, then `change` (a Change) for as long "
        "as the reader keeps up. The id of an event is `<epoch>.<version>`. A comment contains a Header: nothing has "
        "changed until then.",
        "State",
        s400="unknown parameter, or `since` is not the id of an event",
        s503="too many watchers (Retry-After says when to retry), or the state is over the size limit",
    )
    responses["200"]["content"] = {"text/event-stream": {"schema": {"oneOf": [_ref("State"), _ref("Change")]}}}
    return _get(
        "watchState",
        "The state and then its changes",
        responses,
        _parameter("since", "the id of the last event received"),
        _parameter("Last-Event-ID", "the same, as browsers send it; takes precedence over `since`", place="header"),
    )


def _paths() -> dict[str, Schema]:
    readiness = _responses("Ready", "Readiness") | {"503": _json("Not ready", "Readiness")}
    return {
        "/v1/state": _get(
            "getState",
            "The state of every pool, endpoint and signal",
            _responses(
                "The state", "State", s400=_UNKNOWN, s404="no such pool", s503="the state is over the size limit"
            ),
            _POOL,
        ),
        "/v1/state/watch": _watch(),
        "/v1/gauges": _get(
            "getGauges",
            "Every gauge that an autoscaler could read, with its sample time, or why it is withheld",
            _responses("The gauges", "Gauges", s400=_UNKNOWN, s404="no such pool or gauge"),
            _POOL,
            _parameter("name", "only gauges of this name or alias"),
        ),
        "/v1/flow": _get(
            "getFlow",
            "Flow control: who waits, for what, the room of each endpoint, and what would be refused now",
            _responses("Flow control", "Flow", s400=_UNKNOWN, s404="no such pool"),
            _POOL,
        ),
        "/v1/scaling": _get(
            "getScaling",
            "Demand: how many replicas each pool needs, what determines that, its inputs, and the last hour",
            _responses("The demand", "Scaling", s400=_UNKNOWN, s404="no such pool"),
            _POOL,
        ),
        "/v1/accelerators": _get(
            "getAccelerators",
            "Every accelerator exporter, the age of its page, and which endpoint its devices belong to",
            _responses("The exporters", "Exporters", s400=_UNKNOWN),
        ),
        "/v1/replicas": _get(
            "getReplicas",
            "What this replica of the agent is, and what is known of its peers",
            _responses("The replicas", "Replicas", s400=_UNKNOWN),
        ),
        "/v1/picks": _get(
            "getPicks",
            "The last picks and why each endpoint was picked",
            _responses("The picks", "Picks", s400="unknown parameter, or a limit out of range", s404="no such pool"),
            _parameter("limit", "how many, 1 to 256; default 20"),
            _parameter("request_id", "only the picks of this request"),
            _POOL,
        ),
        "/healthz": _public(_get("getHealth", "200 while the agent runs", _responses("Alive", "Liveness"))),
        "/readyz": _public(_get("getReadiness", "200 once every endpoint of every pool was scraped once", readiness)),
    }


@cache
def document() -> Schema:
    """The document; cached, not to be changed."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inference gateway agent: shared state",
            "version": "1",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "What the agent knows about the model servers, and the age of every value. Unknown is null, "
            "never zero. HEAD returns what GET returns, without the body. With admin.auth, a request without accepted "
            "credentials gets 401, one of a user without the right 403, and one that cannot be checked now 503, each "
            "an Error.",
        },
        "security": [{"bearer": []}, {}],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


@cache
def compact() -> bytes:
    """The document as `/v1/openapi.json` serves it."""
    return msgspec.json.encode(document())


def text() -> bytes:
    """The content of docs/openapi.json."""
    return msgspec.json.format(compact(), indent=2) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(text())
