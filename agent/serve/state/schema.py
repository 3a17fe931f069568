"""The pieces of the OpenAPI document: small schemas, and what a number with its unit and age looks like."""

from __future__ import annotations

from typing import Any, Final

from agent.signals import HistogramSignal, Kind, Signal
from agent.state.counter_rates import Rate
from exporters.gauge import REASONS

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
SECONDS: Final[Schema] = {"type": "number", "minimum": 0}
NUMBER: Final[Schema] = {"type": "number"}
SCORES: Final[Schema] = {"type": "object", "additionalProperties": NUMBER}
AMOUNT: Final[Schema] = {"type": "number", "minimum": 0}


def ref(name: str) -> Schema:
    """A schema of the document, by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def or_null(schema: Schema) -> Schema:
    """The schema, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def object_of(description: str, properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    """An object with these properties and no others; all are required but the optional ones."""
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def list_of(items: Schema) -> Schema:
    """An array of any length."""
    return {"type": "array", "items": items}


def described(schema: Schema, description: str) -> Schema:
    """The schema with a description."""
    return {**schema, "description": description}


def signal(row: Signal) -> Schema:
    """A signal's value."""
    value: Schema = list_of(TEXT)
    if row.kind is not Kind.NAMES:
        value = {"type": "number", "minimum": row.low, "maximum": row.high}
    return _known_or_not(row.help, value, row.unit, "null when it was never read")


_HISTOGRAM: Final[Schema] = object_of(
    "How often each length of time was met since the server started.",
    {
        "buckets": described(
            list_of({"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}),
            "an upper bound, and how many were no longer; the infinite one is left out",
        ),
        "count": described(AMOUNT, "how many there were"),
        "sum": described(AMOUNT, "their sum"),
    },
)


def rate(row: Rate) -> Schema:
    """A rate's value."""
    value = {**AMOUNT, "maximum": 1} if row.unit == "ratio" else AMOUNT
    return _known_or_not(f"{row.help}, over the last 30 seconds", value, row.unit, "null when there is no value")


def histogram(row: HistogramSignal) -> Schema:
    """A histogram."""
    return _known_or_not(row.help, _HISTOGRAM, row.unit, "null when there is no value")


def _known_or_not(what: str, value: Schema, unit: str, no_age: str) -> Schema:
    """A number with its unit and age, or null with the reason."""
    schema = object_of(
        what,
        {
            "value": or_null(value),
            "unit": {"const": unit},
            "age_seconds": described(or_null(SECONDS), no_age),
            "fresh": described({"type": "boolean"}, "true exactly when there is a value"),
            "reason": described({"enum": sorted(REASONS)}, "why there is no value; only there when there is none"),
        },
        optional=("reason",),
    )
    schema["oneOf"] = [
        {"properties": {"fresh": {"const": True}, "value": {"not": {"type": "null"}}, "reason": False}},
        {"properties": {"fresh": {"const": False}, "value": {"type": "null"}}, "required": ["reason"]},
    ]
    return schema
