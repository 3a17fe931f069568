"""What the agent says of itself in its OpenAPI document, held against what it answers."""

from __future__ import annotations

from typing import Any

import jsonschema

from agent.serve.state.openapi import document as openapi_document


def check(content: Any, schema: str) -> None:
    """`content` is valid by the document's schema of this name."""
    document = openapi_document()
    validator = jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{schema}", "components": document["components"]},
        format_checker=jsonschema.FormatChecker(),
    )
    validator.validate(content)
