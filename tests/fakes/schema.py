"""Validation of the agent's documents by its own OpenAPI document."""

from __future__ import annotations

from typing import Any

import jsonschema
import msgspec

from agent.serve.state.openapi import document as openapi_document


def check(content: Any, schema: str) -> None:
    """Raise unless `content`, JSON or structs that encode to it, is valid by the schema of this name."""
    document = openapi_document()
    validator = jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{schema}", "components": document["components"]},
        format_checker=jsonschema.FormatChecker(),
    )
    validator.validate(msgspec.json.decode(msgspec.json.encode(content)))
